"""Several processes run one experiment: the real launcher, on this machine, with two devices or one for each."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from msm_jax import config as config_lib
from msm_jax.errors import UserError
from msm_jax.experiment import run
from msm_jax.parallel import hosts
from msm_jax.stages import graph
from msm_jax.train.metrics import TIMINGS

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 24
OPTIONS = ["--config.arms=aft", "--config.eval.samples=1", "--config.eval.pairs=1", f"--config.pretrain.steps={STEPS}"]
OPTIONS += ["--config.int8_base=true"]
# Each array is split over all devices. By the clock a checkpoint is due every few steps.
SPLIT = ["--config.mesh.data=1", "--config.mesh.fsdp=-1", "--config.checkpoint.minutes=0.02"]


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def running(commands, **environment):
    """The processes of these commands; none is left running."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(each, cwd=ROOT, env=os.environ | environment, **pipes) for each in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start(workdir, count, *options):
    """`count` launchers with four devices together."""
    command = [sys.executable, "-m", "msm_jax.launch", "--config=tests/tiny.py", f"--workdir={workdir}"]
    command += [*OPTIONS, *options]
    together = [f"--coordinator={free_address()}", f"--processes={count}"]
    commands = [[*command, *together, f"--process={i}"] for i in range(count)] if count > 1 else [command]
    return running(commands, JAX_NUM_CPU_DEVICES=str(4 // count))


def ends(processes, timeout=300):
    """(exit status, stdout, stderr) of each."""
    told = [process.communicate(timeout=timeout) for process in processes]
    return [(process.returncode, *each) for process, each in zip(processes, told, strict=True)]


def until_step(workdir, step):
    """Returns when pretraining has logged `step`."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for path in pathlib.Path(workdir).glob("stages/pretrain-*/metrics.jsonl"):
            if path.read_bytes().count(b"\n") > step:
                return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in five minutes")


def losses(workdir):
    """Name of a training stage -> what each of its steps logged, but for times."""
    return {
        path.parent.name: [
            {name: value for name, value in json.loads(line).items() if name not in TIMINGS}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(pathlib.Path(workdir).glob("stages/*/metrics.jsonl"))
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hosts") / "alone"
    with start(workdir, 1) as processes:
        [(status, _, error)] = ends(processes)
    assert status == 0, error
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A workdir where one of four processes got Ctrl-C, and how they ended."""
    workdir = tmp_path_factory.mktemp("hosts") / "stopped"
    with start(workdir, 4, *SPLIT) as processes:
        until_step(workdir, 2)
        processes[1].send_signal(signal.SIGINT)
        return workdir, ends(processes)


@pytest.fixture(scope="module")
def together(stopped):
    """Where two processes have gone on from there, and how they ended."""
    workdir = shutil.copytree(stopped[0], stopped[0].with_name("together"))
    # Two devices each: programs of several devices that are begun at once wait for each other, and must not be.
    with start(workdir, 2, *SPLIT) as processes:
        return workdir, ends(processes)


def test_ctrl_c_or_sigterm_on_one_process_saves_on_all(stopped):
    _, ended = stopped
    assert [status for status, _, _ in ended] == [143, 130, 143, 143], ended
    line = r"stopped: pretrain: (SIGTERM|Ctrl-C); (\d+) of \d+ steps are done and saved, and step (\d+) is next; the"
    told = [re.search(line, error).groups() for _, _, error in ended]
    assert [name for name, *_ in told] == ["SIGTERM", "Ctrl-C", "SIGTERM", "SIGTERM"]
    [(done, following)] = {(int(done), int(step)) for _, done, step in told}
    assert 2 < done < STEPS and following == done + 1


def test_other_processes_go_on_and_all_losses_are_those_of_one(together, alone):
    workdir, ended = together
    assert [status for status, _, _ in ended] == [0] * 2, ended
    expected, found = losses(alone), losses(workdir)
    assert expected.keys() == found.keys() and len(expected) == 2
    for stage, lines in expected.items():
        assert [line["step"] for line in found[stage]] == [line["step"] for line in lines]
        for line, other in zip(lines, found[stage], strict=True):
            assert line.keys() == other.keys()
            for name in line:
                np.testing.assert_allclose(other[name], line[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_first_process_alone_prints_and_scores_are_those_of_one(together, alone):
    workdir, ended = together
    first, *others = [out for _, out, _ in ended]
    # JAX's library for collectives on CPUs prints that it has begun, from a thread for each device, piece by piece.
    gloo = r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d+|\s"
    assert re.search("^report: ", first, re.MULTILINE) and not any(re.sub(gloo, "", out) for out in others), ended
    scores = [json.loads((folder / "report/report.json").read_text())["scores"] for folder in (alone, workdir)]
    assert len(scores[0]) == len(scores[1]) > 0
    for one, many in zip(*scores, strict=True):
        assert one.keys() == many.keys()
        if one["rate"] is not None:  # a sample that was not understood is none
            np.testing.assert_allclose(one["rate"], many["rate"])


def test_several_processes_draw_what_one_draws(together, alone):
    drawn = []
    for workdir in (alone, together[0]):
        lines = [
            json.loads(line) for path in sorted(workdir.glob("stages/score-*/answers.jsonl")) for line in open(path)
        ]
        drawn.append([text for line in lines for order in line["sampled"]["texts"] for text in order])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 4


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_stops_the_others(stopped, together, killed):
    """After `together`, which has compiled what they run."""
    workdir = shutil.copytree(stopped[0], stopped[0].with_name(f"killed-{killed}"))
    [steps] = [len(lines) for lines in losses(workdir).values()]
    with start(workdir, 2, *SPLIT) as processes:
        until_step(workdir, steps)
        processes[killed].kill()
        began = time.monotonic()
        status, _, error = ends(processes, timeout=150)[1 - killed]
    assert status not in (0, None) and time.monotonic() - began < 120
    # JAX may end a process before it can say a word, and says it in its own.
    assert "error: another process of this run is gone" in error or "likely indicates that another task died" in error


BETWEEN_STAGES = """
import os, signal, sys, time
from msm_jax import cli
from msm_jax.stages import graph
from msm_jax.parallel import hosts

def main():
    index, count = hosts.join(sys.argv[1], 2, int(sys.argv[2]))
    assert hosts.agree("the same") and not hosts.agree(f"process {index}")
    for _ in range(6):  # as a stage that trains asks after each of its steps
        assert not hosts.stop_requested()

    def work(context):
        if context.stage.name == "second":
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3)
        return {}

    first = graph.Stage(graph.Kind.SCORE, "first", {}, {}, work)
    second = graph.Stage(graph.Kind.SCORE, "second", {}, {"first": first}, work)
    third = graph.Stage(graph.Kind.SCORE, "third", {}, {"second": second}, work)
    together = graph.Hosts(index, count, hosts.meeting(), hosts.stop_requested)
    graph.execute([third], sys.argv[3], hosts=together)

status = cli.status_of(main)
# The first is the coordinator: JAX ends who is still there when it leaves.
time.sleep(2 if sys.argv[2] == "0" else 0)
os._exit(status)
"""


def test_sigterm_between_trainings_stops_all(tmp_path):
    address = free_address()
    with running(
        [[sys.executable, "-c", BETWEEN_STAGES, address, str(i), str(tmp_path / "w")] for i in range(2)]
    ) as two:
        ended = ends(two, timeout=120)
    for status, _, error in ended:
        assert status == 143 and "stopped: SIGTERM; 2 of 3 stages are done" in error, ended


def test_processes_with_different_configurations(tmp_path):
    """As from an older checkout on one of them: each would train what the other does not."""
    told = []
    together = graph.Hosts(index=1, count=2, agree=told.append)  # which is no agreement
    for rate in ("1e-3", "2e-3", "2e-3"):
        config = config_lib.load("tests/tiny.py", [("msm.optim.learning_rate", rate)])
        with pytest.raises(UserError, match="the processes of this run have different configurations"):
            run.run(config, str(tmp_path / "w"), hosts=together)
    assert told[0] != told[1] == told[2] and not (tmp_path / "w").exists()


def test_processes_that_do_not_come(tmp_path):
    for flags, message in (
        ([None, 2, 0], "--coordinator, --processes and --process go together"),
        (["127.0.0.1:1", 2, 2], "--process=2: processes are numbered from 0 to --processes - 1 = 1"),
        (["here", 2, 0], "--coordinator=here: give HOST:PORT"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            hosts.join(*flags)


@pytest.mark.parametrize(
    ("reason", "alone"),
    [
        ("distributed.initialize should only be called once.", True),
        ("jax.distributed.initialize() must be called before any JAX calls that ...", True),
        ("Getting metadata['agent-worker-number'] failed for 6 tries", False),
    ],
)
def test_a_pod_that_does_not_find_itself_is_no_single_host(monkeypatch, reason, alone):
    def fails(*_, **__):
        raise RuntimeError(reason)

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    if alone:
        assert hosts.join(None, None, None) == (0, 1)
    else:
        with pytest.raises(UserError, match="could not be found .*metadata.*name them: --coordinator"):
            hosts.join(None, None, None)


class _Device:
    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("sizes", "owners", "shares"),
    [
        ((2, 2, 1), [0, 0, 1, 1], {0: (0, 2), 1: (1, 2)}),
        ((1, 4, 1), [1, 0, 0, 1], {0: (1, 2), 1: (0, 2)}),  # as a TPU's mesh may go about its hosts
        ((1, 2, 2), [0, 0, 1, 1], {0: (0, 2), 1: (1, 2)}),
        ((1, 1, 4), [0, 0, 1, 1], {0: (0, 1), 1: (0, 1)}),  # one row over both hosts
        ((2, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    ],
)
def test_each_host_reads_the_rows_of_its_devices(monkeypatch, sizes, owners, shares):
    devices = np.array([_Device(owner) for owner in owners]).reshape(sizes)
    mesh = type("Mesh", (), {"devices": devices, "shape": dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))})
    for index, share in shares.items():
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        assert hosts.row_share(mesh) == share


def test_rows_that_fall_on_hosts_unevenly():
    devices = np.array([_Device(owner) for owner in (0, 0, 0, 1)]).reshape(1, 4, 1)
    mesh = type("Mesh", (), {"devices": devices, "shape": {"data": 1, "fsdp": 4, "tensor": 1}})
    with pytest.raises(UserError, match="do not fall on 2 hosts in equal shares"):
        hosts.row_share(mesh)
