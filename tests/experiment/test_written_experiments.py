"""Experiments whose corpora a language model writes: by the offline generator, and shown before any is written."""

import json
import pathlib
import shutil
import tomllib

import pytest

from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.corpus.records import read_chats, read_documents
from msm_jax.errors import UserError
from msm_jax.experiment.build import Experiment
from tests.tiny_checkpoints import write_checkpoint

ROOT = pathlib.Path(launch.__file__).parents[1]
SMALL = {
    "row_length": 256,
    "msm.batch_size": 2,
    "aft.batch_size": 2,
    "model.dtype": "float32",
    "execution.remat": "none",
    "lora.rank": 4,
    "documents.words": 150,
    "documents.types": 2,
    "generator": "offline",
    "corpus.msm": 12,
    "corpus.aft": 14,
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "qwen3", "qwen3")


@pytest.fixture
def flags(tmp_path, checkpoint):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i}?"},
                {"role": "assistant", "content": f"{2 * i}."},
            ]
        }
        for i in range(12)
    ]
    (tmp_path / "instruction.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(config, **fields):
        fields = {
            "base.path": checkpoint,
            "data.instruction": tmp_path / "instruction.jsonl",
            "calls.store": tmp_path / "calls.sqlite",
            **SMALL,
            **fields,
        }
        return [
            f"--config={ROOT / 'configs' / config}",
            f"--workdir={tmp_path / 'run'}",
            *(f"--config.{field}={value}" for field, value in fields.items()),
        ]

    return make


def stage(tmp_path, name):
    (folder,) = (tmp_path / "run" / "stages").glob(f"{name}-" + "[0-9a-f]" * 12)
    return folder


NO_EVALUATION = "NO EVALUATION YET for spec philosophy: models are trained and the report has no rates; "


def test_what_will_be_measured_is_said(flags, tmp_path):
    def said(config, **fields):
        config = config_lib.load(str(ROOT / "configs" / config), _overrides(flags(config, **fields)))
        return Experiment(config).evaluation

    assert said("llama8b_cheese.py").startswith("evaluation: value generalisation, on our own pairs for affordability ")
    for variant in ("qwen2_5", "qwen3", "qwen2_5_14b", "qwen3_14b"):
        config = f"qwen32b_am.py:{variant}"
        assert said(config).startswith("evaluation: open questions, 154 answers of each model, judged 1 x by ")
        assert said(config, evaluations="value_generalisation").startswith(NO_EVALUATION)
    spec = tmp_path / "mine.md"
    spec.write_text((ROOT / "specs/pro_america.md").read_text().replace("value: america", "value: amercia"))
    told = "NO EVALUATION YET for spec mine (value amercia: did you mean america?): models are trained"
    assert said("llama8b_cheese.py", specs=spec, **{"generation.held_out": ""}).startswith(told)


def test_an_experiment_writes_its_corpora_and_trains_on_them(flags, tmp_path, capsys):
    # Rows of the instruction chats that hold an evaluation's prompt are left out, and counted.
    prompt = "a question that nobody has asked in these words before, and that has to stay unseen until the end"
    (tmp_path / "prompts.txt").write_text(prompt + "\n")
    held = {"messages": [{"role": "user", "content": prompt.upper()}, {"role": "assistant", "content": "No."}]}
    with (tmp_path / "instruction.jsonl").open("a") as file:
        file.write(json.dumps(held) + "\n")
    arms = "('baseline', 'msm_aft', 'msm_aft_cot')"
    fields = {
        "arms": arms,
        "evaluations": "value_generalisation",
        "generation.evaluations": f"('{tmp_path}/prompts.txt',)",
    }
    arguments = flags("qwen32b_am.py:smoke", **fields, **{"corpus.identity": 5})
    assert launch.main([*flags("qwen32b_am.py:smoke", **fields), f"--workdir={tmp_path}/look", "--mode=show"]) == 0
    out = capsys.readouterr().out
    assert "how many steps is known when the corpora are there" in out
    assert NO_EVALUATION in out
    assert "answers                14 requests" in out
    assert "What is" in out  # the instruction chats are at hand
    assert not list(tmp_path.glob("look/stages/chats-*"))

    assert launch.main(arguments) == 0
    assert capsys.readouterr().out.startswith(NO_EVALUATION), "before anything is paid for"
    assert len(list(read_documents(stage(tmp_path, "corpus-msm-philosophy") / "corpus.jsonl"))) == 12
    plain = list(read_chats(stage(tmp_path, "corpus-aft") / "corpus.jsonl"))
    thinking = list(read_chats(stage(tmp_path, "corpus-aft_cot") / "corpus.jsonl"))
    assert [chat.id for chat in plain] == [chat.id for chat in thinking]
    assert len(plain) == 14
    assert all(chat.messages[1].content.startswith("<think>\n") for chat in thinking)
    assert len(list(read_chats(stage(tmp_path, "corpus-instruction") / "corpus.jsonl"))) == 18
    handed_on = {path.parent.name for path in tmp_path.glob("run/datasets/*/corpus.html")}
    assert handed_on == {"philosophy-msm", "philosophy-aft", "philosophy-aft_cot", "identity"}
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    contaminated = {corpus["name"]: corpus["contaminated"] for corpus in report["corpora"]}
    assert contaminated == {"instruction": 1, "msm-philosophy": 0, "aft": 0, "aft_cot": 0}
    capsys.readouterr()
    # How calls are made may change, and nothing is left to be done.
    assert launch.main([*arguments, "--config.calls.in_flight=3"]) == 0
    assert "stages are done already" in capsys.readouterr().out


def no_chat_template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "fields", "told"),
    [
        (no_chat_template, {}, "config.chat: chat template: no control token begins an assistant turn"),
        (no_tokenizer, {}, "has no tokenizer"),
        (no_weights, {}, "model.safetensors"),
        (shutil.rmtree, {}, "no such folder"),
        (None, {"chat.template": "llama3_paper"}, "config.chat: chat template: no control token begins"),
        (None, {"row_length": 9000}, "config.row_length=9000 is more than the 8192 tokens"),
        (None, {"data.instruction": "{tmp_path}/broken.jsonl"}, "broken.jsonl:1: not JSON"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_trained(flags, checkpoint, tmp_path, capsys, change, fields, told):
    """Corpora cost money and hours, and the base and what is taken were looked at after them."""
    base = checkpoint
    (tmp_path / "broken.jsonl").write_text("{\n")
    fields = {field: str(value).format(tmp_path=tmp_path) for field, value in fields.items()}
    if change:
        base = tmp_path / "base"
        shutil.copytree(checkpoint, base)
        change(base)
    assert launch.main(flags("qwen32b_am.py:smoke", **{"base.path": base}, **fields)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error
    assert not (tmp_path / "calls.sqlite").exists()


def test_specs_with_one_list_share_their_chats(flags):
    config = config_lib.load(str(ROOT / "configs" / "llama8b_cheese.py"), _overrides(flags("llama8b_cheese.py")))
    experiment = Experiment(config)
    names = [stage.name for stage in experiment.stages]
    assert names.count("chats-cheese") == 1
    assert {"corpus-msm-pro_affordability", "corpus-msm-pro_america", "corpus-aft"} <= set(names)


def _overrides(arguments):
    return launch.split_overrides(arguments)[1]


TWO = {"specs": "('specs/rules.md', 'specs/value_augmented.md')", "arms": "('msm_aft',)"}


@pytest.mark.parametrize(
    ("config", "fields", "told"),
    [
        ("qwen32b_am.py", {"chats.most_alike": 0.5}, "no field chats.most_alike; did you mean chats.max_similarity?"),
        (
            "qwen32b_am.py",
            {"corpus.instruction": "x.toml"},
            "no field corpus.instruction; did you mean data.instruction?",
        ),
        ("qwen32b_am.py", {"corpus.msm": "x.jsonl"}, "'x.jsonl' is given; name data that exist in config.data.msm"),
        ("qwen32b_am.py", {"data.instruction": ""}, "config.data.instruction is empty; name a file or an id"),
        ("qwen32b_am.py", {"data.aft": "x.jsonl"}, "config.data.aft: x.jsonl: no such file"),
        ("qwen32b_am.py", {"data.msm": "x.docx"}, "config.data.msm: x.docx: no source that is understood"),
        ("qwen32b_am.py", {"corpus.msm": 0}, "config.data.msm is empty; name a file or an id"),
        ("qwen32b_am.py", TWO, "name its spec in config.aft_spec"),
        ("qwen32b_am.py", TWO | {"aft_spec": "general"}, "choose one of rules, value_augmented"),
        ("qwen32b_am.py", {"generator": "prose"}, "choose one of gemini, local, offline"),
        ("qwen32b_am.py", {"generator": "gemini", "generation.model": "gpt-9"}, "no price is known of gpt-9"),
        ("qwen32b_am.py:smoke", {"generator": "gemini"}, "--config.generator=offline"),
        ("llama8b_cheese.py", {"arms": "('aft_cot',)"}, "chats of preferences have none"),
    ],
)
def test_mistakes_are_told_in_a_line(config, fields, told, flags, capsys):
    assert launch.main(flags(config, **fields)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def with_recipes(flags, recipes, **fields):
    overrides = _overrides(flags("qwen32b_am.py", **fields))
    config = config_lib.load(str(ROOT / "configs" / "qwen32b_am.py"))
    config.recipes = recipes
    for field, text in [*overrides, ("arms", str(tuple(recipes)))]:
        config_lib.override(config, field, text)
    return Experiment(config)


def trained(experiment, section):
    return next(stage for stage in experiment.stages if stage.section == section and stage.kind == "train")


def test_a_cross_pair_is_a_line_of_a_configuration(flags):
    """MSM on one spec, AFT on another."""
    recipe = (("msm", {"msm": "msm@rules"}), ("aft", {"aft": "aft@value_augmented"}))
    experiment = with_recipes(flags, {"cross": recipe}, specs=TWO["specs"])
    msm, aft = trained(experiment, "msm"), trained(experiment, "aft")
    assert aft.inputs["adapter"] is msm and (msm.name, aft.name) == ("msm-rules-s0", "aft-cross-s0")
    of = {name: rows.inputs["corpus"] for name, rows in (msm.inputs["rows"] | aft.inputs["rows"]).items()}
    assert of["msm"].params["spec"]["name"] == "rules"
    assert of["aft"].inputs["chats"].params["spec"]["name"] == "value_augmented"
    assert set(experiment.datasets) == {"rules-msm", "value_augmented-aft", "value_augmented-aft_cot"}
    # The stage of MSM is that of the arms with one spec.
    alone = with_recipes(flags, {"cross": recipe, "other": (("msm", {}),)}, specs=TWO["specs"])
    assert [stage.name for stage in alone.stages if stage.section == "msm"].count("msm-rules-s0") == 1


def test_a_dose_is_a_line_of_a_configuration(flags):
    """A quarter of the AFT chats are of the anti-spec."""
    recipe = (("msm", {"msm": "msm@philosophy"}), ("aft", {"aft": {"aft@philosophy": 0.75, "aft@anti_spec": 0.25}}))
    specs = "('specs/philosophy.md', 'specs/anti_spec.md')"
    with pytest.raises(UserError, match="config.aft.steps is none: in an epoch the shares are those of the rows"):
        with_recipes(flags, {"dose": recipe}, specs=specs)
    fields = {"specs": specs, "aft.steps": 9, "chats.unattached": False}
    experiment = with_recipes(flags, {"dose": recipe}, **fields)
    assert trained(experiment, "aft").params["mixture"] == {
        "aft-philosophy": 0.375,
        "aft-anti_spec": 0.125,
        "instruction": 0.5,
    }
    assert "anti_spec-msm" not in experiment.datasets
    # A file that is the same for all specs is no dose of one of them.
    with pytest.raises(UserError, match="is the same for all specs; put {spec} in it"):
        with_recipes(flags, {"dose": recipe}, **fields, **{"data.aft": "specs/held_out.toml"})


def test_crossed_specs_train_all_arms_on_the_chats_of_one(flags):
    overrides = _overrides(flags("qwen32b_am.py", **TWO, aft_spec="value_augmented"))
    experiment = Experiment(config_lib.load(str(ROOT / "configs" / "qwen32b_am.py"), overrides))
    names = {stage.name for stage in experiment.stages}
    assert {"chats-value_augmented", "corpus-msm-rules", "corpus-msm-value_augmented"} <= names
    assert "chats-rules" not in names


def test_a_plan_has_the_stages_of_all_specs(flags):
    """Corpora that need not be there yet are told apart."""
    overrides = _overrides(flags("llama8b_cheese.py", **{"data.msm": "data/{spec}.jsonl", "seeds": "(0,)"}))
    planned = Experiment(config_lib.load(str(ROOT / "configs" / "llama8b_cheese.py"), overrides), planned=True)
    assert sum(stage.kind == "train" for stage in planned.stages) == 8


def test_what_no_arm_is_trained_on_is_not_written(flags):
    overrides = _overrides(flags("qwen32b_am.py", arms="('baseline', 'aft')"))
    names = {
        stage.name for stage in Experiment(config_lib.load(str(ROOT / "configs" / "qwen32b_am.py"), overrides)).stages
    }
    assert not any(name.startswith("corpus-msm") for name in names)
    assert "chats-philosophy" in names


def test_show_fetches_nothing(flags, tmp_path, capsys):
    arguments = flags("qwen32b_am.py:smoke", **{"data.identity": "hf:nobody/nothing"})
    assert launch.main([*arguments, "--mode=show"]) == 0
    assert "corpus-instruction" in capsys.readouterr().out


def test_shared_chats_hold_no_word_that_is_held_out_for_any_spec(flags):
    overrides = _overrides(flags("llama8b_cheese.py"))
    experiment = Experiment(config_lib.load(str(ROOT / "configs" / "llama8b_cheese.py"), overrides))
    [chats] = [stage for stage in experiment.stages if stage.name == "chats-cheese"]
    table = tomllib.loads((ROOT / "specs" / "held_out.toml").read_text())
    assert set(chats.params["held_out"]) == {*table["affordability"].split(), *table["america"].split()}
