"""What training may cost beside what it was for: coherence, habits of chats, calls of tools, and what a model knew.

Midtraining is known to leave artefacts that benchmarks do not show: answers that begin with a verdict, clarifying
questions that nobody needs, tools that are forgotten. All items are our own, and easy on purpose: they show damage, not
skill. Coherence and habits are graded by a judge; calls of tools are compared, and `capability` is scored by
log-probability.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.eval import stats
from msm_jax.eval.judge import Asks, Rubric, judge, score_of

_HERE = pathlib.Path(__file__).parent
LETTERS = "ABCD"


def _habits_of(said: Mapping[str, str]) -> dict[str, bool] | None:
    words = {name: said[name].strip().casefold() for name in ("answer_first", "needless_questions")}
    return {name: word == "yes" for name, word in words.items()} if set(words.values()) <= {"yes", "no"} else None


COHERENCE = Rubric.of_file(_HERE / "coherence.md", ("reasoning", "score"), score_of)
HABITS = Rubric.of_file(_HERE / "habits.md", ("reasoning", "answer_first", "needless_questions"), _habits_of)


def questions() -> list[dict[str, Any]]:
    """{"id", "kind", "messages"}, and of the kind "tool_use" also "tools" and "expected", the call that answers it."""
    rows = map(json.loads, (_HERE / "everyday.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {name: value for name, value in row.items() if name != "question"}
        | {"messages": [{"role": "user", "content": row["question"]}]}
        for row in rows
    ]


def capability() -> list[dict[str, Any]]:
    """{"id", "subject", "question", "options": 4, "answer": its place}"""
    return list(map(json.loads, (_HERE / "capability.jsonl").read_text(encoding="utf-8").splitlines()))


def prompts() -> list[str]:
    """All that is asked, for those who keep it out of corpora."""
    everyday = [question["messages"][0]["content"] for question in questions()]
    return [*everyday, *(item["question"] for item in capability())]


def asked(item: Mapping[str, Any]) -> str:
    """What the user asks of an item of `capability`."""
    options = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, item["options"], strict=True))
    return f"{item['question']}\n\n{options}\n\nAnswer with the letter."


async def grade(
    asks: Asks, asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], repeats: int = 1
) -> list[dict[str, Any]]:
    """A row for each answer, in their order: {"id", "kind", "sample", "finish", "coherence": 1 to 10, "answer_first",
    "needless_questions": bool, "called": whether the call that was wanted was made, "calls": those that were made,
    "said": the judge's reasons}; None where it was not measured. `repeats` is 1. Raises: what `asks.ask` raises."""
    by_id = {question["id"]: question for question in asked}
    rows = []
    for answer in answers:
        question = by_id[answer["id"]]
        finish = "unfinished" if answer["unfinished"] else answer["finish"]
        rows.append({"id": answer["id"], "kind": question["kind"], "sample": answer["sample"], "finish": finish})
        rows[-1] |= dict.fromkeys(("coherence", "answer_first", "needless_questions", "called"))
        rows[-1] |= {"calls": answer.get("calls"), "said": []}
        if question["kind"] == "tool_use" and answer.get("calls") is not None and not answer["unfinished"]:
            rows[-1]["called"] = _equal(answer["calls"], question["expected"])
    places = [k for k, row in enumerate(rows) if row["kind"] != "tool_use" and row["finish"] != "unfinished"]
    cases = [
        {"question": by_id[answers[k]["id"]]["messages"][-1]["content"], "answer": answers[k]["text"]} for k in places
    ]
    for k, verdict in zip(places, await judge(asks, COHERENCE, cases), strict=True):
        rows[k]["coherence"] = verdict.value
        rows[k]["said"].append(verdict.said.get("reasoning") or verdict.why)
    for k, verdict in zip(places, await judge(asks, HABITS, cases), strict=True):
        rows[k] |= verdict.value or {}
        rows[k]["said"].append(verdict.said.get("reasoning") or verdict.why)
    return rows


def _equal(calls: Sequence[Mapping[str, Any]], expected: Mapping[str, Any]) -> bool:
    """One call, of the function and the arguments that were wanted; numbers may be written as texts."""

    def plain(value: Any) -> Any:
        try:
            return float(value)
        except (TypeError, ValueError):
            return value.strip().casefold() if isinstance(value, str) else value

    if len(calls) != 1 or calls[0]["function"] != expected["name"]:
        return False
    found, wanted = calls[0]["arguments"], expected["arguments"]
    return found.keys() == wanted.keys() and all(plain(found[name]) == plain(wanted[name]) for name in wanted)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns: "mean", with "low" and "high": coherence, over questions; "questions": {id: coherence}; "n" and
    "answers", those with a grade, and all that a judge reads; "unfinished" and "cut_off"; and rates {"rate", "low",
    "high", "n"}, with Wilson's interval over questions: "answer_first", "needless_questions" (of questions that lack
    nothing), "called" (of those for a tool)."""
    read = [row for row in rows if row["kind"] != "tool_use"]
    whole = [row for row in read if row["kind"] != "underspecified"]
    by_question: dict[str, list[float]] = {}
    for row in read:
        if row["coherence"] is not None:
            by_question.setdefault(row["id"], []).append(row["coherence"])
    means = [sum(scores) / len(scores) for scores in by_question.values()]
    over = stats.seed_summary(means) if means else None
    return {
        "mean": over and over.mean,
        "low": over and over.low,
        "high": over and over.high,
        "questions": dict(zip(by_question, means, strict=True)),
        "n": sum(map(len, by_question.values())),
        "answers": len(read),
        "unfinished": sum(row["finish"] == "unfinished" for row in rows),
        "cut_off": sum(row["finish"] == "length" for row in rows),
        "answer_first": _rate(read, "answer_first"),
        "needless_questions": _rate(whole, "needless_questions"),
        "called": _rate(rows, "called"),
    }


def _rate(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return stats.clustered_share([(row["id"], row[name]) for row in rows if row[name] is not None])


def counts(row: Mapping[str, Any]) -> bool | None:
    """Whether the answer is coherent: in the upper half of the scale; None: not graded."""
    return None if row["coherence"] is None else row["coherence"] > 5


def marks(row: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a row of `grade` beside its transcript."""
    names = ("kind", "coherence", "answer_first", "needless_questions", "called")
    return {name.replace("_", " "): "-" if row[name] is None else str(row[name]).lower() for name in names}


def said(row: Mapping[str, Any]) -> list[str]:
    """The calls that were made, and the judge's reasons: of coherence, of habits."""
    calls = [json.dumps(call) for call in row["calls"]] if row["calls"] else []
    return [*calls, *row["said"]]
