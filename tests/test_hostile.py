"""The table of tests/hostile.py in one process; as commands of their own: `python -m tests.hostile`."""

import contextlib
import functools
import importlib
import io

import pytest
from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.errors import UserError
from msm_jax.experiment import run
from tests import hostile


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(hostile.ROOT)
        folder = tmp_path_factory.mktemp("done") / "w"
        hostile.make_done(folder)
        yield folder


@pytest.mark.parametrize("case", [case for case in hostile.CASES if not case.alone], ids=lambda case: case.name)
def test_hostile(case, done, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(hostile.ROOT)
    arguments = hostile.prepare(case, done, tmp_path)
    status = importlib.import_module(f"msm_jax.{case.command}").main(arguments)
    out, err = capsys.readouterr()
    assert hostile.wrong(case, status, out, err, tmp_path) is None


def fields(config, group=""):
    for name, value in config.items():
        yield f"{group}{name}"
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{group}{name}.")


@pytest.mark.parametrize("name", ["tests.tiny", "configs.llama8b_cheese", "configs.corpus"])
def test_a_configuration_that_lacks_any_field(name, monkeypatch):
    """What it can do without does not matter; all else is told by name."""
    monkeypatch.chdir(hostile.ROOT)
    get_config = importlib.import_module(name).get_config
    told = 0
    for field in fields(get_config()):
        config = get_config()
        *groups, leaf = field.split(".")
        with config.unlocked():
            del functools.reduce(lambda group, name: group[name], groups, config)[leaf]
        try:
            with config_lib.lacking_told():
                run.build(config)
        except UserError:
            told += 1
    assert told > 20


def test_names_are_unique():
    names = [case.name for case in hostile.CASES]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_real_commands(capfd):
    assert hostile.main([]) == 0, capfd.readouterr().out
