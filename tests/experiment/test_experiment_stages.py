"""Which stages an experiment has, and which of them a field of its configuration changes."""

import collections
import pathlib

import pytest

from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.experiment.build import Experiment

ROOT = pathlib.Path(launch.__file__).parents[1]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def experiment(**overrides):
    fields = [(field.replace("__", "."), text) for field, text in overrides.items()]
    return Experiment(config_lib.load("tests/tiny.py", fields))


MODELS = {"pretrain", "msm", "instruct", "aft", "score", "control", "report"}
CASES = [
    ({"log__every": "5", "checkpoint__keep": "1", "mesh__fsdp": "2"}, set()),
    ({"name": "other"}, {"report"}),
    ({"eval__samples": "2"}, {"score", "report"}),
    ({"eval__control_agents": "2"}, {"control", "report"}),
    ({"seeds": "(0, 1)"}, {"report"}),
    ({"aft__steps": "6"}, {"instruct", "aft", "score", "report"}),
    ({"lora__rank": "2"}, {"msm", "instruct", "aft", "score", "report"}),
    ({"base_seed": "1"}, MODELS),
    ({"pretrain__optim__beta2": "0.9"}, MODELS),
    ({"row_length": "32"}, {"rows"} | MODELS),
    ({"tokenizer__vocab_size": "500"}, {"tokenizer", "rows"} | MODELS),
    ({"chat__system": "('System: ', '')"}, {"rows"} | MODELS),
    ({"world__seed": "1"}, {"corpus", "items", "tokenizer", "rows"} | MODELS),
]


@pytest.mark.parametrize(("overrides", "changed"), CASES)
def test_a_field_changes_the_stages_that_depend_on_it(overrides, changed):
    before = {stage.name: stage.key for stage in experiment().stages}
    after = {stage.name: stage.key for stage in experiment(**overrides).stages}
    assert {name.split("-")[0] for name in before if before[name] != after[name]} == changed


def test_midtraining_changes_the_arms_that_have_it():
    before = {stage.name: stage.key for stage in experiment().stages}
    after = {stage.name: stage.key for stage in experiment(msm__steps="5").stages}
    kept = {"baseline", "aft-aft", "score-aft", "pretrain", "control", "corpus", "rows", "tokenizer", "items"}
    for name in before:
        assert (before[name] == after[name]) == any(word in name for word in kept), name


def test_one_corpus_is_written_anew():
    before = {stage.name: stage.key for stage in experiment().stages}
    after = {stage.name: stage.key for stage in experiment(corpus__aft="37").stages}
    same = {name for name in before if before[name] == after[name]}
    assert same == {name for name in before if name == "items" or name.startswith("corpus-")} - {"corpus-aft"}


def test_seeds_share_the_base_alone():
    counts = collections.Counter(
        stage.name.split("-")[0] for stage in experiment(seeds="(0, 1, 5)").stages if stage.kind == "train"
    )
    assert counts == {"pretrain": 1, "msm": 6, "instruct": 9, "aft": 9}


def test_arms_without_midtraining_need_no_spec_of_their_own():
    names = {stage.name for stage in experiment(arms="aft").stages if stage.kind == "train"}
    assert names == {"pretrain", "aft-aft-s0"}


@pytest.mark.parametrize(
    "name",
    [
        *("cheese_tiny.py", "cheese_tiny.py:smoke", "llama8b_cheese.py", "llama8b_cheese.py:smoke"),
        *("smollm_cheese.py", "smollm_cheese.py:smoke", "qwen32b_am.py", "qwen32b_am.py:smoke", "qwen32b_am.py:qwen3"),
        *("qwen32b_am.py:qwen2_5", "qwen32b_am.py:qwen2_5_14b", "qwen32b_am.py:qwen3_14b"),
    ],
)
def test_every_configuration_makes_an_experiment(name, tmp_path):
    config = config_lib.load(str(ROOT / "configs" / name))
    if config.kind == "checkpoint":
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
        for source in config.data:
            config.data[source] = str(tmp_path / "rows.jsonl")
    made = Experiment(config)
    assert made.config.name
    assert made.stages[-1] is made.report


def test_every_configuration_is_tried_above():
    # Two of them train nothing: test_corpora.py and test_evaluated.py have them.
    files = {path.name for path in ROOT.glob("configs/*.py")} - {"__init__.py", "common.py", "corpus.py", "eval.py"}
    assert files == {"cheese_tiny.py", "llama8b_cheese.py", "qwen32b_am.py", "smollm_cheese.py"}
