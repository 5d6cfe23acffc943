"""What a section of the report is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msm_jax.eval import stats


class Table(NamedTuple):
    """`wide`: too wide for a terminal, so that it is on the page alone."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: bool = False


class Section(NamedTuple):
    """Attributes:
    about: what the numbers are, in a sentence or two.
    tables: the first is that of the numbers themselves.
    notes: what a reader must know of these numbers.
    figure: {"file", "title", "caption", "png"}, or None.
    transcripts: (what, page) of each model, from WORKDIR/report.
    """

    title: str
    about: str
    tables: Sequence[Table]
    notes: Sequence[str]
    figure: Mapping[str, Any] | None
    transcripts: Sequence[tuple[str, str]] = ()


class Mean(NamedTuple):
    """Over seeds. With one seed, or where seeds are further measurements of one model, the interval is over items: as
    wide as that of each measurement, on average."""

    value: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def mean_of(entries: Sequence[Mapping[str, Any]], field: str = "mean", ends: tuple[float, float] = (0.0, 1.0)) -> Mean:
    """Of a field of their summaries; `ends`: the least and the most that there can be, where intervals stop. Entries
    that have "trained" False are measurements of a model that no seed has trained."""
    known = [entry["summary"] for entry in entries if entry["summary"][field] is not None]
    if not known:
        return Mean(None, None, None, ())
    over = stats.seed_summary([summary[field] for summary in known])
    low, high = over.low, over.high
    if over.n == 1 or not entries[0].get("trained", True):
        sides = [[summary[side] for summary in known if summary[side] is not None] for side in ("low", "high")]
        low, high = (sum(each) / len(each) if each else None for each in sides)
    if low is not None:
        low, high = max(ends[0], low), min(ends[1], high)
    return Mean(over.mean, low, high, tuple(summary[field] for summary in known))


def total(entries: Sequence[Mapping[str, Any]], field: str) -> int:
    return sum(entry["summary"][field] for entry in entries)


def score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def interval(mean: Mean) -> str:
    around = "" if mean.low is None else f" [{mean.low:.2f} {mean.high:.2f}]"
    return f"{score(mean.value)}{around}"
