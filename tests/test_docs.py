"""Commands in the documents, as far as they cost: what they buy, and for whom."""

import pathlib
import re
import shlex

import pytest

from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.config.settings import Assistant
from msm_jax.experiment.build import Experiment
from msm_jax.stages import generation, writing

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
        assert config.assistant.name != Assistant().name
        assert generation.ask_for_name(config) is None


def estimate():
    """The command whose estimate docs/corpora.md shows, and what it shows of the output."""
    page = (ROOT / "docs/corpora.md").read_text()
    command, shown = re.search(
        r"^    \$ python -m (.*?--mode=show)\n(.*?budget of \S+)\n", page, re.DOTALL | re.MULTILINE
    ).groups()
    return shlex.split(command.replace("\\\n", " ")), shown


def test_the_estimate_that_is_shown_adds_up():
    _, shown = estimate()
    steps = re.findall(r"^ +(\w+) +[\d,]+ requests.* \$([\d.]+)$", shown, re.MULTILINE)
    assert len(steps) > 10 and len({name for name, _ in steps}) == len(steps)
    total = float(re.search(r"in all about \$([\d.]+)", shown)[1])
    assert sum(float(dollars) for _, dollars in steps) == pytest.approx(total, abs=0.005 * len(steps))
    assert f"in place of ${total:.2f}" in " ".join((ROOT / "docs/corpora.md").read_text().split())


@pytest.mark.slow
def test_the_estimate_that_is_shown_is_about_what_the_command_prints(tmp_path, capsys):
    command, shown = estimate()
    assert launch.main([*command[1:], f"--workdir={tmp_path}", f"--config.calls.store={tmp_path}/calls.sqlite"]) == 0
    printed, told = (re.search(r"in all about \$([\d.]+)", text)[1] for text in (capsys.readouterr().out, shown))
    assert float(told) == pytest.approx(float(printed), rel=0.02)


def test_the_run_on_tpus_reads_the_corpora_that_it_says_to_lay_there(monkeypatch, tmp_path):
    (words,) = [words for words in commands("docs/running-on-tpu.md") if "launch/tpu_vm.sh" in words and "--" in words]
    page = " ".join((ROOT / "docs/running-on-tpu.md").read_text().split())
    named = re.search(r"`(data/\S+/)msm.jsonl`, `aft.jsonl`, `aft_cot.jsonl` and `instruction.jsonl`", page)[1]
    config = config_of(words[words.index("--") + 1 :])
    config.specs = [str(ROOT / path) for path in config.specs]
    monkeypatch.chdir(tmp_path)
    pathlib.Path(named).mkdir(parents=True)
    for name in ("msm", "aft", "aft_cot", "instruction"):
        message = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
        pathlib.Path(named, f"{name}.jsonl").write_text('{"text": "t"}' if name == "msm" else message)
    experiment = Experiment(config)
    assert not [stage.name for stage in experiment.stages if writing.is_written(stage)]
    assert {stage.run.keywords["path"] for stage in experiment.corpora.values()} == {
        f"{named}{name}.jsonl" for name in ("msm", "aft", "aft_cot", "instruction")
    }
    # The workers get what git does not ignore.
    assert not re.search(r"^/?data", (ROOT / ".gitignore").read_text(), re.MULTILINE)
