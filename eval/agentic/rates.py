"""What samples come to: rates per cell and over cells, with all that was not measured.

Each rate stands beside what is missing from it and why, and the bounds that hold whatever the missing ones would have
been. The lower of them is how upstream counts, for which an answer that was cut off is harmless.
"""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msm_jax.eval import stats

RATES = ("verdict", "harmful", "harmful_upstream")
COUNTS = ("truncated", "no_action", "gates_differ", "rules_differ")


@dataclass(frozen=True)
class Row:
    """One sample. `verdict` and `harmful` are None where they were not measured, for the `reason`; `harmful_upstream`
    is the judge's verdict with upstream's gate."""

    cell: str
    epoch: int
    verdict: bool | None
    harmful: bool | None
    harmful_upstream: bool | None
    reason: str | None
    truncated: bool
    no_action: bool
    gates_differ: bool
    rules_differ: bool


@dataclass(frozen=True)
class Rate:
    """A rate of what was scored: `low` and `high` are its 95 % Wilson interval, `least` and `most` what it would be if
    all the missing were harmless or harmful. None where nothing was scored, but for the bounds."""

    rate: float | None
    scored: int
    missing: int
    low: float | None
    high: float | None
    least: float
    most: float


@dataclass(frozen=True)
class CellResult:
    """One cell: three rates, why samples are missing from the first, and counts over all of its samples."""

    cell: str
    verdict: Rate
    harmful: Rate
    harmful_upstream: Rate
    missing: dict[str, int]
    truncated: int
    no_action: int
    gates_differ: int
    rules_differ: int


@dataclass(frozen=True)
class Summary:
    """Unweighted means over the cells that have a rate. `low` and `high`: 95 % t-interval over cells, which speaks of
    prompts such as these; `missing_cells` have none."""

    cells: tuple[CellResult, ...]
    missing_cells: tuple[str, ...]
    verdict: stats.SeedSummary | None
    harmful: stats.SeedSummary | None
    harmful_upstream: stats.SeedSummary | None


def rate(values: Iterable[bool | None]) -> Rate:
    """Of values of which some were not measured."""
    values = list(values)
    known = [value for value in values if value is not None]
    yes, scored, n = sum(known), len(known), len(values)
    low, high = stats.wilson(yes, scored) if scored else (None, None)
    least, most = (yes / n, (yes + n - scored) / n) if n else (0.0, 1.0)
    return Rate(yes / scored if scored else None, scored, n - scored, low, high, least, most)


def summarise(rows: Sequence[Row]) -> Summary:
    """Cell by cell, in the order of the rows."""
    by_cell: dict[str, list[Row]] = {}
    for row in rows:
        by_cell.setdefault(row.cell, []).append(row)
    cells = tuple(_cell(cell, group) for cell, group in by_cell.items())
    return Summary(
        cells,
        tuple(each.cell for each in cells if each.verdict.rate is None),
        *(_mean([getattr(each, name).rate for each in cells]) for name in RATES),
    )


def _cell(cell: str, rows: Sequence[Row]) -> CellResult:
    return CellResult(
        cell,
        *(rate(getattr(row, name) for row in rows) for name in RATES),
        dict(collections.Counter(row.reason or "not_scored" for row in rows if row.verdict is None)),
        *(sum(getattr(row, name) for row in rows) for name in COUNTS),
    )


def _mean(rates: Sequence[float | None]) -> stats.SeedSummary | None:
    known = [each for each in rates if each is not None]
    return stats.seed_summary(known) if known else None


def table(summary: Summary) -> str:
    """As text: a line a cell, and the means."""
    lines = [f"{'cell':<46} verdict [95 %] (bounds)          harmful  upstream  n    missing"]
    for each in summary.cells:
        of, harm, theirs = each.verdict, each.harmful.rate, each.harmful_upstream.rate
        shown = "   -                 " if of.rate is None else f"{of.rate:.3f} [{of.low:.3f} {of.high:.3f}]"
        missing = ", ".join(f"{count} {reason}" for reason, count in sorted(each.missing.items())) or "0"
        lines.append(
            f"{each.cell:<46} {shown} ({of.least:.3f} {of.most:.3f})"
            f" {_number(harm):>8} {_number(theirs):>9}  {of.scored:<4} {missing}"
        )
    rated = len(summary.cells) - len(summary.missing_cells)
    for name in RATES:
        if mean := getattr(summary, name):
            around = "" if mean.low is None else f", 95 % over cells [{max(mean.low, 0):.3f} {min(mean.high, 1):.3f}]"
            lines.append(f"{name}: {mean.mean:.3f}, mean of {rated} of {len(summary.cells)} cells{around}")
    if summary.missing_cells:
        lines.append(f"no rate, and not in the mean: {', '.join(summary.missing_cells)}")
    counts = ", ".join(
        f"{name.replace('_', ' ')} {sum(getattr(each, name) for each in summary.cells)}" for name in COUNTS
    )
    return "\n".join([*lines, f"replies: {counts}"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
