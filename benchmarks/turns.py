"""Sides of a benchmark, each in a process of its own, of which one works while the others wait."""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Worker = subprocess.Popen


def start(command: list[str], environment: Mapping[str, str]) -> Worker:
    """Of a program that calls `serve`, or does the same."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment))


def side_options() -> argparse.Namespace:
    """What `benchmarks.sample` tells the sides in `benchmarks/peers`."""
    parser = argparse.ArgumentParser()
    for name in ("prompts", "samples", "length", "new"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--model", required=True)
    return parser.parse_args()


def in_turns(workers: Mapping[str, Worker], runs: int, uncounted: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The seconds of each side's runs after the first `uncounted` ones, and what each told last.

    Raises: SystemExit if a side ends before it has answered.
    """
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    told: dict[str, Any] = {}
    for run in range(uncounted + runs):
        for side, worker in workers.items():
            worker.stdin.write("run\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"{side} ended with status {worker.wait()}; its messages are above")
            told[side] = json.loads(line)
            if run >= uncounted:
                seconds[side].append(told[side]["seconds"])
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return seconds, told


def serve(run: Callable[[], None], facts: Callable[[], dict[str, Any]]) -> None:
    """Runs once for each line that comes in, and tells how long it took, with `facts`."""
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **facts()}), flush=True)


def process_memory() -> float:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
