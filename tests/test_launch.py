import errno
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

import msm_jax.experiment
from msm_jax import launch
from msm_jax.errors import Interrupted, UserError

ROOT = pathlib.Path(launch.__file__).parents[1]


@pytest.fixture
def toy(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict(dict(kind='microworld', name='toy', a=1))"
    )
    return str(file)


@pytest.fixture
def experiment(monkeypatch):
    """Stands for msm_jax.experiment.run, and notes what it is called with."""
    calls = []
    module = types.ModuleType("msm_jax.experiment.run")
    module.run = lambda config, workdir, store: calls.append(("run", config.to_dict(), workdir, store))
    module.show = lambda config, workdir, store: calls.append(("show", config.to_dict(), workdir, store))
    module.calls = calls
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(msm_jax.experiment, "run", module, raising=False)
    return module


def test_help_is_quick():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "msm_jax.launch", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert time.monotonic() - start < 2
    for text in ("--config FILE[:ARG]", "--workdir", "--mode {run,show,plan}", "--config.aft.steps=60"):
        assert text in done.stdout


def test_import_is_light():
    program = "import sys, msm_jax.launch; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_mistakes_are_one_line_without_jax():
    command = [sys.executable, "-m", "msm_jax.launch", "--config=no/such.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no/such.py: no such config file")
    assert done.stderr.count("\n") == 1


def test_run(toy, experiment):
    assert launch.main([f"--config={toy}"]) == 0
    assert launch.main(["--config", toy, "--config.a=2", "--workdir=w"]) == 0
    assert launch.main(["--config.a", "-3", f"--config={toy}", "--mode=show", "--store=s"]) == 0
    assert experiment.calls == [
        ("run", {"kind": "microworld", "name": "toy", "a": 1}, "runs/toy", ""),
        ("run", {"kind": "microworld", "name": "toy", "a": 2}, "w", ""),
        ("show", {"kind": "microworld", "name": "toy", "a": -3}, "runs/toy", "s"),
    ]


def test_the_last_config_wins(toy, experiment):
    assert launch.main(["--config=configs/no_such.py", f"--config={toy}"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config.a"], "error: --config.a needs a value: --config.a=VALUE"),
        (["--config.a", "--mode=run"], "error: --config.a needs a value: --config.a=VALUE"),
        (["--config.b=1"], "error: config has no field b; --mode=show lists the fields"),
        (["--config.a=x"], "error: config.a expects int, as in 1; 'x' is given"),
        (["--config.name="], "error: {toy}: the configuration has no name; it names the folder of the results"),
        (["--wrkdir=x"], "error: unrecognized arguments: --wrkdir=x; --help shows the usage"),
        (["--work=x"], "error: unrecognized arguments: --work=x; --help shows the usage"),
        (["--mode=fly"], "error: argument --mode: invalid choice: 'fly'"),
    ],
)
def test_mistakes(toy, experiment, capsys, arguments, line):
    assert launch.main([f"--config={toy}", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line.format(toy=toy))
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert experiment.calls == []


def test_no_config(capsys):
    assert launch.main([]) == 2
    assert capsys.readouterr().err == (
        "error: the following arguments are required: --config; --help shows the usage\n"
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("aft.jsonl:3: no messages\nat all"), 2, "error: aft.jsonl:3: no messages at all"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a"),
            2,
            "error: [Errno 28] No space left on device: 'a': free",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "error: [Errno 13] Permission denied: 'runs'"),
        (
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            141,
            "nothing reads the output any more; the same command resumes",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
        (
            Interrupted("msm: SIGTERM; 3 of 5 steps are done and saved"),
            143,
            "stopped: msm: SIGTERM; 3 of 5 steps are done",
        ),
    ],
)
def test_endings(toy, experiment, capsys, error, status, line):
    def run(config, workdir, store):
        raise error

    experiment.run = run
    assert launch.main([f"--config={toy}"]) == status
    captured = capsys.readouterr().err
    assert captured.startswith(line)
    assert captured.count("\n") == 1


def test_show_ends_quietly_when_nobody_reads_on(tmp_path):
    command = [sys.executable, "-m", "msm_jax.launch", "--config=tests/tiny.py", f"--workdir={tmp_path}", "--mode=show"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == -signal.SIGPIPE


def test_show_leaves_the_caller_its_signals(toy, experiment):
    """Else a socket that the other side closed ends the caller without a word, as it did whole test runs."""
    before = signal.getsignal(signal.SIGPIPE)
    assert launch.main([f"--config={toy}", "--mode=show"]) == 0
    assert signal.getsignal(signal.SIGPIPE) == before != signal.SIG_DFL


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "I/O error")])
def test_bugs_keep_their_traceback(toy, experiment, error):
    def run(config, workdir, store):
        raise error

    experiment.run = run
    with pytest.raises(type(error)):
        launch.main([f"--config={toy}"])


def test_overrides_are_taken_out_in_order():
    arguments = ["--config=f", "--config.a=1", "--mode", "show", "--config.b.c", "x=y", "--config.a=b=c"]
    flags, overrides = launch.split_overrides(arguments)
    assert flags == ["--config=f", "--mode", "show"]
    assert overrides == [("a", "1"), ("b.c", "x=y"), ("a", "b=c")]
