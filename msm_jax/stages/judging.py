"""The stage in which a language model grades what another one has said, by the rubric of an evaluation.

Grades are paid once: replies lie in the store of calls, by what was asked. Answers that are judged anew (another judge,
another rubric) are not drawn anew.
"""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from msm_jax.corpus import records
from msm_jax.corpus.datasets.tables import read_rows
from msm_jax.eval.judge import Asks
from msm_jax.llm.batch import BatchCaller
from msm_jax.llm.store import copied
from msm_jax.stages import generation
from msm_jax.stages.graph import Stage, StageContext
from msm_jax.stages.sampling import QUESTIONS_FILE, TRANSCRIPTS_FILE
from msm_jax.stages.scoring import write_board
from msm_jax.stages.writing import fetched

VERDICTS_FILE = "verdicts.jsonl"
TRANSCRIPTS_FOLDER = "transcripts"
_ANSWER_TOKENS, _VERDICT_TOKENS = 800, 150  # as estimates take them


def grade(context: StageContext, *, config: ConfigDict) -> dict[str, Any]:
    """Writes `verdicts.jsonl`, a row for each answer, and pages on which a person reads both.

    Inputs: `questions` and `transcripts`. Params: evaluation (its name), model (of the judge), repeats, and `second`
    where another judge grades too: then each row has its grade under "second", and "judges": whether they agree.
    Summary: what the evaluation's `summarise` says, and "judge", its name; with two, "second": {"judge", "mean",
    "table"}, which counts answers by what the first (rows) and the second (columns) says of `counts`.
    """
    from msm_jax.eval import eval_awareness, open_qa, reasoning, side_effects, transcripts
    from msm_jax.eval.agentic import grading

    modules = {
        "open_qa": open_qa,
        "agentic_misalignment": grading,
        "reasoning": reasoning,
        "eval_awareness": eval_awareness,
        "side_effects": side_effects,
    }
    evaluation = modules[context.params["evaluation"]]
    questions = list(read_rows(context.inputs["questions"] / QUESTIONS_FILE))
    answers = list(read_rows(context.inputs["transcripts"] / TRANSCRIPTS_FILE))
    work = functools.partial(evaluation.grade, asked=questions, answers=answers, repeats=context.params["repeats"])
    rows, second = _asked(context, config, judge_of(config), work), {}
    if name := context.params.get("second"):
        others = _asked(context, config, config.judge.second, work)
        second = {"second": {"judge": name} | _compared(rows, others, evaluation)}
    records.write_jsonl(context.folder / VERDICTS_FILE, rows)
    title = f"{context.params['evaluation'].replace('_', ' ')}, {context.stage.arm}, seed {context.stage.seed}"
    pages = context.folder / TRANSCRIPTS_FOLDER
    transcripts.write_pages(pages, title, questions, answers, rows, marks_of(evaluation), evaluation.said)
    summary = evaluation.summarise(rows)
    write_board(context.folder, {f"{context.params['evaluation']}/mean": summary["mean"]})
    return summary | {"judge": context.params["model"]} | second


def _asked(
    context: StageContext, config: ConfigDict, model: str, work: Callable[[Asks], Awaitable[list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        caller = stack.enter_context(generation.caller(config, context.stage.name, model, judges=True))
        if context.mirror:
            stack.enter_context(copied(caller.store, fetched(context.mirror), context.mirror.send))
        asks = BatchCaller(caller, config.calls.service == "batch") if config.generator == "gemini" else caller
        return generation.drained(caller, functools.partial(work, asks))


def _compared(rows: list[dict[str, Any]], others: list[dict[str, Any]], evaluation: Any) -> dict[str, Any]:
    """Adds to each row what the second judge made of it; returns what the summary has of the two."""
    table = [[0, 0], [0, 0]]
    for row, other in zip(rows, others, strict=True):
        first, second = evaluation.counts(row), evaluation.counts(other)
        row["judges"] = "one" if None in (first, second) else "agree" if first == second else "differ"
        row["second"] = evaluation.marks(other)
        if row["judges"] != "one":
            table[first][second] += 1
    return {"mean": evaluation.summarise(others)["mean"], "table": table}


def marks_of(evaluation: Any) -> Callable[[Mapping[str, Any]], dict[str, str]]:
    """`evaluation.marks`, and of two judges also whether they agree, and what the second said first."""

    def marks(row: Mapping[str, Any]) -> dict[str, str]:
        if "second" not in row:
            return evaluation.marks(row)
        return evaluation.marks(row) | {"judges": row["judges"], "second judge": next(iter(row["second"].values()))}

    return marks


def judge_of(config: ConfigDict) -> str:
    """The model that judges, by its name in the configuration; empty: who writes."""
    return config.judge.model or config.generation.judge


def judges_of(config: ConfigDict) -> list[str]:
    """It, and the second if there is one."""
    return [judge_of(config), *filter(None, [config.judge.second])]


def tokens_of(stage: Stage) -> tuple[int, int, int]:
    """(requests, tokens to read, tokens to write) of a stage that is to be done, about, for each of its judges."""
    requests = stage.params["answers"] * stage.params["repeats"] * stage.params["calls"]
    answer = min(_ANSWER_TOKENS, stage.inputs["transcripts"].params["max_tokens"])
    return requests, requests * (stage.params["call_tokens"] + answer), requests * _VERDICT_TOKENS
