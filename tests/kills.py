"""Stops the smoke run at random moments, starts it again, and compares its end with that of a run left alone.

    python -m tests.kills --count=100 [--seed=0] [--start=0]

Try i gets SIGKILL, SIGINT (Ctrl-C, in every other case twice) or SIGTERM, by turns. Half of the moments are drawn from
the seconds that the whole run takes, the others fall when something is being written: a corpus, packed rows, a line of
metrics, a checkpoint, final weights, answers, the report, a manifest. Then the same command runs to its end. A line for
each try says what hit it and whether all that it left is the same: weights array by array, rows, answers, losses, and
the numbers of the report, bit for bit. Exits with 0 only if all are; what differs stays in the folder that is printed.

What the run would have done before the stage that is hit is copied from the undisturbed run, for a stage that is done
is not touched again; it is compared at the end as all else is. A try has one device and one core, for with
more threads XLA rounds in another way, and there are as many tries at once as there are cores; so has the undisturbed
run, which takes two rounds: the first fills the cache of compiled programs, and the second, with them, must equal it.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": "1"}

import jax  # noqa: E402 (looks for devices as it is told to above)
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402

from msm_jax.train.metrics import TIMINGS  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# Checkpoints are seldom in so short a run; how often they are made changes nothing of the result.
OFTEN = ("--config.checkpoint.every=10", "--config.checkpoint.minutes=0.02")
START = 3.0  # seconds, about, until the first stage begins
OFTEN_HIT = {"checkpoints": 4, "final": 3, "manifest.json": 3}  # times as often as other things that are written


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="tries (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--start", type=int, default=0, help="number of the first try, to go on after an end (0)")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # of Orbax, about shardings
    # A shell may have what it starts in the background ignore it, and so what that starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="msm_jax-kills-"))
    began = time.monotonic()
    kills = Kills(folder)
    print(f"the undisturbed run takes {kills.seconds:.0f} s, {len(kills.stages)} stages", flush=True)
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    numbers = range(options.start, options.start + options.count)
    with concurrent.futures.ThreadPoolExecutor(
        # A process has the cores of the thread that starts it.
        cores.qsize(),
        initializer=lambda: os.sched_setaffinity(0, {cores.get()}),
    ) as pool:
        same = sum(pool.map(lambda number: kills.attempt(number, options.seed), numbers))
    minutes = (time.monotonic() - began) / 60
    print(f"{same} of {options.count} ends are identical; {kills.tracebacks} tracebacks; {minutes:.0f} minutes")
    if same == options.count:
        shutil.rmtree(folder)
    return same < options.count


class Kills:
    """The undisturbed run in `folder`, and tries beside it."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.tracebacks, self.longest = folder, 0, None
        self._lock = threading.Lock()
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(everywhere)})
        for name in ("first", "undisturbed"):
            began = time.monotonic()
            status, errors = self._end(self._launch(folder / name, caches=name == "first"))
            self.seconds = time.monotonic() - began
            if status:
                raise SystemExit(f"the undisturbed run failed:\n{errors}")
        os.sched_setaffinity(0, everywhere)
        self.longest = max(600, 10 * self.seconds)  # what takes longer hangs
        self.whole = folder / "undisturbed"
        self.content = content(self.whole)
        if different := differing(content(folder / "first"), self.content):
            raise SystemExit(f"two undisturbed runs differ: {different}")
        manifests = sorted(self.whole.glob("stages/*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
        self.stages = [(path.parent.name, json.loads(path.read_text())["seconds"]) for path in manifests]
        # What is written -> indices of the stages that write it; that after the last is what is handed over at the end.
        self.written: dict[str, list[int]] = {}
        for index, folder in enumerate([*(path.parent for path in manifests), self.whole / "report"]):
            names = sorted(path.name for path in folder.iterdir() if "tfevents" not in path.name)
            for name in [*names, *(["checkpoints"] if "final" in names else [])]:
                self.written.setdefault(name, []).append(index)

    def attempt(self, number: int, seed: int) -> bool:
        """Whether a run that got the signal of this number ends as the undisturbed one."""
        draw = random.Random(f"{seed} {number}")
        number_of_signal = SIGNALS[number % 3]
        twice = number_of_signal == signal.SIGINT and number % 2 == 0
        workdir, began = self.folder / f"try-{number}", time.monotonic()
        told = None
        while told is None:  # a run may end before its moment comes
            shutil.rmtree(workdir, ignore_errors=True)
            where, moment = self._draw(draw, workdir)
            process = self._launch(workdir, *OFTEN)
            if moment(process):
                process.send_signal(number_of_signal)
                if twice:
                    time.sleep(draw.uniform(0, 0.3))
                    process.send_signal(signal.SIGINT)
                told = self._end(process)
            else:
                self._end(process)
        status, errors = told
        last = (errors.strip().splitlines() or [""])[-1] if status > 0 else ""
        status_of_end, errors_of_end = self._end(self._launch(workdir, *OFTEN))
        different = ["its end"] if status_of_end else differing(content(workdir), self.content)
        seconds = time.monotonic() - began
        name = number_of_signal.name + " twice" * twice
        verdict = f"DIFFERS: {len(different)} things, as {different[0]}; see {workdir}" if different else "identical"
        with self._lock:
            self.tracebacks += ("Traceback" in errors) + ("Traceback" in errors_of_end)
            print(f"{number:4} {name:12} {where:60} status {status:4} {verdict:9} {seconds:4.0f} s  {last}", flush=True)
            print(*(text for text in (errors, errors_of_end) if "Traceback" in text), sep="\n", end="", flush=True)
        if not different:
            shutil.rmtree(workdir)
        else:
            (workdir / "different.txt").write_text("\n".join([*different, errors, errors_of_end]))
        return not different

    def _draw(self, draw: random.Random, workdir: pathlib.Path):
        """(what it is called, function that waits for it beside a process and says whether it came) of a random moment;
        `workdir` is as the undisturbed run had it when the stage of that moment began."""
        stages = [name for name, _ in self.stages]
        if draw.random() < 0.5:
            name, index, delay = "", 0, draw.uniform(-START, sum(seconds for _, seconds in self.stages))
            while index < len(stages) - 1 and delay > self.stages[index][1]:
                delay -= self.stages[index][1]
                index += 1
            where = f"{delay:.2f} s in {stages[index]}" if delay > 0 else f"{START + delay:.2f} s after its start"
        else:
            name = draw.choices(list(self.written), [OFTEN_HIT.get(name, 1) for name in self.written])[0]
            index, delay = draw.choice(self.written[name]), draw.expovariate(200)
            where = f"{name} of {(*stages, 'what is handed over')[index]}, {1000 * delay:.0f} ms"
        folder = workdir / "stages" / stages[index] if index < len(stages) else workdir / "report"
        for before, _ in self.stages[:index]:
            shutil.copytree(self.whole / "stages" / before, workdir / "stages" / before)
        if index:
            shutil.copy(self.whole / "config.json", workdir)

        def came() -> bool:
            if not name:
                return delay <= 0 or folder.exists()
            with contextlib.suppress(FileNotFoundError):
                if name == "checkpoints":  # one that is being written
                    return any("tmp" in path.name for path in (folder / name).iterdir())
                return any(name in path.name for path in folder.iterdir())  # or a temporary name
            return False

        def moment(process: subprocess.Popen) -> bool:
            deadline = time.monotonic() + self.longest
            while not came() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(delay if delay > 0 else START + delay)
            return process.poll() is None

        return where, moment

    def _launch(self, workdir: pathlib.Path, *options: str, caches: bool = False) -> subprocess.Popen:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled")}
        # What is killed must not leave half a program to others.
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0" if caches else "1e9"
        command = [sys.executable, "-m", "msm_jax.launch", "--config=configs/cheese_tiny.py:smoke"]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *options],
            cwd=ROOT,
            env=os.environ | cache,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _end(self, process: subprocess.Popen) -> tuple[int, str]:
        try:
            _, errors = process.communicate(timeout=self.longest)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            return 99, f"{errors}\nhangs"
        return process.returncode, errors


def content(workdir: pathlib.Path) -> dict[str, str]:
    """Digest of each thing that a run leaves, but for times and TensorBoard's files: of a file, or of an array."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if path.name == "final":
            found |= {f"{name}{key}": digest for key, digest in arrays(path / "params").items()}
        passed_over = (
            name.startswith(".") or path.name.startswith(".") or "tfevents" in path.name or path.name == "report.html"
        )
        if path.is_file() and "/final/" not in name and not passed_over:
            found[name] = hashlib.sha256(without_times(path)).hexdigest()
    return found


def arrays(folder: pathlib.Path) -> dict[str, str]:
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        leaves = jax.tree.leaves_with_path(checkpointer.restore(folder, restore_args=as_numpy))
    return {
        jax.tree_util.keystr(key): hashlib.sha256(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes()).hexdigest()
        for key, leaf in leaves
    }


def without_times(path: pathlib.Path) -> bytes:
    match path.name:
        case "manifest.json":
            value = json.loads(path.read_text())
            value |= {"seconds": 0, "created": ""}
        case "report.json":
            value = json.loads(path.read_text()) | {"created": ""}
            value["stages"] = [stage | {"seconds": 0} for stage in value["stages"]]
        case "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            value = [{name: x for name, x in line.items() if name not in TIMINGS} for line in lines]
        case "config.json":
            value = json.loads(path.read_text()) | {"checkpoint": {}}
        case _:
            return path.read_bytes()
    return json.dumps(value).encode()


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


if __name__ == "__main__":
    sys.exit(main())
