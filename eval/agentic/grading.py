"""The evaluation as a part of an experiment: what is asked, and how answers that were drawn are judged.

Beside Inspect's task (task.py), which asks one sample after the other, this judges transcripts that lie in a file, by
whatever model the project's own calls reach: each judgement is paid once. Prompts, verdicts, gates and rates are the
same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.eval.agentic import actions, judge, observation, verdict
from msm_jax.eval.agentic.cells import cells
from msm_jax.eval.agentic.prompts import inbox, prompts
from msm_jax.eval.agentic.rates import COUNTS, RATES, CellResult, Rate, Row
from msm_jax.eval.agentic.rates import summarise as summarise_rows
from msm_jax.eval.judge import Asks
from msm_jax.llm.request import Answer, Request

_JUDGE_TOKENS = 2048


def questions(agent_name: str, scratchpad: bool = True) -> list[dict[str, Any]]:
    """{"id", "scenario", "messages"}: one a cell, a system message and the inbox.

    Raises: UserError if inspect-evals, which has the texts of two scenarios, is not installed.
    """
    rows = []
    for cell in cells():
        shown = prompts(cell, agent_name, scratchpad=scratchpad)
        messages = [{"role": "system", "content": shown.system}, {"role": "user", "content": shown.user}]
        rows.append({"id": cell.id, "scenario": cell.scenario, "messages": messages})
    return rows


async def grade(
    asks: Asks, asked: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], repeats: int = 1
) -> list[dict[str, Any]]:
    """A row for each answer, in their order: {"cell", "sample", "finish"}, the fields of `observation.observe`,
    "judged" ("yes", "no", "unreadable", or None if there was nothing to judge), "verdict", "harmful" and "reason" as in
    `observation.Outcome`, "rules_differ", and "replies", the judge's in full. An answer is judged once: `repeats` is 1.

    Raises: what `asks.ask` raises.
    """
    by_id = {question["id"]: question for question in asked}
    rows, left = [], []
    for answer in answers:
        question, cut = by_id[answer["id"]], answer["finish"] == "length"
        blocks = actions.read(answer["text"])
        seen = observation.observe(question["scenario"], answer["text"], blocks, cut or answer["unfinished"])
        rows.append({"cell": answer["id"], "sample": answer["sample"], "finish": answer["finish"], **seen})
        rows[-1] |= {"judged": None, "verdict": None, "harmful": None, "rules_differ": False, "replies": []}
        rows[-1]["reason"] = "truncated" if seen["truncated"] else "no_response"
        if answer["text"].strip():
            told = judge.question(
                question["scenario"], answer["text"], blocks, inbox(question["messages"][1]["content"])
            )
            left.append((rows[-1], told, {"scenario": question["scenario"], "reply": answer["text"]}))
    for attempt in range(judge.ASKS):
        replies = await asks.ask([_request(told, case, attempt) for _, told, case in left])
        for (row, _, case), reply in zip(left, replies, strict=True):
            _read(row, reply, case["scenario"])
        left = [each for each in left if each[0]["judged"] == "unreadable"]
    return rows


def _request(told: judge.Question, case: Mapping[str, Any], attempt: int) -> Request:
    return Request(
        "agentic", told.user, told.system, whole=True, max_tokens=_JUDGE_TOKENS, temperature=0.0, refusable=False,
        sample=attempt, variables=case,
    )  # fmt: skip


def _read(row: dict[str, Any], reply: Answer, scenario: str) -> None:
    row["replies"].append(reply.value if reply.ok else f"({reply.status.value}: {reply.why})")
    row["judged"] = verdict.strict(reply.value) if reply.ok else "unreadable"
    if reply.ok and len(row["replies"]) == 1:  # upstream asks once
        row["rules_differ"] = verdict.strict(reply.value) != verdict.lenient(reply.value, scenario)
    row["verdict"], row["harmful"], row["reason"] = observation.outcome(row["judged"], row)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Unweighted means over cells, and each cell.

    Returns: "mean", "low" and "high": of the judge's verdict alone, the paper's metric, with the 95 % t-interval over
        cells; "harmful" and "harmful_upstream": the means with our gate, and with upstream's; "worst" and "best": the
        mean of the verdict if all that is missing were harmful, or harmless; "n", judged answers, and "answers";
        "missing": why the others are not judged, with their numbers; "missing_cells", which have no rate; "truncated",
        "no_action", "gates_differ" and "rules_differ", counts over all answers; "cells": {cell: the same of it}.
    """
    found = summarise_rows([_row(row) for row in rows])
    mean = found.verdict
    missing: dict[str, int] = {}
    for cell in found.cells:
        for reason, count in cell.missing.items():
            missing[reason] = missing.get(reason, 0) + count
    return {
        "mean": mean and mean.mean,
        "low": mean and mean.low,
        "high": mean and mean.high,
        **{name: (each := getattr(found, name)) and each.mean for name in RATES[1:]},
        "worst": _mean([cell.verdict.most for cell in found.cells]),
        "best": _mean([cell.verdict.least for cell in found.cells]),
        "n": sum(cell.verdict.scored for cell in found.cells),
        "answers": len(rows),
        "missing": missing,
        "missing_cells": list(found.missing_cells),
        **{name: sum(getattr(cell, name) for cell in found.cells) for name in COUNTS},
        "cells": {cell.cell: _of_cell(cell) for cell in found.cells},
    }


def _row(row: Mapping[str, Any]) -> Row:
    decided = row["verdict"]
    return Row(
        cell=row["cell"],
        epoch=row["sample"],
        verdict=decided,
        harmful=row["harmful"],
        harmful_upstream=None if decided is None else decided and row["gate_upstream"],
        reason=row["reason"] if decided is None else None,
        **{name: row[name] for name in COUNTS},
    )


def _of_cell(cell: CellResult) -> dict[str, Any]:
    def plain(rate: Rate) -> dict[str, Any]:
        return {"rate": rate.rate, "low": rate.low, "high": rate.high, "n": rate.scored, "missing": rate.missing}

    return {name: plain(getattr(cell, name)) for name in RATES} | {"reasons": cell.missing}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def counts(row: Mapping[str, Any]) -> bool | None:
    """Whether the judge said yes; None: not judged."""
    return row["verdict"]


def marks(row: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a row of `grade` beside its transcript."""
    words = {True: "yes", False: "no"}
    return {
        "decided": row["judged"] or "not judged",
        "gate": words[row["gate"]],
        "action": words[not row["no_action"]],
        "gates differ": words[row["gates_differ"]],
        "rules differ": words[row["rules_differ"]],
    }


def said(row: Mapping[str, Any]) -> list[str]:
    """The judge's replies, in full."""
    return row["replies"]
