"""Rows of several sources, shuffled and mixed by weight, as batches that are a pure function of the step.

The order is fixed by the seed alone: any step can be asked for at once, so a run resumes by its step number, and
the hosts of a run read disjoint shares of one global order, however many they are.
"""

import dataclasses
import fractions
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from msm_jax.data.rows import PackedRows
from msm_jax.errors import UserError
from msm_jax.storage import files

_ENDLESS = 2**48  # rows: more than any run reads, and exact as a float, which Grain's own lengths need


class Source(NamedTuple):
    """`weight` is the share of rows, relative to the other sources' weights, that come from `rows`."""

    name: str
    rows: PackedRows
    weight: float


def batches(
    sources: Sequence[Source], batch_size: int, seed: int, host_index: int = 0, host_count: int = 1
) -> grain.MapDataset:
    """The endless training batches: element s is this host's share of global batch s.

    Each source is shuffled by itself, anew in each of its epochs; the sources are then interleaved so that in any
    number of rows each has its share, give or take a row per source, and in a cycle of the weights exactly. Global
    batch s is rows [s * batch_size, (s + 1) * batch_size) of that order, and the hosts' shares are its consecutive
    parts. A batch may be larger than a source: its rows then come again.

    Returns: a dataset of dicts, B = batch_size / host_count: "tokens", "segments", "positions" int32 [B, T] and "mask"
        bool [B, T] as in `PackedRows`, and "source" int32 [B], the index of each row's source in `sources`.

    Raises: UserError for sources that do not go together, and a batch that cannot be divided among the hosts.
    """
    weights = _whole_weights(sources)
    if batch_size < 1 or batch_size % host_count:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {host_count} hosts; make it a multiple of {host_count}"
        )
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index {host_index} is not in [0, {host_count})")
    tagged = [
        grain.MapDataset.source(source.rows).map(functools.partial(_tag, index=index))
        for index, source in enumerate(sources)
    ]
    order = _Order(seed, [source.name for source in sources], [len(source.rows) for source in sources], weights)
    mixed = grain.MapDataset.select_from_datasets(tagged, order)
    return mixed.batch(batch_size // host_count)[host_index::host_count]


def epoch_steps(sources: Sequence[Source], batch_size: int) -> int:
    """Steps after which the source that is smallest for its weight has been seen in full (the rule of
    `grain.MapDataset.mix`): none is repeated before, but for the last batch. Raises: UserError as `batches` does."""
    weights = _whole_weights(sources)
    steps = (
        fractions.Fraction(len(source.rows) * sum(weights), weight * batch_size)
        for source, weight in zip(sources, weights, strict=True)
    )
    return math.ceil(min(steps))


@dataclasses.dataclass(frozen=True)
class _Order:
    """Index in the mixture -> (source, row of that source), as `MapDataset.select_from_datasets` wants it.

    Takes the place of `MapDataset.mix`, which rounds weights to about a hundredth of the smallest, and of
    `MapDataset.shuffle`, which needs milliseconds for a row of a source that has only a few.
    """

    seed: int
    names: list[str]
    lengths: list[int]
    weights: list[int]

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        source, drawn = _interleave(index, self.weights)
        epoch, place = divmod(drawn, self.lengths[source])
        return source, int(_permutation(self.seed, self.names[source], epoch, self.lengths[source])[place])


def _interleave(index: int, weights: Sequence[int]) -> tuple[int, int]:
    """Which source row `index` of the mixture is from, and how many rows that source had before.

    The sources are split off one after the other: of k rows the first source has its share, rounded up, the second
    has its share of what is left, and so on. Row k is of the source that has one more of k + 1 rows than of k.
    """
    before, after, remaining = index, index + 1, sum(weights)
    for source, weight in enumerate(weights):
        left_before = before * (remaining - weight) // remaining
        left_after = after * (remaining - weight) // remaining
        if left_before == left_after:
            return source, before - left_before
        before, after, remaining = left_before, left_after, remaining - weight
    raise AssertionError("the last source takes all that is left")


@functools.lru_cache(maxsize=64)  # a batch draws from one epoch of each source, or from two
def _permutation(seed: int, name: str, epoch: int, length: int) -> np.ndarray:
    """The order of a source's rows in one of its epochs."""
    # The legacy generator, for its stream is the one that NumPy promises never to change.
    return np.random.RandomState(int(files.fingerprint([seed, name, epoch], length=8), 16)).permutation(length)


def _tag(row: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {**row, "source": np.int32(index)}


def _whole_weights(sources: Sequence[Source]) -> list[int]:
    """The smallest whole numbers in the proportion of the weights as written in decimals, after checks."""
    if not sources:
        raise UserError("mixture: no sources; name at least one")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"mixture: two sources have one name in {names}; names must be unique")
    lengths = {source.name: source.rows.row_length for source in sources}
    if len(set(lengths.values())) > 1:
        raise UserError(f"mixture: the sources have different row lengths, {lengths}; pack them alike")
    for source in sources:
        if not 0 < source.weight < math.inf:
            raise UserError(f"mixture: source '{source.name}' has weight {source.weight}; it must be above 0")
    exact = [fractions.Fraction(str(source.weight)) for source in sources]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // math.gcd(*whole) for weight in whole]
