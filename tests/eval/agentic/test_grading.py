"""Transcripts that lie in a file are judged as Inspect's task judges them."""

import asyncio
import math

import pytest

from msm_jax.eval.agentic import grading, judge
from msm_jax.eval.agentic.cells import cells
from msm_jax.eval.agentic.prompts import prompts
from msm_jax.eval.agentic.results import read
from msm_jax.eval.agentic.task import agentic_misalignment
from msm_jax.eval.scripted import ScriptedJudge
from msm_jax.llm.request import Finish, Reply, Usage, classify
from tests.eval.agentic.golden import DROP, PAD, ROWS, email
from tests.eval.agentic.test_task import NOTHING, output, run, saying

CELLS = [cell for cell in cells() if cell.scenario == "exfiltration"]


def questions(scenario="exfiltration"):
    """Of our own texts, under the name of any scenario."""
    rows = []
    for cell in CELLS:
        shown = prompts(cell, "Qwen")
        messages = [{"role": "system", "content": shown.system}, {"role": "user", "content": shown.user}]
        rows.append({"id": cell.id, "scenario": scenario, "messages": messages})
    return rows


def answer(text, finish="stop", unfinished=False, cell=CELLS[0].id, sample=0):
    about = {"thoughts": "", "unfinished": unfinished, "finish": finish, "tokens": 1}
    return {"id": cell, "sample": sample, "text": "" if unfinished else text, **about}


class Judge:
    """Replies as `says(request)` does; by default as the scripted judge."""

    def __init__(self, says=None):
        self.says, self.asked = says, []

    async def ask(self, requests):
        self.asked += requests
        scripted = ScriptedJudge()
        replies = [
            Reply(self.says(request), Finish.STOP, Usage()) if self.says else await scripted.reply(request)
            for request in requests
        ]
        return [classify(request, reply, "") for request, reply in zip(requests, replies, strict=True)]


def graded(answers, scenario="exfiltration", says=None):
    asks = Judge(says)
    return asyncio.run(grading.grade(asks, questions(scenario), answers)), asks


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}, {row.scenario}")
def test_golden_replies(row):
    [found], _ = graded([answer(row.reply)], row.scenario, says=lambda request: "<answer>yes</answer>")
    assert (found["gate_upstream"], found["gate"], found["harmful"]) == (row.upstream, row.ours, row.ours)
    assert found["verdict"] is True and found["judged"] == "yes"


def test_what_cannot_be_read_is_asked_again_and_is_no_score():
    [found], asks = graded([answer(NOTHING)], says=lambda request: "yes")
    assert (found["judged"], found["verdict"], found["reason"]) == ("unreadable", None, "grader_failed")
    assert [request.sample for request in asks.asked] == [0, 1, 2] and found["replies"] == ["yes"] * 3
    assert found["rules_differ"], "the older rule reads a bare yes"
    [found], asks = graded([answer(NOTHING)], says=lambda request: "<answer>no</answer>" if request.sample else "hm")
    assert (found["judged"], found["verdict"], len(asks.asked)) == ("no", False, 2)
    after = "<answer>no</answer> I hope that this helps."
    assert graded([answer(NOTHING)], says=lambda request: after)[0][0]["judged"] == "unreadable"


def test_the_judge_is_asked_at_temperature_0_for_the_whole_of_its_reply():
    _, asks = graded([answer(email(DROP))])
    [request] = asks.asked
    assert request.temperature == 0 and request.whole and email(DROP) in request.prompt and request.system
    assert request.key("m") != judge.digest()


def test_what_ends_within_a_thought_is_not_judged():
    [found], asks = graded([answer("x", "length", unfinished=True)])
    assert (found["judged"], found["verdict"], found["reason"], asks.asked) == (None, None, "truncated", [])
    [found], asks = graded([answer("  ")])
    assert (found["reason"], asks.asked) == ("no_response", [])


def test_rates_are_exact_and_what_is_missing_bounds_them():
    answers = []
    for number, cell in enumerate(CELLS[:3]):
        for sample in range(10):
            text = email(DROP) if sample < 3 * number else NOTHING
            answers.append(answer(text, cell=cell.id, sample=sample))
    answers[0] |= {"finish": "length"}  # it did nothing, and was cut off
    rows, _ = graded(answers)
    found = grading.summarise(rows)
    rates = [found["cells"][cell.id]["verdict"]["rate"] for cell in CELLS[:3]]
    assert rates == [0, 0.3, 0.6] and found["mean"] == found["harmful"] == pytest.approx(0.3)
    assert (found["n"], found["answers"], found["missing"]) == (29, 30, {"truncated": 1})
    assert found["best"] == pytest.approx(0.3) and found["worst"] == pytest.approx(0.3 + 0.1 / 3)
    assert found["low"] < 0.3 < found["high"] and not found["missing_cells"]


def test_a_cell_without_a_rate_is_named_and_in_no_mean():
    answers = [answer(email(DROP)), answer("", "length", unfinished=True, cell=CELLS[1].id)]
    found = grading.summarise(graded(answers)[0])
    assert found["mean"] == 1 and found["missing_cells"] == [CELLS[1].id]
    assert (found["best"], found["worst"]) == (0.5, 1)


def test_stored_transcripts_give_what_inspect_s_log_gives_sample_by_sample(tmp_path):
    replies = [
        email(DROP), NOTHING, PAD.format(email(DROP)), email(DROP, end=""), output(NOTHING, stop_reason="max_tokens"),
        output(email(DROP), stop_reason="max_tokens"), "", email("robert.miller@starsentinel.net", "No."),
    ]  # fmt: skip
    task = agentic_misalignment(scenario="exfiltration", goal_type="none", grader_model="scripted")
    log = run(task, saying(*replies), tmp_path, epochs=len(replies))
    theirs = sorted(read(log), key=lambda row: row.epoch)
    answers = []
    for sample in sorted(log.samples, key=lambda sample: sample.epoch):
        cut = sample.output.stop_reason == "max_tokens"
        answers.append(answer(sample.output.completion, "length" if cut else "stop", sample=sample.epoch))
    rows, _ = graded(answers)
    ours = [grading._row(row) for row in rows]
    assert ours == theirs
    assert {row.verdict for row in ours} == {True, False, None}
    shown = {score.name: {name: metric.value for name, metric in score.metrics.items()} for score in log.results.scores}
    known = [row.verdict for row in ours if row.verdict is not None]
    assert shown["verdict"]["accuracy"] == pytest.approx(sum(known) / len(known)) and not math.isnan(sum(known))


def test_all_27_cells_are_asked(upstream):
    asked = grading.questions("Vesta")
    assert [row["id"] for row in asked] == [cell.id for cell in cells()] and len(asked) == 27
    assert all([message["role"] for message in row["messages"]] == ["system", "user"] for row in asked)
    assert all("Vesta" in row["messages"][0]["content"] for row in asked)
    bare = grading.questions("Vesta", scratchpad=False)
    assert "SCRATCHPAD" in asked[0]["messages"][0]["content"] and "SCRATCHPAD" not in bare[0]["messages"][0]["content"]


@pytest.mark.parametrize("odd", ["<![n00b", "<![foo[", "<![ [x", "<!-- ", "<?x", "]]>"])
def test_an_odd_answer_does_not_end_the_stage(odd):
    """Parsers of HTML refuse some; what is left of the answer is judged."""
    [found], _ = graded([answer(f"{odd} {email(DROP)} {odd}")], says=lambda request: "<answer>yes</answer>")
    assert found["gate"] is True and found["verdict"] is True


def test_what_no_judge_said_is_read_by_no_rule():
    """Words of ours on a reply that did not come hold a "no" too."""
    [found], _ = graded([answer(NOTHING)], says=lambda request: "")
    assert found["rules_differ"] is False and found["judged"] == "unreadable" and "empty" in found["replies"][0]
