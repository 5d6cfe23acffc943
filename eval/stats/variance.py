"""Where the variance of a mean rate comes from: seeds, cells, samples of a cell, and the judge."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Components:
    """Variance of one draw of each kind: one more training seed, one more cell, their interaction, one more answer of
    a cell, one more judgement of an answer. None where the design cannot tell: with one seed, `cell` has the
    interaction in it; without repeated judgements, `sample` has the judge in it."""

    seed: float | None
    cell: float | None
    seed_x_cell: float | None
    sample: float
    judge: float | None
    seeds: int
    cells: int
    samples: float

    def of_mean(self) -> dict[str, float]:
        """What each adds to the variance of the mean over all seeds, cells and samples."""
        every = self.seeds * self.cells
        divisors = {
            "seed": self.seeds,
            "cell": self.cells,
            "seed_x_cell": every,
            "sample": every * self.samples,
            "judge": every * self.samples,
        }
        return {name: getattr(self, name) / d for name, d in divisors.items() if getattr(self, name) is not None}

    @property
    def sentence(self) -> str:
        parts = self.of_mean()
        total = sum(parts.values())
        of = f"the mean over {_many(self.seeds, 'seed')}, {_many(self.cells, 'cell')} and {self.samples:g} samples each"
        if total == 0:
            return f"Nothing varies in {of}."
        text = f"Of the variance of {of} (standard error {total**0.5:.4f}): {_shares(parts)}."
        held = {name: part for name, part in parts.items() if name != "cell"}
        if self.cell and sum(held.values()):
            text += f" With the cells held (standard error {sum(held.values()) ** 0.5:.4f}): {_shares(held)}."
        unknown = [name for name in ("seed", "cell") if getattr(self, name) is None]
        if unknown:
            text += f" Unknown, as there is one: {' and '.join(unknown)}."
        return text if self.judge is not None else f"{text} Sample includes the judge: no answer was judged twice."


def _shares(parts: dict[str, float]) -> str:
    """As "cell 94%, seed 6%", the largest first."""
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name.replace('_x_', ' x ')} {part / total:.0%}" for name, part in ordered)


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count > 1 else ''}"


def variance_components(
    successes: Sequence[Sequence[int]], totals: Sequence[Sequence[int]] | int, judge: float | None = None
) -> Components:
    """Method of moments for seeds crossed with cells, both drawn at random (Searle, Casella & McCulloch 1992, Variance
    Components, chapter 4), clipped at 0.

    successes[s][c] of totals[s][c] answers to prompt c by the model of seed s; one number where all totals are alike.
    The variance of answers is binomial; `judge`, from `judge_variance`, is the part of it that is the judge's.

    Raises: ValueError for counts that cannot be, or a cell with fewer than two judged answers: drop it from all seeds
    and say so.
    """
    done = np.asarray(successes, dtype=float)
    if done.ndim != 2 or not done.size:
        raise ValueError(f"variance_components: expected counts [seeds, cells], got shape {done.shape}")
    n = np.asarray(totals, dtype=float)
    if n.ndim and n.shape != done.shape:
        raise ValueError(f"variance_components: counts {done.shape} but totals {n.shape}")
    n = np.broadcast_to(n, done.shape)
    if not ((done >= 0) & (done <= n)).all():
        raise ValueError("variance_components: a count of successes is outside 0..its total")
    if (n < 2).any():
        raise ValueError("variance_components: a cell has fewer than two judged answers")
    seeds, cells = done.shape
    rates = done / n
    answer = rates * (1 - rates) * n / (n - 1)  # unbiased for the variance of one answer
    noise = float((answer / n).mean())
    grand, by_seed, by_cell = rates.mean(), rates.mean(axis=1), rates.mean(axis=0)
    seed = cell = both = None
    if seeds > 1 and cells > 1:
        rest = rates - by_seed[:, None] - by_cell + grand
        rest = float((rest**2).sum()) / ((seeds - 1) * (cells - 1))
        seed, cell = float(by_seed.var(ddof=1)) - rest / cells, float(by_cell.var(ddof=1)) - rest / seeds
        both = rest - noise
    elif cells > 1:
        cell = float(by_cell.var(ddof=1)) - noise
    elif seeds > 1:
        seed = float(by_seed.var(ddof=1)) - noise
    # Where a component is None the cells' or seeds' own variance has the interaction in it.
    seed, cell, both = (None if part is None else max(0.0, part) for part in (seed, cell, both))
    sample = float(answer.mean())
    sample = sample if judge is None else max(0.0, sample - judge)
    return Components(seed, cell, both, sample, judge, seeds, cells, float(n.size / (1 / n).sum()))


def judge_variance(judgements: Sequence[Sequence[int]]) -> float:
    """Variance of one judgement of a given answer: judgements[i] are the two or more verdicts (0 or 1) on answer i.

    For two verdicts it is half the share of answers on which they differ. Give answers drawn as the evaluation draws
    them: a set chosen for being hard has more.

    Raises: ValueError without answers, for an answer that was judged once, or a verdict that is not 0 or 1.
    """
    if not len(judgements):
        raise ValueError("judge_variance: no judgements")
    spreads = []
    for verdicts in judgements:
        verdicts = np.asarray(verdicts, dtype=float)
        if verdicts.size < 2:
            raise ValueError("judge_variance: an answer was judged only once")
        if not np.isin(verdicts, (0.0, 1.0)).all():
            raise ValueError("judge_variance: verdicts are 0 or 1")
        spreads.append(float(verdicts.var(ddof=1)))
    return sum(spreads) / len(spreads)
