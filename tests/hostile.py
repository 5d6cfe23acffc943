"""What users, disks and machines do to the commands, and the lines that answer: `python -m tests.hostile [WORD ...]`.

tests/hostile_cases.py is the table. tests/test_hostile.py runs its rows in one process, as far as they need none of
their own. This command runs every row (whose name has all the words) through the real command, and counts what must
not be: tracebacks, hangs, and other endings than the row says. To add a row, say what is done to a copy of a finished
workdir, or what is given, and how the last line begins and ends ("*" stands for any text).
"""

import concurrent.futures
import glob
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.hostile_cases import CASES, Case, fields

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 120  # more is a hang: the slowest row trains a few steps


def make_done(folder: pathlib.Path) -> None:
    """A workdir of tests/tiny.py in which all stages are done; those after the rows only by their manifests."""
    from msm_jax import config as config_lib
    from msm_jax import launch
    from msm_jax.experiment import build
    from msm_jax.stages import graph
    from msm_jax.storage import files

    assert launch.main(["--config=tests/tiny.py", f"--workdir={folder}", "--mode=show"]) == 0
    tiny = config_lib.load("tests/tiny.py")
    files.write_json(folder / "config.json", config_lib.to_dict(tiny))
    for stage, done, _ in graph.status([build.Experiment(tiny).report], folder):
        if not done:
            about = {"key": stage.key, "kind": stage.kind, "name": stage.name, "params": dict(stage.params)}
            stage.folder(folder).mkdir()
            (stage.folder(folder) / "manifest.json").write_text(json.dumps(about | {"summary": {}, "seconds": 1.0}))
            for name in ("model.json", "report.json"):
                (stage.folder(folder) / name).write_text("{}")


def prepare(case: Case, done: pathlib.Path, tmp: pathlib.Path) -> list[str]:
    """Sets the stage for a case in `tmp`. Returns the arguments of its command."""
    workdir = tmp / "w"
    shutil.copytree(done, workdir)
    for name, text in case.files.items():
        (tmp / name).parent.mkdir(exist_ok=True)
        (tmp / name).write_text(text)
    case.damage(workdir)
    first = [] if case.command == "convert" else ["--config=tests/tiny.py", f"--workdir={workdir}"]
    arguments = shlex.split(case.arguments.format(w=workdir, tmp=tmp))
    return [*first, *(re.sub(r"/\S*\*", lambda found: glob.glob(found[0])[0], argument) for argument in arguments)]


def wrong(case: Case, status: int, out: str, err: str, tmp: pathlib.Path) -> str | None:
    """What is not as the case says; None if all is."""
    lines = (err if case.status else out).splitlines() or [""]
    wanted = ("error: " if case.status == 2 else "") + case.line.format(w=tmp / "w", tmp=tmp)
    if status != case.status:
        return f"status {status}, not {case.status}; {(err.splitlines() or [''])[-1]}"
    if not re.fullmatch(".*".join(map(re.escape, wanted.split("*"))), lines[-1]):
        return f"said:   {lines[-1]}\n  wanted: {wanted}"
    if case.status and "configuration\n" in out:
        return "the configuration is printed before the mistake is told"
    if case.absent and pathlib.Path(case.absent.format(w=tmp / "w", tmp=tmp)).exists():
        return f"{case.absent} was left"
    return None


def run(case: Case, done: pathlib.Path) -> str | None:
    """The case by the real command. Returns what is wrong, which begins with "traceback" or "hang" if it is that."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        tmp = pathlib.Path(folder)
        command = shlex.join([sys.executable, "-m", f"msm_jax.{case.command}", *prepare(case, done, tmp)])
        line = (case.shell or "{command}").format(command=command, w=tmp / "w", tmp=tmp)
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment.pop("XLA_FLAGS", None)
        # A group of its own, so that nothing of a hang is left.
        process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "hang"
        died = not 0 <= process.returncode <= 143 and process.returncode != case.status
        if "Traceback (most recent call last)" in err or died:
            return f"traceback: {(err.splitlines() or [''])[-1]}"
        return wrong(case, process.returncode, out, err, tmp)


def main(words: list[str]) -> int:
    """Returns 0 if every case ended as it says."""
    # A shell may have what it starts in the background ignore Ctrl-C, and so what that starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = [case for case in [*CASES, *fields()] if all(word in case.name for word in words)]
    start, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        done, environment = pathlib.Path(folder, "w"), os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "msm_jax.launch", "--config=tests/tiny.py", f"--workdir={done}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment)
        for case, problem in zip(cases, pool.map(lambda case: run(case, done), cases), strict=True):
            if problem:
                found.append(problem)
                print(f"{case.name}\n  {problem}", flush=True)
    tracebacks, hangs = (sum(problem.startswith(kind) for problem in found) for kind in ("traceback", "hang"))
    print(
        f"{len(cases)} cases in {time.monotonic() - start:.0f} s: {tracebacks} tracebacks, {hangs} hangs, "
        f"{len(found) - tracebacks - hangs} other endings than expected"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
