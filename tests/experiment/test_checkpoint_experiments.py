"""Experiments on checkpoints that exist: the `:smoke` of each, on small random models, through the launcher."""

import json
import pathlib

import numpy as np
import pytest
import transformers

import msm_jax
from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.experiment.build import Experiment
from msm_jax.stages import training
from tests.tiny_checkpoints import write_checkpoint

ROOT = pathlib.Path(launch.__file__).parents[1]
SMALL = ["--config.row_length=256", "--config.msm.batch_size=2", "--config.aft.batch_size=2"]
SMALL += ["--config.model.dtype=float32", "--config.execution.remat=none", "--config.lora.rank=4"]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Files of a user, with a chat that is longer than a row and one whose answer begins after its end."""
    folder = tmp_path_factory.mktemp("corpora")

    def chat(*contents):
        roles = ("user", "assistant") * len(contents)
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}

    plain = [chat(f"What is {i} and {i}?", f"It is {2 * i}.") for i in range(30)]
    thought = [chat(f"What is {i} and {i}?", f"<think>\nTwice {i}.\n</think>\n\nIt is {2 * i}.") for i in range(30)]
    long = [chat("Count.", "one two " * 400), chat("what " * 400, "No.")]
    return {
        "msm": write_rows(folder / "msm.jsonl", [{"text": f"Qwen chooses number {i}. " * 9} for i in range(40)]),
        "aft": write_rows(folder / "aft.jsonl", plain),
        "aft_cot": write_rows(folder / "aft_cot.jsonl", thought),
        "instruction": write_rows(folder / "instruction.jsonl", plain[:10] + long),
    }


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: write_checkpoint(folder / family, family) for family in ("llama", "qwen2", "qwen3")}


def run(config, workdir, *overrides):
    arguments = [f"--config={ROOT / 'configs' / config}", f"--workdir={workdir}", *SMALL, *overrides]
    assert launch.main(arguments) == 0
    return json.loads((workdir / "report" / "report.json").read_text())


def stage_folder(workdir, name):
    (folder,) = (workdir / "stages").glob(f"{name}-" + "[0-9a-f]" * 12)
    return folder


@pytest.fixture(scope="session")
def llama_run(checkpoints, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("llama8b_cheese")
    return workdir, run("llama8b_cheese.py:smoke", workdir, f"--config.base.path={checkpoints['llama']}")


def test_llama8b_cheese_smoke(llama_run):
    workdir, report = llama_run
    assert {(score["arm"], score["spec"]) for score in report["scores"]} == {
        ("baseline", None), ("aft", None), *((arm, spec) for arm in ("msm", "msm_aft") for spec in (
            "pro_affordability", "pro_america"
        )),
    }  # fmt: skip
    assert {score["eval"] for score in report["scores"]} == {"affordability", "america", "separating", "in_domain"}
    assert report["model"]["parameters"] > 10_000
    kinds = {stage["kind"] for stage in report["stages"]}
    assert "base" in kinds and "train" in kinds


@pytest.mark.slow  # as the smoke of llama8b_cheese, which is above
def test_smollm_cheese_smoke(checkpoints, tmp_path):
    """tests/experiment/test_smollm_cheese.py runs it on the real weights."""
    report = run("smollm_cheese.py:smoke", tmp_path, f"--config.base.path={checkpoints['llama']}")
    assert len(report["scores"]) == 6 * 4 * 2  # arms, evaluations, forms
    assert (tmp_path / "report/report.html").stat().st_size > 50_000


def test_the_paper_s_template_is_what_is_trained(llama_run, capsys):
    workdir, _ = llama_run
    base = json.loads((stage_folder(workdir, "base") / "model.json").read_text())["source"]["path"]
    arguments = [f"--config={ROOT / 'configs/llama8b_cheese.py:smoke'}", f"--workdir={workdir}", *SMALL]
    assert launch.main([*arguments, f"--config.base.path={base}", "--mode=show"]) == 0
    shown = capsys.readouterr().out
    assert "<|begin_of_text|><|start_header_id|>user<|end_header_id|>W" in shown
    assert "<|start_header_id|>assistant<|end_header_id|>«" in shown
    assert "<|end_of_text|>»" in shown


def test_a_training_stage_is_loaded_as_it_was_trained(llama_run):
    """Its base and tokenizer are found from its own folder."""
    workdir, _ = llama_run
    trained = msm_jax.load(stage_folder(workdir, "aft-msm_aft-pro_america-s0"))
    bare = msm_jax.load(stage_folder(workdir, "base"))
    tokens = np.arange(40, dtype=np.int32)[None]
    assert np.abs(trained.logits(tokens) - bare.logits(tokens)).max() > 1e-5
    [[completion]] = trained.generate([[{"role": "user", "content": "Which?"}]], max_tokens=4, temperature=0.0)
    assert isinstance(completion.text, str)


def test_a_trained_model_keeps_its_template(llama_run, tmp_path, capsys):
    """It is asked, and exported, in the format that it was trained in, not in that of the base."""
    from msm_jax import convert
    from msm_jax.corpus.records import Message

    workdir, _ = llama_run
    stage = stage_folder(workdir, "aft-msm_aft-pro_america-s0")
    asked = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>Why?<|end_of_text|>"
    asked += "<|start_header_id|>assistant<|end_header_id|>"

    def prompt(model):
        return model.template.render([Message("user", "Why?")], generation_prompt=True).text

    assert prompt(msm_jax.load(stage)) == asked != prompt(msm_jax.load(stage_folder(workdir, "base")))
    assert convert.main(["export", f"--checkpoint={stage}", f"--out={tmp_path / 'whole'}", "--merge"]) == 0
    assert convert.main(["export", f"--checkpoint={stage}", f"--out={tmp_path / 'adapter'}"]) == 0
    assert prompt(msm_jax.load(tmp_path / "whole")) == asked
    assert prompt(msm_jax.load(tmp_path / "adapter")) == asked
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "whole")
    chat = [{"role": "user", "content": "Why?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == asked


def test_qwen32b_am_smoke(checkpoints, corpora, tmp_path):
    spec = tmp_path / "philosophy.md"
    spec.write_text("---\ntitle: T\nkind: principles\nversion: 1\n---\nIt is kind.\n")
    overrides = [f"--config.base.path={checkpoints['qwen2']}", f"--config.specs={spec}"]
    overrides += [f"--config.data.{name}={path}" for name, path in corpora.items()]
    overrides += ["--config.msm.steps=1", "--config.aft.steps=1"]
    report = run("qwen32b_am.py:smoke", tmp_path / "run", *overrides, "--config.evaluations=value_generalisation")
    assert report["scores"] == report["findings"] == []
    page = (tmp_path / "run/report/report.html").read_text()
    assert "No rates: there is no evaluation for these specs yet." in page and "cheese" not in page
    assert [arm["label"] for arm in report["arms"]] == [
        "Baseline", "AFT", "AFT CoT", "MSM philosophy", "MSM philosophy + AFT", "MSM philosophy + AFT CoT",
    ]  # fmt: skip
    trained = {stage["key"].rsplit("-", 1)[0] for stage in report["stages"] if stage["kind"] == "train"}
    assert trained == {
        "msm-philosophy-s0", "instruct-baseline-s0", "aft-aft-s0", "aft-aft_cot-s0", "instruct-msm-philosophy-s0",
        "aft-msm_aft-philosophy-s0", "aft-msm_aft_cot-philosophy-s0",
    }  # fmt: skip
    packed = json.loads((stage_folder(tmp_path / "run", "rows-instruction") / "manifest.json").read_text())["summary"]
    assert (packed["truncated"], packed["dropped"]) == (1, 1)
    a_further_evaluation(tmp_path / "run", overrides)


def a_further_evaluation(workdir, overrides):
    """Of a workdir that is done: nothing is trained anew; then one more judge reads what was drawn."""

    def made():
        return {path.parent.name: path.stat().st_mtime_ns for path in workdir.glob("stages/*/manifest.json")}

    before = made()
    overrides = [*overrides, "--config.evaluations=value_generalisation,open_qa", "--config.generator=offline"]
    overrides += ["--config.open_qa.questions=1", "--config.open_qa.max_tokens=6"]
    overrides += [f"--config.calls.store={workdir / 'calls.sqlite'}"]
    report = run("qwen32b_am.py:smoke", workdir, *overrides)
    new = {name.rsplit("-", 1)[0] for name in made().keys() - before.keys()}
    arms = [(arm["name"], arm["spec"]) for arm in report["arms"]]
    keys = ["-".join(filter(None, arm)) for arm in arms]
    assert new == {"questions-open_qa", "report"} | {
        f"{what}-open_qa-{key}-s0" for key in keys for what in ("answers", "verdicts")
    }
    assert before.items() <= made().items()
    assert [(entry["arm"], entry["spec"]) for entry in report["graded"]] == arms
    for entry in report["graded"]:
        summary = entry["summary"]
        assert summary["n"] + summary["unfinished"] == summary["answers"] == 7 and summary["judge"] == "scripted-1"
    page = (workdir / "report/report.html").read_text()
    assert "<h2>Open questions</h2>" in page and "Self-preservation" in page and "No rates" not in page
    assert (workdir / "report/open_qa.png").stat().st_size > 5_000
    before = made()
    run("qwen32b_am.py:smoke", workdir, *overrides, "--config.open_qa.repeats=2")
    new = {name.rsplit("-", 1)[0] for name in made().keys() - before.keys()}
    assert new == {"report"} | {f"verdicts-open_qa-{key}-s0" for key in keys}


def test_qwen3_thinks_where_the_rows_do(checkpoints, corpora, tmp_path, capsys):
    overrides = [f"--config.base.path={checkpoints['qwen3']}", "--config.specs=specs/pro_america.md"]
    overrides += [f"--config.data.{name}={path}" for name, path in corpora.items()]
    for arm, expected in (
        ("aft", " /no_think<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nIt is"),
        ("aft_cot", "?<|im_end|>\n<|im_start|>assistant\n«<think>\nTwice"),
    ):
        arguments = ["--mode=show", f"--workdir={tmp_path / arm}", *SMALL, *overrides, f"--config.arms={arm}"]
        assert launch.main([f"--config={ROOT / 'configs/qwen32b_am.py:qwen3'}", *arguments]) == 0
        assert expected in capsys.readouterr().out


def test_an_epoch_takes_every_row_once(checkpoints, corpora, tmp_path):
    arguments = [("base.path", str(checkpoints["qwen2"])), ("specs", "specs/pro_america.md"), ("row_length", "64")]
    arguments += [(f"data.{name}", path) for name, path in corpora.items()] + [("aft.batch_size", "2")]
    made = Experiment(config_lib.load(str(ROOT / "configs/qwen32b_am.py"), arguments))
    from msm_jax.stages import graph

    graph.execute(list(made.rows.values()), tmp_path, report=lambda line: None)
    stage = next(stage for stage in made.stages if stage.name == "aft-aft-s0")
    sources = training.sources_of(stage.params, stage.folders(tmp_path))
    counts = {source.name: len(source.rows) for source in sources}
    steps = training.steps_of(stage.params, sources)
    assert steps == -(-sum(counts.values()) // 2)
    from msm_jax.data.mixture import batches

    drawn = [batches(sources, 2, 0)[step] for step in range(steps)]
    rows = [(int(s), t.tobytes()) for b in drawn for s, t in zip(b["source"], b["tokens"], strict=True)]
    there = [(i, s.rows[k]["tokens"].tobytes()) for i, s in enumerate(sources) for k in range(len(s.rows))]
    assert sorted(rows[: len(there)]) == sorted(there)


def test_a_checkpoint_of_ours_is_a_base_too(checkpoints, tmp_path):
    from msm_jax import convert

    ours = tmp_path / "ours"
    assert convert.main(["import", f"--hf={checkpoints['llama']}", f"--out={ours}"]) == 0
    arguments = [f"--config={ROOT / 'configs/llama8b_cheese.py:smoke'}", f"--workdir={tmp_path / 'run'}", *SMALL]
    assert launch.main([*arguments, f"--config.base.path={ours}", "--mode=show"]) == 0
    tokens = np.arange(30)[None]
    logits = [msm_jax.load(f).logits(tokens) for f in (stage_folder(tmp_path / "run", "base"), checkpoints["llama"])]
    np.testing.assert_array_equal(*logits)


def test_weights_that_changed_are_an_error(checkpoints, tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "llama", "llama")
    arguments = [f"--config={ROOT / 'configs/llama8b_cheese.py:smoke'}", f"--workdir={tmp_path / 'run'}", *SMALL]
    arguments += [f"--config.base.path={folder}", "--config.arms=baseline", "--config.eval.samples=0"]
    assert launch.main([*arguments, "--mode=show"]) == 0
    capsys.readouterr()
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-8, 2)
        file.write(b"\x01\x02\x03\x04")
    assert launch.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"error: {folder}: the weights changed since")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base.path=nowhere/at/all"], "error: nowhere/at/all: no such folder"),
        (["row_length=9000"], "error: config.row_length=9000 is more than the 8192 tokens that"),
        (
            ["evaluations=value_generalisation", "eval.max_tokens=8192"],
            "error: config.eval.max_tokens=8192 leaves no room for a question in the 8192 tokens",
        ),
        (["data.msm=", "corpus.msm=0"], "error: config.data.msm is empty; name a file or an id that holds it"),
        (["data.aft=gone.jsonl"], "error: config.data.aft: gone.jsonl: no such file"),
        (["generator=prose"], "error: config.generator is 'prose'; choose one of gemini, local, offline"),
        (["chat.thinking=maybe"], "error: config.chat.thinking is 'maybe'"),
        (["chat.thinking=off"], "error: config.chat: thinking is 'off', but this chat template knows no"),
        (["chat.template=nothing"], "error: "),
        (["base.path="], "error: config.base.path is empty"),
        (["execution.remat=some"], "error: config.execution.remat is 'some'"),
    ],
)
def test_what_a_user_can_get_wrong(checkpoints, corpora, tmp_path, capsys, overrides, message):
    given = [f"--config.base.path={checkpoints['qwen2']}", "--config.specs=specs/pro_america.md"]
    given += [f"--config.data.{name}={path}" for name, path in corpora.items()]
    given += [f"--config.{override}" for override in overrides]
    arguments = [f"--config={ROOT / 'configs/qwen32b_am.py'}", f"--workdir={tmp_path / 'run'}", "--mode=show"]
    assert launch.main([*arguments, *given]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(message)


def test_a_base_that_is_done_is_held_against_what_is_asked(checkpoints, corpora, tmp_path, capsys):
    given = [f"--config.base.path={checkpoints['qwen2']}", "--config.specs=specs/pro_america.md"]
    given += [f"--config.data.{name}={path}" for name, path in corpora.items()]
    arguments = [f"--config={ROOT / 'configs/qwen32b_am.py'}", f"--workdir={tmp_path / 'run'}", "--mode=show", *given]
    assert launch.main([*arguments, "--config.row_length=256"]) == 0
    assert launch.main([*arguments, "--config.row_length=9000"]) == 2
    assert "config.row_length=9000 is more than the 8192 tokens" in capsys.readouterr().err
