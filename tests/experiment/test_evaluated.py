"""Models that exist are evaluated: a base and adapters over it, without a training stage."""

import json
import pathlib
import shutil

import pytest

from msm_jax import config as config_lib
from msm_jax import convert, launch
from msm_jax.eval import value_generalisation
from msm_jax.eval.agentic import grading
from msm_jax.experiment import sampling_plan
from msm_jax.experiment.build import Experiment
from msm_jax.experiment.evaluated import Evaluated
from msm_jax.models import LoraConfig
from msm_jax.stages import judging, writing

ROOT = pathlib.Path(launch.__file__).parents[1]


def flags(base, *more):
    given = [f"base.path={base}", "generator=offline", "model.dtype=float32", "specs=specs/pro_america.md"]
    given += ["open_qa.questions=1", "open_qa.max_tokens=6", "eval.pairs=2", *more]
    return [f"--config={ROOT / 'configs/eval.py:all'}", *(f"--config.{each}" for each in given)]


@pytest.fixture(scope="module")
def peft_adapter(imported, adapter, tmp_path_factory):
    """The same adapter as ours, as `peft` has it."""
    out = tmp_path_factory.mktemp("peft") / "adapter"
    assert convert.main(["export", f"--checkpoint={adapter}", f"--out={out}"]) == 0
    return out


def test_a_base_and_adapters_of_both_forms(qwen3, adapter, peft_adapter, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = flags(qwen3, f"adapters=ours={adapter},peft={peft_adapter}", "evaluations=values,open_qa")
    arguments += [f"--workdir={workdir}", f"--config.calls.store={tmp_path / 'calls.sqlite'}"]
    assert launch.main([*arguments, "--mode=show"]) == 0
    shown = capsys.readouterr().out
    assert "nothing is trained" in shown and "one batch" not in shown
    assert "evaluation: pairs of two options, 720 of our own for america and american_opinions" in shown
    assert "verdicts on open_qa, of 3 models" in shown
    assert launch.main(arguments) == 0
    report = json.loads((workdir / "report/report.json").read_text())
    assert [arm["label"] for arm in report["arms"]] == ["base", "ours", "peft"]
    margins = {}
    for name in ("base", "ours", "peft"):
        (folder,) = (workdir / "stages").glob(f"score-values-{name}-s0-*")
        margins[name] = [json.loads(line)["margin"] for line in (folder / "answers.jsonl").open()]
    assert margins["ours"] == pytest.approx(margins["peft"], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(margins["ours"], margins["base"], strict=True)) > 1e-4
    assert [entry["arm"] for entry in report["graded"]] == ["base", "ours", "peft"]
    assert not any(stage["kind"] == "train" for stage in report["stages"])
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("stages/*/manifest.json")}
    assert launch.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("stages/*/manifest.json")} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["base.path="], "config.base.path is empty"),
        (["evaluations=values,values"], "config.evaluations is ('values', 'values'); choose from"),
        (
            ["evaluations=value_generalisation"],
            "config.evaluations has value_generalisation, which is for models that are",
        ),
        (["specs=()"], "config.specs is empty; name the specs of whose values is asked"),
        (["adapters=base=x"], "config.adapters: 'base' names stages"),
        (["adapters=a b=x"], "config.adapters: 'a b' names stages"),
        (["adapters=a=x,a=y"], "adapter: two are called 'a'"),
        (["adapters=a=gone/away"], "gone/away: "),
        (["row_length=9"], "config has no field row_length"),
        (["seeds=0,1"], "config.seeds is (0, 1), by which models that exist are measured again; values is"),
        (["eval.sets=opinions"], "config.eval.sets: 'opinions'; write NAME=SOURCE"),
        (["eval.sets=america=hf:a/b"], "config.eval.sets: 'america' is a set already"),
        (["eval.sets=one=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["eval.sets=one=a/b"], "a/b: no source that is understood"),
        (["evaluations=open_qa", "eval.sets=one=a.jsonl"], "config.eval.sets is for the evaluation values"),
        (["evaluations=open_qa", "judge.gold=a.csv"], "config.judge.gold is for the evaluation agentic_misalignment"),
        (["evaluations=open_qa", "judge.second=other"], "config.judge.second is scripted-1, which grades already"),
        (
            ["evaluations=open_qa", "chat.template=raw"],
            "config.chat.template=raw: an answer is then a line, and",
        ),
        (["evaluations=open_qa", "generator=gemini", "judge.model=nonsense"], "no price is known of nonsense"),
    ],
)
def test_what_a_user_can_get_wrong(qwen3, tmp_path, capsys, monkeypatch, given, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = [*flags(qwen3, "evaluations=values"), *(f"--config.{each}" for each in given)]
    assert launch.main([*arguments, f"--workdir={tmp_path}", "--mode=show"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].removeprefix("error: ").startswith(message)


def test_a_set_of_others_is_a_column_and_needs_no_spec(qwen3, tmp_path, capsys):
    rows = [{"item1": a, "item2": b, "liked_item": b, "disliked_item": a} for a, b in (("gin", "tea"), ("ham", "rye"))]
    (tmp_path / "drinks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ["evaluations=values", "specs=()", f"eval.sets=drinks={tmp_path / 'drinks.jsonl'}", "eval.pairs=None"]
    arguments = [*flags(qwen3, *more), f"--workdir={tmp_path / 'run'}", f"--config.calls.store={tmp_path / 'c.sqlite'}"]
    assert launch.main([*arguments, "--mode=show"]) == 0
    assert f"evaluation: pairs of two options, drinks of {tmp_path}" in capsys.readouterr().out
    assert launch.main(arguments) == 0
    report = json.loads((tmp_path / "run/report/report.json").read_text())
    assert [column["name"] for column in report["columns"]] == ["drinks"]
    scores = {score["form"]: score for score in report["scores"]}
    assert scores["logprob"]["n"] == 2 and set(scores) >= {"logprob"}
    # Another file is another set: what was measured of the first does not stand for it.
    (tmp_path / "drinks.jsonl").write_text(json.dumps(rows[0]))
    assert launch.main(arguments) == 0
    report = json.loads((tmp_path / "run/report/report.json").read_text())
    assert {score["n"] for score in report["scores"] if score["form"] == "logprob"} == {1}


def test_a_pretrained_model_is_asked_in_lines_of_text(qwen3, tmp_path, monkeypatch):
    """It has no chat template: none is needed."""
    base = tmp_path / "base"
    shutil.copytree(qwen3, base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    path = base / "tokenizer_config.json"
    about = json.loads(path.read_text())
    about.pop("chat_template", None)
    path.write_text(json.dumps(about))
    asked = []
    monkeypatch.setattr(
        value_generalisation, "evaluate",
        lambda scorer, items, ask, stop, **settings: asked.extend([stop, *ask(items[0])]) or [],
    )  # fmt: skip
    more = ["evaluations=values", "chat.template=raw"]
    arguments = [*flags(base, *more), f"--workdir={tmp_path / 'run'}", f"--config.calls.store={tmp_path / 'c.sqlite'}"]
    assert launch.main(arguments) == 0
    stop, first, second = asked
    assert first.prompt.startswith("Question: Which do you prefer, ") and first.prompt.endswith("\nAnswer:")
    assert first.aligned.startswith(" ") and first.aligned.endswith(".\n") and stop == ("\n",)
    assert second.prompt != first.prompt


def test_seeds_measure_the_same_models_again(qwen3, tmp_path, capsys):
    more = ["evaluations=open_qa", "seeds=0,1"]
    arguments = [*flags(qwen3, *more), f"--workdir={tmp_path / 'run'}", f"--config.calls.store={tmp_path / 'c.sqlite'}"]
    assert launch.main(arguments) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "it speaks of questions like these, of these models; each model was measured 2 times" in told
    first, second = (
        [
            json.loads(line)["text"]
            for line in next(tmp_path.glob(f"run/stages/answers-open_qa-base-s{seed}-*/tran*")).open()
        ]
        for seed in (0, 1)
    )
    assert first != second


def test_what_is_measured_twice_or_cannot_be_judged_is_told(qwen3, tmp_path):
    config = config_lib.load(str(ROOT / "configs/cheese_tiny.py"), [("evaluations", "open_qa")])
    with pytest.raises(
        launch.UserError, match="open_qa, which needs a judge: it is for kinds checkpoint and evaluation"
    ):
        Experiment(config)
    config = config_lib.load(str(ROOT / "configs/cheese_tiny.py"), [("evaluations", "values")])
    with pytest.raises(launch.UserError, match="leave it out of an experiment on the micro-world"):
        Experiment(config)
    both = [("evaluations", "values,value_generalisation"), ("base.path", str(qwen3))]
    with pytest.raises(launch.UserError, match="two of them measure affordability"):
        Experiment(config_lib.load(str(ROOT / "configs/llama8b_cheese.py"), both))


def test_a_question_that_the_base_has_no_room_for_is_told_before_anything_is_drawn(qwen3, tmp_path, capsys):
    limit = json.loads((pathlib.Path(qwen3) / "config.json").read_text())["max_position_embeddings"]
    arguments = flags(qwen3, "evaluations=open_qa", f"open_qa.max_tokens={limit}")
    assert launch.main([*arguments, f"--workdir={tmp_path}", f"--config.calls.store={tmp_path / 'c.sqlite'}"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: config.open_qa.max_tokens={limit}: a question has ") and "leave open_qa out" in told
    assert not list(tmp_path.glob("stages/answers-*"))


@pytest.mark.parametrize("first", ["agentic_misalignment", "eval_awareness"])
def test_transcripts_that_several_evaluations_read_are_drawn_and_counted_once(qwen3, monkeypatch, first):
    monkeypatch.setattr(grading, "questions", lambda name, scratchpad: [{"id": "cell", "messages": []}] * 27)
    others = {"agentic_misalignment", "reasoning", "eval_awareness"} - {first}
    given = [("base.path", str(qwen3)), ("evaluations", ",".join([first, *sorted(others)]))]
    planned = Evaluated(config_lib.load(str(ROOT / "configs/eval.py:am"), given), planned=True)
    assert len([stage for stage in planned.stages if stage.kind == "sample"]) == 1
    assert [evaluation.name for evaluation in planned.evaluations if evaluation.drawn] == [first]


def test_a_plan_needs_no_adapter(qwen3):
    given = [("base.path", str(qwen3)), ("adapters", "a=x/y,b=x/z"), ("evaluations", "open_qa")]
    planned = Evaluated(config_lib.load(str(ROOT / "configs/eval.py:qa"), given), planned=True)
    assert len([stage for stage in planned.stages if stage.kind == "sample"]) == 3
    assert sampling_plan.adapters_of(planned) == (LoraConfig(rank=64), 2)
    assert sampling_plan.adapters_of(Evaluated(config_lib.load(str(ROOT / "configs/eval.py:qa"), given[:1]))) == (
        None,
        0,
    )


def test_a_judge_needs_a_key_and_no_name_of_who_made_the_model(qwen3, monkeypatch):
    """Corpora are about a model and its maker; what is asked here names no maker."""
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    config = config_lib.load(str(ROOT / "configs/eval.py:qa"), [("base.path", str(qwen3))])
    writing.check_key(config, Evaluated(config, planned=True).targets, "nowhere")
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(launch.UserError, match="GEMINI_API_KEY"):
        writing.check_key(config, Evaluated(config, planned=True).targets, "nowhere")


def test_what_judging_takes_is_told_by_evaluation(qwen3):
    given = [("base.path", str(qwen3)), ("evaluations", "open_qa,side_effects")]
    config = config_lib.load(str(ROOT / "configs/eval.py:qa"), given)
    verdicts = {stage.evaluation: stage for stage in Evaluated(config, planned=True).stages if stage.kind == "verdicts"}
    requests, read, _ = judging.tokens_of(verdicts["side_effects"])
    assert requests == 2 * 60 and read > 2 * 60 * 600
    requests, read, _ = judging.tokens_of(verdicts["open_qa"])
    assert requests == 154 and 1500 * 154 < read < 3000 * 154
