"""The table of tests/hostile.py in one process; as commands of their own: `python -m tests.hostile`."""

import contextlib
import importlib
import io

import pytest

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


def test_names_are_unique():
    names = [case.name for case in hostile.CASES]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_real_commands(capfd):
    assert hostile.main([]) == 0, capfd.readouterr().out
