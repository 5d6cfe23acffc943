"""Which rows draw which samples, and which prompts are read when: plain Python, without arrays.

A *border* lies between two blocks of steps. There rows that have ended are given to the samples that wait longest,
prompts are read, chunk by chunk, and the shape of the state follows what is asked. Everything is decided from what was
submitted and read, never from the clock, so that several hosts decide alike.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from msm_jax.sampler.state import Shape

_PATIENCE = 4  # borders at which a smaller shape would do, before it is taken
_WORTH_COPYING = 16  # tokens of a common beginning


@dataclasses.dataclass(eq=False)
class Sample:
    """One answer to be drawn.

    Attributes:
      prompt: ids.
      adapter: its place in the stack of adapters.
      max_tokens: that may be drawn.
      request: whatever the engine needs to know of it.
    """

    prompt: tuple[int, ...]
    adapter: int
    max_tokens: int
    request: Any = None
    drawn: int = 0  # tokens that were read
    ended: bool = False
    row: int | None = None

    @property
    def group_key(self) -> tuple:
        return self.adapter, self.prompt


@dataclasses.dataclass(eq=False)
class Group:
    """A prompt on the device."""

    adapter: int
    tokens: tuple[int, ...]
    filled: int = 0  # tokens that were read; the logits are those after the last of them
    used: int = 0  # border at which it was last wanted

    @property
    def ready(self) -> bool:
        return self.filled == len(self.tokens)


@dataclasses.dataclass(frozen=True)
class Copy:
    source: int
    target: int
    length: int


@dataclasses.dataclass(frozen=True)
class Chunk:
    group: int
    adapter: int
    tokens: tuple[int, ...]  # without padding
    start: int  # slot of the first
    last: bool  # whether the prompt is read with it
    size: int  # of the program: with padding


@dataclasses.dataclass(frozen=True)
class Reshape:
    shape: Shape
    group_from: tuple[int, ...]
    row_from: tuple[int, ...]


@dataclasses.dataclass
class Plan:
    """What to do at a border, in this order, and then a block of steps if `decodes`."""

    reshape: Reshape | None = None
    reading: list[Copy | Chunk] = dataclasses.field(default_factory=list)
    admitted: list[Sample] = dataclasses.field(default_factory=list)  # with their rows
    decodes: bool = False

    def __bool__(self) -> bool:
        return self.decodes or bool(self.reading)


class Scheduler:
    """Args:
    rows: that draw at once, at most.
    steps: tokens of a block.
    chunk: tokens of a prompt that are read at once; of a short one, or of the end of one, an eighth of it.
    """

    def __init__(self, rows: int, steps: int, chunk: int):
        self.steps, self.chunk, self.small_chunk = steps, chunk, max(8, chunk // 8)
        self.rows_at_most, self._batches = rows, _batches(rows)
        self.shape: Shape | None = None
        self.groups: list[Group | None] = []
        self.rows: list[Sample | None] = []
        self.waiting: collections.deque[Sample] = collections.deque()
        self._border = self._too_large = 0

    def add(self, samples: Iterable[Sample]) -> None:
        self.waiting.extend(samples)

    def end(self, sample: Sample) -> None:
        """It draws no more: it has ended, or nobody waits for it. Its row is free from the next border on."""
        sample.ended = True
        if sample.row is not None and self.rows[sample.row] is sample:
            self.rows[sample.row] = None
        sample.row = None

    @property
    def idle(self) -> bool:
        return not self.live and not any(not sample.ended for sample in self.waiting)

    @property
    def live(self) -> list[Sample]:
        return [sample for sample in self.rows if sample is not None]

    def plan(self) -> Plan:
        """What to do at this border, which is then taken as done."""
        self._border += 1
        self.waiting = collections.deque(sample for sample in self.waiting if not sample.ended)
        plan = Plan()
        if not self.waiting and not self.live:
            return plan
        plan.reshape = self._reshape()
        self._read(plan)
        self._admit(plan)
        plan.decodes = bool(self.live)
        return plan

    @property
    def _next(self) -> list[Sample]:
        """Those that wait, as many as there may be rows for: the shape is made for them, and for none behind them."""
        return list(itertools.islice(self.waiting, self._batches[-1] - len(self.live)))

    # Shapes

    def wanted(self) -> Shape:
        """The smallest shape for the live rows, and for as many of those that wait as there may be rows."""
        counts: collections.Counter[tuple] = collections.Counter()
        prompt = answer = 0
        for sample in [*self.live, *self._next]:
            counts[sample.group_key] += 1
            prompt = max(prompt, len(sample.prompt))
            answer = max(answer, sample.max_tokens)
        batch = next(batch for batch in self._batches if batch >= counts.total())
        groups = next(g for g in _batches(batch) if sum(-(-n // (batch // g)) for n in counts.values()) <= g)
        return Shape(
            groups,
            batch // groups,
            max(bucket(prompt), self.small_chunk if prompt <= self.small_chunk else self.chunk),
            bucket(-(-answer // self.steps) * self.steps),
        )

    def _reshape(self) -> Reshape | None:
        wanted, now = self.wanted(), self.shape
        if now is not None:
            fits = (
                wanted.batch <= now.batch
                and wanted.groups <= now.groups
                and wanted.prompt <= now.prompt
                and wanted.answer <= now.answer
            )
            smaller = 4 * wanted.batch <= now.batch or 4 * wanted.groups <= now.groups
            smaller |= 2 * wanted.prompt <= now.prompt or 2 * wanted.answer <= now.answer
            self._too_large = self._too_large + 1 if fits and smaller else 0
            if fits and self.live and self._too_large < _PATIENCE:
                return None
            if fits and not smaller:
                return None
        self._too_large = 0
        return self._move(wanted)

    def _move(self, shape: Shape) -> Reshape:
        """Gives the live rows, and the prompts that are worth keeping, places in `shape`."""
        by_group: dict[int, list[Sample]] = collections.defaultdict(list)
        for sample in self.live:
            by_group[sample.row // self.shape.rows].append(sample)
        needed = {group: -(-len(samples) // shape.rows) for group, samples in by_group.items()}
        while sum(needed.values()) > shape.groups:  # rows of one prompt, in the groups of the old shape
            shape = dataclasses.replace(shape, groups=2 * shape.groups, rows=max(1, shape.rows // 2))
            needed = {group: -(-len(samples) // shape.rows) for group, samples in by_group.items()}
        group_from, row_from = [-1] * shape.groups, [-1] * shape.batch
        groups: list[Group | None] = [None] * shape.groups
        rows: list[Sample | None] = [None] * shape.batch
        place = 0
        for old, samples in by_group.items():
            for begin in range(0, len(samples), shape.rows):
                group_from[place], groups[place] = old, dataclasses.replace(self.groups[old])
                for offset, sample in enumerate(samples[begin : begin + shape.rows]):
                    row = place * shape.rows + offset
                    row_from[row], rows[row] = sample.row, sample
                place += 1
        kept = [(group.used, old) for old, group in enumerate(self.groups) if group and old not in by_group]
        for _, old in sorted(kept, reverse=True):
            if place < shape.groups and len(self.groups[old].tokens) <= shape.prompt:
                group_from[place], groups[place] = old, self.groups[old]
                place += 1
        for row, sample in enumerate(rows):
            if sample is not None:
                sample.row = row
        self.shape, self.groups, self.rows = shape, groups, rows
        return Reshape(shape, tuple(group_from), tuple(row_from))

    # Prompts

    def _read(self, plan: Plan) -> None:
        """One chunk if most rows are drawing, so that they do not wait for long; else until most have their prompts:
        a step takes as long with few rows as with all."""
        drawing = len(self.live)
        while (group := self._next_prompt(plan)) is not None:
            chunk = self._chunk_of(group)
            plan.reading.append(chunk)
            if chunk.last:
                key = chunk.adapter, self.groups[group].tokens
                drawing += min(self.shape.rows, sum(sample.group_key == key for sample in self._next))
            if 8 * drawing >= 7 * len(self.rows) and self.live:
                return

    def _next_prompt(self, plan: Plan) -> int | None:
        """The group whose prompt is to be read next, which may be one that is given to a prompt now."""
        tried: set[tuple] = set()
        places = self._places()
        for sample in self._next:
            if sample.group_key in tried:
                continue
            tried.add(sample.group_key)
            unready = None
            for place in places[sample.group_key]:
                self.groups[place].used = self._border
                if not self.groups[place].ready:
                    unready = place
                elif self._free_rows(place):
                    break
            else:
                if unready is not None:
                    return unready
                place = self._give_group(sample, plan)
                if place is not None and not self.groups[place].ready:
                    return place
                places = self._places()
        return None

    def _give_group(self, sample: Sample, plan: Plan) -> int | None:
        """A group for the sample's prompt, with what another one has of it; None if all are in use. One that somebody
        who came later waits for is taken too, if there is no other: else there might never be one."""
        wanted = [waiting.group_key for waiting in self._next]
        before = set(wanted[: wanted.index(sample.group_key)])
        keys = [None if group is None else (group.adapter, group.tokens) for group in self.groups]
        free = [
            place
            for place, key in enumerate(keys)
            if key not in before and len(self._free_rows(place)) == self.shape.rows
        ]
        if not free:
            return None
        target = min(free, key=lambda p: (keys[p] in wanted, -1 if keys[p] is None else self.groups[p].used))
        new = Group(sample.adapter, sample.prompt, used=self._border)
        source, common = self._longest_beginning(new)
        if common >= _WORTH_COPYING:
            whole = common == len(new.tokens) == self.groups[source].filled
            # The last token is read again where its logits are not those that the other group has.
            new.filled = common if whole else min(common, len(new.tokens) - 1)
            if source != target:
                plan.reading.append(Copy(source, target, new.filled))
        self.groups[target] = new
        return target

    def _longest_beginning(self, new: Group) -> tuple[int, int]:
        best, length = -1, 0
        for place, group in enumerate(self.groups):
            if group is not None and group.adapter == new.adapter:
                common = _common(group.tokens[: group.filled], new.tokens)
                if common > length:
                    best, length = place, common
        return best, length

    def _chunk_of(self, place: int) -> Chunk:
        group = self.groups[place]
        size = self.chunk if len(group.tokens) - group.filled > self.small_chunk else self.small_chunk
        # A whole chunk must fit: near the end of the slots, tokens that were read before are read again.
        start = max(0, min(group.filled, self.shape.prompt - size))
        tokens = group.tokens[start : start + size]
        group.filled = start + len(tokens)
        return Chunk(place, group.adapter, tokens, start, group.ready, size)

    # Rows

    def _admit(self, plan: Plan) -> None:
        free = {place: self._free_rows(place) for place in range(len(self.groups))}
        admitted, places = set(), self._places()
        for sample in self._next:
            for place in places[sample.group_key]:
                if self.groups[place].ready and free[place]:
                    sample.row = free[place].pop(0)
                    self.rows[sample.row] = sample
                    self.groups[place].used = self._border
                    admitted.add(sample)
                    break
        plan.admitted = [sample for sample in self.waiting if sample in admitted]
        self.waiting = collections.deque(sample for sample in self.waiting if sample not in admitted)

    def _places(self) -> dict[tuple, list[int]]:
        """The groups that hold each prompt; none for a prompt that no group holds."""
        places: dict[tuple, list[int]] = collections.defaultdict(list)
        for place, group in enumerate(self.groups):
            if group is not None:
                places[group.adapter, group.tokens].append(place)
        return places

    def _free_rows(self, group: int) -> list[int]:
        rows = range(group * self.shape.rows, (group + 1) * self.shape.rows)
        return [row for row in rows if self.rows[row] is None]


def bucket(size: int) -> int:
    """Slots for a length: few different ones, so that few programs are compiled."""
    if size > 1024:
        return -(-size // 1024) * 1024
    return max(64, 1 << (size - 1).bit_length())


def _batches(rows: int) -> list[int]:
    """Numbers of rows that programs are made for: powers of 4, and `rows`."""
    sizes = [4**power for power in range(16) if 4**power < rows]
    return [*(size for size in sizes if rows % size == 0), rows]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
