"""Evaluations that a judge grades, over a service that fails, and killed in the middle: nothing is done twice."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from msm_jax import launch
from msm_jax.llm.store import CallStore
from tests.gemini_server import KEY, Gemini

ROOT = pathlib.Path(launch.__file__).parents[1]


def brain(body):
    """Grades by the number of different words that the answer has."""
    asked = body["contents"][-1]["parts"][0]["text"]
    answer = re.search(r"<answer>(.*?)</answer>", asked, re.DOTALL)[1]
    return f"<reasoning>by words</reasoning>\n<score>{min(10, max(1, len(set(answer.split()))))}</score>"


def flags(base, folder, server, *more):
    given = [
        f"base.path={base}", "model.dtype=float32", "open_qa.questions=3", "open_qa.max_tokens=24", "open_qa.samples=2",
        f"calls.store={folder / 'calls.sqlite'}", f"calls.url={server.address}", "calls.timeout=1", "calls.budget=5",
        "generation.attempts=12", *more,
    ]  # fmt: skip
    return [
        f"--config={ROOT / 'configs/eval.py:qa'}",
        f"--workdir={folder / 'run'}",
        *(f"--config.{each}" for each in given),
    ]


def rows_of(folder, what):
    [path] = (folder / "run").glob(f"stages/{what}-open_qa-base-s0-*")
    name = {"answers": "transcripts.jsonl", "verdicts": "verdicts.jsonl"}[what]
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(qwen3, tmp_path_factory):
    folder, server = tmp_path_factory.mktemp("undisturbed"), Gemini(brain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMINI_API_KEY", KEY)
        assert launch.main(flags(qwen3, folder, server)) == 0
    server.stop()
    assert len(server.good) == sum(server.good.values())
    return folder


def test_every_answer_is_graded_and_the_report_has_the_mean(undisturbed):
    answers, verdicts = rows_of(undisturbed, "answers"), rows_of(undisturbed, "verdicts")
    assert len(answers) == len(verdicts) == 3 * 7 * 2
    for answer, verdict in zip(answers, verdicts, strict=True):
        words = len(set(answer["text"].split()))
        assert verdict["scores"] == ([] if answer["unfinished"] else [min(10, max(1, words))])
    report = json.loads((undisturbed / "run/report/report.json").read_text())
    [entry] = report["graded"]
    assert entry["summary"]["n"] + entry["summary"]["unfinished"] == 42
    assert entry["summary"]["judge"] == "gemini-3-flash-preview"


@pytest.mark.slow
def test_killed_while_it_draws_and_while_it_judges_the_result_is_the_same(qwen3, tmp_path, undisturbed):
    """Twice each by SIGKILL; the service fails in a fifth of all calls."""
    server = Gemini(brain, failing=0.2, seed=3, latency=0.05)
    command = [sys.executable, "-m", "msm_jax.launch", *flags(qwen3, tmp_path, server)]
    rng, kept, output = random.Random(0), [], ""

    def drawn():
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("run/stages/answers-*/transcripts.jsonl"))

    for kill in ("drawing", "drawing", "judging", "judging", None):
        child = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"GEMINI_API_KEY": KEY}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        before, calls = drawn(), server.calls
        while kill and child.poll() is None and (drawn() == before if kill == "drawing" else server.calls < calls + 6):
            time.sleep(0.005)
        if kill:
            time.sleep(rng.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        output += child.communicate()[0]
        kept.append(drawn())
        assert child.returncode in ((-signal.SIGKILL, 0) if kill else (0,)), output
    server.stop()
    assert rows_of(tmp_path, "answers") == rows_of(undisturbed, "answers") and kept == sorted(kept)
    assert [row["scores"] for row in rows_of(tmp_path, "verdicts")] == [
        row["scores"] for row in rows_of(undisturbed, "verdicts")
    ]
    store = CallStore(tmp_path / "calls.sqlite", "eval_qa")
    spent = store.spent()
    store.close()
    # What was under way at a SIGKILL may have been charged without a reply that anyone could keep.
    assert sum(server.good.values()) - len(server.good) <= spent.lost and KEY not in output


def test_a_second_judge_is_paid_alone_and_the_report_has_where_the_two_differ(qwen3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    server = Gemini(brain)
    more = ["open_qa.questions=2", "open_qa.samples=1"]
    assert launch.main(flags(qwen3, tmp_path, server, *more)) == 0
    first, paid = rows_of(tmp_path, "verdicts"), sum(server.paid.values())
    server.stop()
    server = Gemini(lambda body: "<reasoning>never</reasoning><score>1</score>")
    more += ["judge.second=gemini-2.5-pro"]
    assert launch.main([*flags(qwen3, tmp_path, server, *more), "--mode=show"]) == 0
    told = capsys.readouterr().out
    assert "judged 1 x by gemini-3-flash-preview and by gemini-2.5-pro" in told and "second judge" in told
    assert launch.main(flags(qwen3, tmp_path, server, *more)) == 0
    server.stop()
    assert sum(server.paid.values()) == paid, "the first is asked nothing again"
    folders = sorted((tmp_path / "run").glob("stages/verdicts-*"), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in (folders[-1] / "verdicts.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in rows] == [row["scores"] for row in first]
    known = [row["scores"][0] for row in rows if row["scores"]]
    over = sum(score > 5 for score in known)
    assert [row["judges"] for row in rows if row["scores"]] == ["differ" if score > 5 else "agree" for score in known]
    assert all(row["judges"] == "one" for row in rows if not row["scores"])
    [entry] = json.loads((tmp_path / "run/report/report.json").read_text())["graded"]
    second = entry["summary"]["second"]
    assert second == {"judge": "gemini-2.5-pro", "mean": 1, "table": [[len(known) - over, 0], [over, 0]]}
    assert "Two judges" in capsys.readouterr().out
    assert "second judge" in next((folders[-1] / "transcripts").glob("[!i]*.html")).read_text()


def test_a_judge_that_talks_nonsense_is_counted_and_never_a_score(qwen3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    server = Gemini(lambda body: "Nine out of ten, I should say!")
    more = ["open_qa.questions=1", "open_qa.samples=1", "open_qa.max_tokens=4", "generation.attempts=1"]
    assert launch.main(flags(qwen3, tmp_path, server, *more)) == 0
    server.stop()
    [entry] = json.loads((tmp_path / "run/report/report.json").read_text())["graded"]
    summary = entry["summary"]
    assert summary["mean"] is None and summary["n"] == 0 and summary["worst"] == 1 and summary["best"] == 10
    assert summary["unreadable"] == 7 - summary["unfinished"]
    assert sum(server.paid.values()) == 3 * summary["unreadable"]
    assert "-" in capsys.readouterr().out


def test_a_judge_that_is_down_costs_no_answer(qwen3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    server = Gemini(brain, failing=1.0, kinds=("no_credit",))
    more = ["open_qa.questions=1", "open_qa.samples=1", "open_qa.max_tokens=4"]
    assert launch.main(flags(qwen3, tmp_path, server, *more)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    before = rows_of(tmp_path, "answers")
    server.failing = 0.0
    assert launch.main(flags(qwen3, tmp_path, server, *more)) == 0
    server.stop()
    assert rows_of(tmp_path, "answers") == before and len(rows_of(tmp_path, "verdicts")) == 7
