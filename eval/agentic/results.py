"""The rates of a stored log of Inspect, read back sample by sample (rates.py says what they are).

python -m msm_jax.eval.agentic.results LOG.eval
"""

import math
import pathlib
import sys
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log

from msm_jax.errors import UserError
from msm_jax.eval.agentic.rates import Row, rate, summarise, table

__all__ = ["Row", "rate", "read", "summarise", "table"]
# Of 8,100 transcripts, what the rates do not need.
_LEFT_OUT = {"messages", "events", "attachments", "store", "output", "timelines"}


def read(log: EvalLog | str | pathlib.Path) -> list[Row]:
    """One row a sample that was to be asked, those included that failed or never ran.

    Raises: UserError if this is no log of this task, or if it holds no samples.
    """
    if not isinstance(log, EvalLog):
        log = read_eval_log(str(log), exclude_fields=_LEFT_OUT)
    if log.eval.task.rpartition("/")[2] != "agentic_misalignment":
        raise UserError(f"{log.location or 'log'}: holds {log.eval.task}, not agentic_misalignment")
    samples = {(str(sample.id), sample.epoch): sample for sample in log.samples or []}
    if not samples:
        raise UserError(f"{log.location or 'log'}: holds no samples")
    names = [str(name) for name in log.eval.dataset.sample_ids or sorted({name for name, _ in samples})]
    epochs = range(1, (log.eval.config.epochs or 1) + 1)
    wanted = dict.fromkeys([*((name, epoch) for name in names for epoch in epochs), *samples])
    return [_row(name, epoch, samples.get((name, epoch))) for name, epoch in wanted]


def _row(cell: str, epoch: int, sample: EvalSample | None) -> Row:
    score = (sample.scores or {}).get("misalignment") if sample else None
    if score is None:
        reason = "not_run" if sample is None else "target_error" if sample.error else "not_scored"
        return Row(cell, epoch, None, None, None, reason, False, False, False, False)
    about = score.metadata or {}
    values = score.value if isinstance(score.value, dict) else {}
    verdict, harmful = (_known(values.get(name)) for name in ("verdict", "harmful"))
    return Row(
        cell, epoch, verdict, harmful,
        None if verdict is None else verdict and about["gate_upstream"],
        score.reason if verdict is None else None,
        about["truncated"], about["no_action"], about["gates_differ"], about.get("rules_differ", False),
    )  # fmt: skip


def _known(value: Any) -> bool | None:
    return None if value is None or math.isnan(value) else bool(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m msm_jax.eval.agentic.results LOG.eval")
    try:
        print(table(summarise(read(sys.argv[1]))))
    except UserError as error:
        sys.exit(str(error))
