"""Commands in the documents, as far as they cost: what they buy, and for whom."""

import pathlib
import re
import shlex

import pytest

from msm_jax import config as config_lib
from msm_jax import corpus_stages, generation, launch
from msm_jax.experiment import Experiment

ROOT = pathlib.Path(launch.__file__).parents[1]


def commands(page):
    """The command lines of its bash blocks, in words."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def config_of(words):
    flags, overrides = launch.split_overrides(words)
    (file,) = [flag.removeprefix("--config=") for flag in flags if flag.startswith("--config=")]
    return config_lib.load(file, overrides)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_corpora_that_are_paid_for_are_about_a_model_with_a_name():
    written = [
        words for words in commands("docs/corpora.md") if "msm_jax.launch" in words and "--mode=show" not in words
    ]
    assert len(written) >= 3
    for words in written:
        config = config_of(words[words.index("msm_jax.launch") + 1 :])
        assert config.assistant.name != generation.DEFAULT_ASSISTANT["name"]
        assert generation.ask_for_name(config) is None


def test_the_price_of_the_paper_s_numbers_is_the_sum_of_its_steps():
    page = (ROOT / "docs/corpora.md").read_text()
    printed = page[page.index("    to be asked, if") : page.index("in all about $")]
    of_stages = [stage.splitlines() for stage in re.split(r"\n      (?=\S)", printed)[1:]]
    steps = [re.findall(r"^ +(\w+) +[\d,]+ requests", "\n".join(stage), re.MULTILINE) for stage in of_stages]
    assert len(steps) == 3 and all(len(names) == len(set(names)) for names in steps)
    dollars = sum(float(cost) for cost in re.findall(r"\$([\d.]+)\n", printed))
    (total,) = re.findall(r"in all about \$([\d.]+)", page)
    assert dollars == pytest.approx(float(total), abs=0.1)
    assert page.count(f"${total}") == 2  # and beside the price of a revision


def test_the_run_on_tpus_reads_the_corpora_that_it_says_to_lay_there(monkeypatch, tmp_path):
    (words,) = [words for words in commands("docs/running-on-tpu.md") if "launch/tpu_vm.sh" in words and "--" in words]
    page = (ROOT / "docs/running-on-tpu.md").read_text()
    named = re.search(r"`(data/\S+/)msm.jsonl`, `aft.jsonl`, `aft_cot.jsonl` and `instruction.jsonl`", page)[1]
    config = config_of(words[words.index("--") + 1 :])
    config.specs = [str(ROOT / path) for path in config.specs]
    monkeypatch.chdir(tmp_path)
    pathlib.Path(named).mkdir(parents=True)
    for name in ("msm", "aft", "aft_cot", "instruction"):
        message = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
        pathlib.Path(named, f"{name}.jsonl").write_text('{"text": "t"}' if name == "msm" else message)
    experiment = Experiment(config)
    assert not [stage.name for stage in experiment.stages if corpus_stages.is_written(stage)]
    assert {stage.run.keywords["path"] for stage in experiment.corpora.values()} == {
        f"{named}{name}.jsonl" for name in ("msm", "aft", "aft_cot", "instruction")
    }
    # The workers get what git does not ignore.
    assert not re.search(r"^/?data", (ROOT / ".gitignore").read_text(), re.MULTILINE)
