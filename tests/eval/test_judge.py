"""Rubrics that are filled in, replies that are read, and what becomes of those that cannot be."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.eval import open_qa
from msm_jax.eval.judge import ATTEMPTS, Rubric, choice_of, judge, score_of
from msm_jax.eval.scripted import ScriptedJudge
from msm_jax.llm.request import Finish, Reply, Usage, classify

RUBRIC = Rubric(
    "r", "Grade {what}.\n<answer>\n{answer}\n</answer>", ("reasoning", "score"), score_of, given=frozenset({"what"})
)


class Says:
    """Asks that reply what `says(request)` says, once for each distinct request."""

    def __init__(self, says):
        self.says, self.asked = says, []

    async def ask(self, requests):
        self.asked += requests
        assert len({request.key("m") for request in self.asked}) == len(self.asked), "one request is asked twice"
        return [
            classify(request, Reply(self.says(request), Finish.STOP, Usage()), request.key("m")) for request in requests
        ]


def judged(says, answers=("fine",)):
    asks = Says(says)
    cases = [{"what": "the answer", "answer": answer} for answer in answers]
    return asyncio.run(judge(asks, RUBRIC, cases)), asks


def grade(score):
    return f"<reasoning>so so</reasoning>\n<score>{score}</score>"


def test_a_grade_is_read_and_all_of_it_kept():
    [verdict], asks = judged(lambda request: grade("7"))
    assert verdict.value == 7 and verdict.said == {"reasoning": "so so", "score": "7"}
    assert (verdict.asked, verdict.why, len(verdict.keys)) == (1, "", 1)
    [request] = asks.asked
    assert request.temperature == 0 and request.prompt == "Grade the answer.\n<answer>\nfine\n</answer>"


@pytest.mark.parametrize(
    "reply",
    [
        "", "7", grade("11"), grade("0"), grade("7.5"), grade("seven"), grade("7/10"), grade("-7"), grade(""),
        grade("7") + grade("3"), "<score>7</score>", "<reasoning>a</reasoning><score>7",
        "<score>7</score><reasoning>a</reasoning>",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_asked_again_and_is_no_score(reply):
    [verdict], asks = judged(lambda request: reply)
    assert verdict.value is None and verdict.why and verdict.asked == ATTEMPTS == len(asks.asked) == len(verdict.keys)
    [later], asks = judged(lambda request: grade("4") if request.sample == 1 else reply)
    assert later.value == 4 and later.asked == 2


def test_only_those_that_cannot_be_read_are_asked_again():
    verdicts, asks = judged(
        lambda request: grade("5") if "good" in request.prompt else "no", ["good", "bad", "good one"]
    )
    assert [verdict.value for verdict in verdicts] == [5, None, 5] and len(asks.asked) == 3 + (ATTEMPTS - 1)


def test_repeats_are_other_requests():
    asks = Says(lambda request: grade(str(1 + request.sample)))
    case = {"what": "it", "answer": "a"}
    found = [asyncio.run(judge(asks, RUBRIC, [case], repeat)) for repeat in range(3)]
    assert [verdict.value for [verdict] in found] == [1, 1 + ATTEMPTS, 1 + 2 * ATTEMPTS]


@given(st.text(st.sampled_from("<>/{}answer\n a"), max_size=60))
def test_an_answer_can_neither_end_its_fence_nor_fill_in_another_place(text):
    prompt = RUBRIC.prompt({"what": "it", "answer": text})
    assert prompt.count("</answer>") == 1 and prompt.endswith("\n</answer>")
    inside = prompt.removeprefix("Grade it.\n<answer>\n").removesuffix("\n</answer>")
    assert inside.replace("< /", "</") == text.replace("< /", "</")


def test_a_place_without_its_text_is_an_error():
    with pytest.raises(KeyError, match="answer"):
        RUBRIC.prompt({"what": "it"})


def test_choices_are_read_in_any_case_and_alone():
    read = choice_of("yes", "no", tag="verdict")
    assert [read({"verdict": text}) for text in ("yes", " NO ", "yes.", "yes no", "")] == [
        "yes",
        "no",
        None,
        None,
        None,
    ]


def answers_of(questions, text="a b c", **fields):
    plain = {"thoughts": "", "unfinished": False, "finish": "stop", "tokens": 3}
    return [{"id": question["id"], "sample": 0, "text": text, **plain, **fields} for question in questions]


class Scripted:
    async def ask(self, requests):
        judge = ScriptedJudge()
        return [classify(request, await judge.reply(request), request.key(judge.model)) for request in requests]


def test_open_questions_are_graded_and_summed_up():
    questions = open_qa.questions("Ann")
    assert len(questions) == 154 and not any(
        "{model_name}" in question["messages"][0]["content"] for question in questions
    )
    answers = answers_of(questions)
    answers[0] |= {"unfinished": True, "text": ""}
    answers[1]["text"] = "one two three four five six seven"
    answers[2]["finish"] = "length"
    rows = asyncio.run(open_qa.grade(Scripted(), questions, answers, repeats=2))
    assert [row["scores"] for row in rows[:3]] == [[], [7, 7], [3, 3]]
    found = open_qa.summarise(rows)
    assert found["mean"] == pytest.approx((3 * 152 + 7) / 153) and found["low"] < found["mean"] < found["high"]
    assert found["worst"] == pytest.approx((3 * 152 + 7 + 1) / 154)
    assert found["best"] == pytest.approx((3 * 152 + 7 + 10) / 154)
    counts = {name: found[name] for name in ("n", "answers", "questions", "unreadable", "unfinished", "cut_off")}
    assert counts == {"n": 153, "answers": 154, "questions": 153, "unreadable": 0, "unfinished": 1, "cut_off": 1}
    assert list(found["dimensions"]) == list(open_qa.dimensions())
    assert sum(cell["n"] for cell in found["dimensions"].values()) == 153


def test_what_the_judge_cannot_be_read_on_is_counted_and_bounded():
    questions = open_qa.questions("Ann")[:4]
    rows = asyncio.run(open_qa.grade(Says(lambda request: "no idea"), questions, answers_of(questions)))
    found = open_qa.summarise(rows)
    assert (found["mean"], found["low"], found["n"], found["unreadable"]) == (None, None, 0, 4)
    assert (found["worst"], found["best"]) == (1, 10) and all(row["why"][0] for row in rows)


def test_further_answers_to_a_question_are_no_new_questions():
    row = {"id": "a", "dimension": "d", "sample": 0, "finish": "stop", "reasons": [""], "why": [""]}
    once = [row | {"scores": [2]}, row | {"id": "b", "scores": [8]}]
    often = [one | {"sample": k} for one in once for k in range(50)]
    first, more = open_qa.summarise(once), open_qa.summarise(often)
    assert (first["mean"], first["low"], first["high"]) == pytest.approx((more["mean"], more["low"], more["high"]))
