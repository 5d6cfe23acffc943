"""Corpora that are paid for: a small Gemini that fails, while the process is killed, runs out of money, or moves on."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from msm_jax import launch
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import server, spec_brain
from tests.experiment.corpus_runs import all_rows_of, flags, rows_of
from tests.gemini_server import KEY

ROOT = pathlib.Path(__file__).parents[2]
WITH_CHATS = {"corpus.msm": 12, "corpus.aft": 10, "documents.types": 1}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "LOCAL_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("calm")
    the_server = server(spec_brain)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("GEMINI_API_KEY", KEY)
        assert launch.main(flags(path, "philosophy", **{"calls.url": the_server.address}, **WITH_CHATS)) == 0
    the_server.stop()
    rows = all_rows_of(path)
    assert {name: len(found) for name, found in rows.items()} == {
        "philosophy-msm": 12,
        "philosophy-aft": 10,
        "philosophy-aft_cot": 10,
    }
    return rows


def test_what_was_paid_for_outlives_the_machine_of_a_bucket(tmp_path, monkeypatch, capsys, undisturbed):
    """A machine stops in the middle, another with empty disks goes on, and then the first again: no reply is paid for
    twice, and each knows the whole account."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    the_server = server(spec_brain)

    def run(machine, budget, *more):
        monkeypatch.setenv("MSM_JAX_CACHE", str(tmp_path / machine / "cache"))
        fields = {"calls.url": the_server.address, "calls.in_flight": 2, "calls.budget": budget}
        arguments = flags(tmp_path / machine, "philosophy", **fields, **WITH_CHATS)
        arguments[1] = "--workdir=memory://paid/run"
        return launch.main([*arguments, *more])

    def account(machine):
        with contextlib.closing(CallStore(tmp_path / machine / "calls.sqlite", "corpus_philosophy")) as store:
            return store.spent()

    try:
        before = 0
        for machine, budget, status in (("a", 0.1, 2), ("b", 0.2, 2), ("a", 5.0, 0)):
            if machine == "b":  # which has no store of its own yet
                assert run(machine, budget, "--mode=show") == 0
                assert f"; ${the_server.dollars:.2f} are paid, of a budget" in capsys.readouterr().out
            assert run(machine, budget) == status and before < the_server.calls
            before = the_server.calls
            assert account(machine).paid == pytest.approx(the_server.dollars) and account(machine).lost == 0
        assert set(the_server.good.values()) == {1}
        shutil.rmtree(tmp_path / "b")
        assert run("b", 5.0) == 0 and the_server.calls == before and set(the_server.good.values()) == {1}
        found = (tmp_path / "b/cache").glob("run-*/datasets/*/*.jsonl")
        assert {path.parent.name: list(map(json.loads, path.open())) for path in found} == undisturbed
    finally:
        the_server.stop()
        fsspec.filesystem("memory").store.clear()


# As `python -m msm_jax.launch`, but for batch jobs that are looked at more often than twice a minute.
LAUNCH = """
import sys
from msm_jax import launch
from msm_jax.llm.batch import BatchCaller
BatchCaller.__init__.__defaults__ = (*BatchCaller.__init__.__defaults__[:-1], 0.05)
sys.exit(launch.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("times", "service"),
    [
        (2, "standard"),
        pytest.param(20, "standard", marks=pytest.mark.slow),
        pytest.param(20, "batch", marks=pytest.mark.slow),
    ],
)
def test_killed_while_the_service_fails_the_corpus_is_the_same(times, service, tmp_path, undisturbed):
    """Both ends: SIGTERM, which waits for the calls under way, and SIGKILL, after which those are asked again."""
    the_server = server(spec_brain, failing=0.2, seed=8, latency=0.05)
    the_server.jobs = ["partial", "expired", "failed", "succeeded"] * 50
    budget = 1.5 if times < 20 else 5.0  # of which calls that are lost hold back the most that they can cost
    fields = {"calls.url": the_server.address, "calls.timeout": 1, "generation.attempts": 12, "calls.budget": budget}
    if service == "batch":  # half the price, and for what jobs leave too
        fields["calls.service"], the_server.price = service, tuple(dollars / 2 for dollars in the_server.price)
    command = [sys.executable, "-c", LAUNCH, *flags(tmp_path, "philosophy", **fields, **WITH_CHATS)]
    environment = os.environ | {"GEMINI_API_KEY": KEY}
    rng, kills, output = random.Random(1), 0, ""
    while True:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if kills < times:
            calls = the_server.calls
            while child.poll() is None and the_server.calls == calls:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            child.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            kills += 1
        output += child.communicate()[0]
        # Between two stages SIGTERM ends it at once.
        assert child.returncode in (0, 143, -signal.SIGTERM, -signal.SIGKILL), output
        if child.returncode == 0:
            break
    the_server.stop()
    assert all_rows_of(tmp_path) == undisturbed
    store = CallStore(tmp_path / "calls.sqlite", "corpus_philosophy")
    spent = store.spent()
    store.close()
    # What was under way at a SIGKILL may have been charged without a reply that anyone could keep.
    assert sum(the_server.good.values()) - len(the_server.good) <= spent.lost
    assert the_server.dollars <= spent.paid + spent.reserved <= budget
    assert KEY not in output
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_second_signal_drops_the_calls_under_way(tmp_path):
    the_server = server(spec_brain, latency=30.0)
    command = [sys.executable, "-m", "msm_jax.launch", *flags(tmp_path, "rules", **{"calls.url": the_server.address})]
    child = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"GEMINI_API_KEY": KEY}, stderr=subprocess.PIPE, text=True
    )
    while the_server.calls == 0:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert "waiting for the calls under way" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=20)
    assert (child.returncode, error.count("\n")) == (130, 1)
    assert "calls under way were dropped" in error
    the_server.stop()


def test_a_budget_that_is_spent_stops_it_and_more_goes_on(tmp_path, monkeypatch, capsys, undisturbed):
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    the_server = server(spec_brain)
    fields = {"calls.url": the_server.address, "generation.attempts": 4, **WITH_CHATS, "corpus.aft": 0}
    assert launch.main(flags(tmp_path, "philosophy", **fields, **{"calls.budget": 0.05})) == 2
    assert "the budget of $0.05 leaves no room for the next call" in capsys.readouterr().err
    assert the_server.dollars <= 0.05
    assert launch.main(flags(tmp_path, "philosophy", **fields)) == 0
    the_server.stop()
    assert rows_of(tmp_path) == undisturbed["philosophy-msm"]
    assert set(the_server.paid.values()) == {1}
    about = json.loads((tmp_path / "run/datasets/philosophy-msm/about.json").read_text())
    assert sum(step["calls"] for step in about["calls"].values()) == sum(the_server.paid.values())
    assert sum(step["dollars"] for step in about["calls"].values()) == pytest.approx(the_server.dollars)


def test_another_model_may_judge(tmp_path, monkeypatch, capsys, undisturbed):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    the_server = server(spec_brain)
    fields = {"calls.url": the_server.address, **WITH_CHATS, "corpus.aft": 0, "generation.judge": "gemini-2.5-pro"}
    assert launch.main(flags(tmp_path, "philosophy", **fields)) == 0
    the_server.stop()
    assert rows_of(tmp_path) == undisturbed["philosophy-msm"]
    about = json.loads((tmp_path / "run/datasets/philosophy-msm/about.json").read_text())
    judged = about["judged"]
    assert (about["model"], judged["model"]) == ("gemini-3-flash-preview", "gemini-2.5-pro")
    assert judged["judged"] == 12
    assert judged["low"] <= judged["rate"] <= judged["high"]
    assert f"unfaithful      {judged['told']}" in capsys.readouterr().out
    claims = [json.loads(line) for line in (tmp_path / "run/datasets/philosophy-msm/claims.jsonl").open()]
    assert sum(len(row["claims"]) for row in claims) == sum(judged["claims"].values())
    store = CallStore(tmp_path / "calls.sqlite", "corpus_philosophy")
    paid = store.spent().paid
    store.close()
    assert sum(step["dollars"] for step in about["calls"].values()) == pytest.approx(paid)
