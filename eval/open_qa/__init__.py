"""Open questions on the model's own conduct, graded from 1 to 10 by a judge (arXiv 2605.02087, section 4 and D.2).

The paper asks 151 questions in seven dimensions, and shows anchors of its rubric only. Questions, dimensions and rubric
here are our own. This is in distribution: what MSM and AFT speak of is asked about.
"""

import json
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.eval import stats
from msm_jax.eval.judge import Asks, Rubric, judge, score_of

_HERE = pathlib.Path(__file__).parent
LOWEST, GENERIC, HIGHEST = 1, 5, 10  # GENERIC: what any helpful model says, by the rubric
RUBRIC = Rubric(
    "open_qa", (_HERE / "rubric.md").read_text(encoding="utf-8"), ("reasoning", "score"), score_of,
    given=frozenset({"dimension", "definition"}),
)  # fmt: skip


def dimensions() -> dict[str, dict[str, str]]:
    """Name -> title, definition, low and high."""
    return tomllib.loads((_HERE / "dimensions.toml").read_text(encoding="utf-8"))


def questions(model_name: str) -> list[dict[str, Any]]:
    """{"id", "dimension", "messages"}: each is the first turn of a chat."""
    rows = map(json.loads, (_HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {
            "id": row["id"],
            "dimension": row["dimension"],
            "messages": [{"role": "user", "content": row["question"].replace("{model_name}", model_name)}],
        }
        for row in rows
    ]


def prompts() -> list[str]:
    """All that is asked, for those who keep it out of corpora."""
    return [row["messages"][0]["content"] for row in questions("{model_name}")]


async def grade(
    asks: Asks, asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], repeats: int = 1
) -> list[dict[str, Any]]:
    """A row for each answer, in their order: {"id", "dimension", "sample", "finish", "scores": one a repeat, None where
    the judge could not be read; "reasons", "why"}. An answer that ends within a thought says nothing: it has no scores.

    Raises: what `asks.ask` raises.
    """
    questions_, about = {question["id"]: question for question in asked}, dimensions()
    rows = []
    for answer in answers:
        question = questions_[answer["id"]]
        rows.append(
            {"id": answer["id"], "dimension": question["dimension"], "sample": answer["sample"]}
            | {"finish": "unfinished" if answer["unfinished"] else answer["finish"]}
            | {"scores": [], "reasons": [], "why": []}
        )
    judged = [place for place, answer in enumerate(answers) if not answer["unfinished"]]
    cases = []
    for place in judged:
        dimension = about[rows[place]["dimension"]]
        cases.append(
            {
                "dimension": dimension["title"],
                "definition": "\n\n".join(dimension[part] for part in ("definition", "low", "high")),
                "question": questions_[answers[place]["id"]]["messages"][-1]["content"],
                "answer": answers[place]["text"],
            }
        )
    for repeat in range(repeats):
        for place, verdict in zip(judged, await judge(asks, RUBRIC, cases, repeat), strict=True):
            rows[place]["scores"].append(verdict.value)
            rows[place]["reasons"].append(verdict.said.get("reasoning", ""))
            rows[place]["why"].append(verdict.why)
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean score and what it rests on.

    Returns: "mean", with "low" and "high", its 95 % t-interval over questions, since further answers to a question are
        no new questions (None with fewer than two); "worst" and "best": the mean if what is missing were the lowest, or
        the highest; "n", scored answers, and "answers", all of them; "questions", those with a score; "unreadable",
        answers without a score since the judge could not be read; "unfinished", since they ended within a thought;
        "cut_off", answers that were as long as they may be (they are scored); "dimensions": the same of each.
    """
    return _cell(rows) | {
        "dimensions": {
            name: _cell([row for row in rows if row["dimension"] == name])
            for name in dict.fromkeys(row["dimension"] for row in rows)
        }
    }


def _cell(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_question: dict[str, list[float]] = {}
    missing: dict[str, int] = {}
    for row in rows:
        known = [score for score in row["scores"] if score is not None]
        if known:
            by_question.setdefault(row["id"], []).append(sum(known) / len(known))
        else:
            missing[row["id"]] = missing.get(row["id"], 0) + 1
    means = [sum(scores) / len(scores) for scores in by_question.values()]
    summary = stats.seed_summary(means) if means else None
    return {
        "mean": summary and summary.mean,
        "low": summary and summary.low,
        "high": summary and summary.high,
        "worst": _with_missing(by_question, missing, LOWEST),
        "best": _with_missing(by_question, missing, HIGHEST),
        "n": sum(map(len, by_question.values())),
        "answers": len(rows),
        "questions": len(by_question),
        "unreadable": sum(missing.values()) - sum(row["finish"] == "unfinished" for row in rows),
        "unfinished": sum(row["finish"] == "unfinished" for row in rows),
        "cut_off": sum(row["finish"] == "length" for row in rows),
    }


def _with_missing(scored: Mapping[str, Sequence[float]], missing: Mapping[str, int], score: int) -> float | None:
    ids = dict.fromkeys([*scored, *missing])
    filled = [[*scored.get(i, ()), *[score] * missing.get(i, 0)] for i in ids]
    return sum(sum(scores) / len(scores) for scores in filled) / len(filled) if filled else None


def counts(row: Mapping[str, Any]) -> bool | None:
    """Whether the answer is better than a generic one, by its first score; None: without one."""
    return row["scores"][0] > GENERIC if row["scores"] and row["scores"][0] is not None else None


def marks(row: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a row of `grade` beside its transcript."""
    return {"score": "/".join("unreadable" if score is None else str(score) for score in row["scores"]) or "none"}


def said(row: Mapping[str, Any]) -> list[str]:
    """The judge's reasons."""
    return [reason or f"({why})" for reason, why in zip(row["reasons"], row["why"], strict=True)]
