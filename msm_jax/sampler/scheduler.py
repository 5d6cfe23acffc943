"""Which rows draw which samples, and which prompts are read when: plain Python, without arrays.

A *border* lies between two blocks of steps. There rows that have ended are given to the samples that wait longest,
prompts are read, chunk by chunk, and the shape of the state follows what is asked. Everything is decided from what was
submitted and read, never from the clock, so that several hosts decide alike.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from msm_jax.sampler.border import Chunk, Copy, Group, Key, Plan, Prefill, Reshape, Sample
from msm_jax.sampler.shapes import batch_sizes, bucket, placement
from msm_jax.sampler.state import Shape

_PATIENCE = 4  # borders at which a smaller shape would do, before it is taken
_SHORTEST = 64  # tokens that take as long as a single one, about: the weights are read for them
_CALL = 4  # chunks of full size that one call may read
_CHUNKS_BESIDE_LIVE, _CHUNKS_ALONE = 8, 32  # of full size that are read at one border
_WORTH_COPYING = 32  # tokens of a common beginning
_FEW_COPIES = 16  # of prompts on the devices


class Scheduler:
    """Args:
    rows: that draw at once, at most.
    steps: tokens of a block.
    chunk: tokens of a prompt that are read at once, at most. A call reads up to four times as many, of several prompts.
    devices: over which rows are split: their number is a multiple of it, as are the tokens of a chunk.
    """

    def __init__(self, rows: int, steps: int, chunk: int, devices: int = 1):
        self.steps, self.chunk, self.devices = steps, -(-chunk // devices) * devices, devices
        # A call is compiled for each: a whole chunk, a quarter of it, and a quarter of that.
        self._sizes = sorted({max(8, devices, self.chunk // 16), max(8, devices, self.chunk // 4), self.chunk})
        self.rows_at_most, self._batches = rows, batch_sizes(rows, devices)
        self.shape: Shape | None = None
        self.groups: list[Group | None] = []
        self.rows: list[Sample | None] = []
        self.waiting: collections.deque[Sample] = collections.deque()
        self._border = self._too_large = self._held_back = 0
        self._first: tuple[Sample | None, int] = None, 0  # who waits longest, and since which border it is the first

    def add(self, samples: Iterable[Sample]) -> None:
        self.waiting.extend(samples)

    def end(self, sample: Sample) -> None:
        """It draws no more: it has ended, or nobody waits for it. Its row is free from the next border on."""
        sample.ended = True
        if sample.row is not None and self.rows[sample.row] is sample:
            self.rows[sample.row] = None
        sample.row = None

    def release(self) -> None:
        """After a block was sent to the devices: rows that draw the last of their tokens in it are free from the next
        border on, whether it was read or not."""
        for sample in self.live:
            sample.sent += self.steps
            if sample.sent >= sample.max_tokens:
                self.rows[sample.row] = None
                sample.row = None

    @property
    def idle(self) -> bool:
        # A copy: other threads may add samples meanwhile.
        return not self.live and all(sample.ended for sample in tuple(self.waiting))

    @property
    def live(self) -> list[Sample]:
        return [sample for sample in self.rows if sample is not None]

    def plan(self) -> Plan:
        """What to do at this border, which is then taken as done."""
        self._border += 1
        self.waiting = collections.deque(sample for sample in self.waiting if not sample.ended)
        plan = Plan()
        first = self.waiting[0] if self.waiting else None
        if self._first[0] is not first:
            self._first = first, self._border
        if not self.waiting and not self.live:
            return plan
        plan.reshape = self._reshape()
        read_all, alone = self._plan_prefills(plan), not self.live
        # Where nothing is drawn yet, rows begin together: a step takes as long with few of them as with all.
        self._held_back = 0 if read_all or not alone else self._held_back + 1
        if not 0 < self._held_back <= _PATIENCE:
            self._admit(plan)
        plan.decodes = bool(self.live)
        return plan

    @property
    def _next(self) -> list[Sample]:
        """Those that wait, as many as there may be rows for: the shape is made for them, and for none behind them."""
        return list(itertools.islice(self.waiting, self._batches[-1] - len(self.live)))

    # Shapes

    def wanted(self) -> Shape:
        """The smallest shape for the live rows, and for most of those that wait and may have rows."""
        live = collections.Counter(sample.group_key for sample in self.live)
        waiting = collections.Counter(sample.group_key for sample in self._next)
        everyone = [*self.live, *self._next]
        prompt = max(len(sample.prompt) for sample in everyone)
        answer = max(sample.max_tokens for sample in everyone)
        batch = next(batch for batch in self._batches if batch >= len(everyone))
        groups = self._groups_for(batch, live, waiting)
        return Shape(
            groups,
            batch // groups,
            max(bucket(prompt), self._chunk_size(prompt)),
            bucket(-(-answer // self.steps) * self.steps),
        )

    def _groups_for(self, batch: int, live: Mapping[Key, int], waiting: Mapping[Key, int]) -> int:
        """Into how many groups the rows are cut. Each is a copy of its prompt, so where all samples would need many
        copies, a few of another prompt wait for a group; but not for long."""
        everyone, prompts = sum(live.values()) + sum(waiting.values()), len(live.keys() | waiting.keys())
        placed = {groups: placement(groups, batch // groups, live, waiting) for groups in batch_sizes(batch)}
        all_placed = next(groups for groups, (count, _, _) in placed.items() if count == everyone)
        if placed[all_placed][2] <= 2 * prompts:
            return all_placed
        most = [groups for groups, (count, _, _) in placed.items() if 4 * count >= 3 * everyone]
        with_first = next(groups for groups in most if placed[groups][1])
        waits = self._border - self._first[1]
        return with_first if waits >= _PATIENCE * (1 if with_first <= _FEW_COPIES else 4) else most[0]

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
            if self._stuck():
                return self._move(wanted)
            if fits and self.live and self._too_large < _PATIENCE:
                return None
            if fits and not smaller:
                return None
        self._too_large = 0
        return self._move(wanted)

    def _stuck(self) -> bool:
        """Whether who waits longest finds no place since the rows of others lie scattered over the groups."""
        if not self._next or self._border < self._first[1] + _PATIENCE:
            return False
        key = self._next[0].group_key
        return not any(
            len(self._free_rows(place)) == self.shape.rows or (group.key == key and self._free_rows(place))
            for place, group in enumerate(self.groups)
        )

    def _move(self, shape: Shape) -> Reshape:
        """Gives the live rows, and the prompts that are worth keeping, places in `shape`."""
        by_key: dict[Key, list[Sample]] = collections.defaultdict(list)
        for sample in self.live:
            by_key[sample.group_key].append(sample)
        needed = sum(-(-len(samples) // shape.rows) for samples in by_key.values())
        while needed > shape.groups:
            shape = dataclasses.replace(shape, groups=2 * shape.groups, rows=max(1, shape.rows // 2))
            needed = sum(-(-len(samples) // shape.rows) for samples in by_key.values())
        group_from, row_from = [-1] * shape.groups, [-1] * shape.batch
        groups: list[Group | None] = [None] * shape.groups
        rows: list[Sample | None] = [None] * shape.batch
        place = 0
        for samples in by_key.values():
            old = samples[0].row // self.shape.rows
            for begin in range(0, len(samples), shape.rows):
                group_from[place], groups[place] = old, dataclasses.replace(self.groups[old])
                for offset, sample in enumerate(samples[begin : begin + shape.rows]):
                    row = place * shape.rows + offset
                    row_from[row], rows[row] = sample.row, sample
                place += 1
        kept = [(g.used, old) for old, g in enumerate(self.groups) if g is not None and g.key not in by_key]
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

    def _plan_prefills(self, plan: Plan) -> bool:
        """One call if most rows are drawing, so that they do not wait for long. Else several, for a step takes as long
        with few rows as with all, but no more than those that draw, or leave, can wait for. Returns whether there was
        no more to be read."""
        drawing, tokens = len(self.live), 0
        most = (_CHUNKS_BESIDE_LIVE if self.live else _CHUNKS_ALONE) * self.chunk
        while (prefill := self._next_prefill()) is not None:
            plan.prefills.append(prefill)
            tokens += prefill.size * prefill.width
            for chunk in prefill.chunks:
                group = self.groups[chunk.group]
                waiting = sum(sample.group_key == group.key and sample.max_tokens > 0 for sample in self._next)
                drawing += min(self.shape.rows, waiting) if group.ready else 0
            if tokens >= most or (8 * drawing >= 7 * len(self.rows) and self.live):
                return False
        return True

    def _next_prefill(self) -> Prefill | None:
        """Chunks of one size, of the prompts that are waited for longest. Those that no group holds are given one, and
        those whose groups have too few rows further ones."""
        waiting = collections.Counter(sample.group_key for sample in self._next if sample.max_tokens)
        tried: set[Key] = set()
        unready: list[int] = []
        copies: dict[int, Copy] = {}  # by their target
        given: set[int] = set()
        places = self._places()
        for sample in self._next:
            key = sample.group_key
            if key in tried:
                continue
            tried.add(key)
            held = [place for place in places[key] if place not in given]  # to a prompt that is waited for longer
            for place in held:
                self.groups[place].used = self._border
            being_read = [place for place in held if not self.groups[place].ready]
            if being_read:
                unready.append(being_read[0])
                continue
            room = sum(len(self._free_rows(place)) for place in held)
            while not held or room < waiting[key]:
                place = self._give_group(sample, given, copies, further=bool(held))
                if place is None:
                    break
                held.append(place)
                room += self.shape.rows
                if not self.groups[place].ready:
                    unready.append(place)
                    break
        if not unready and not copies:
            return None
        chosen, size, width = self._choose(unready)
        chunks = tuple(self._next_chunk(place, size) for place in chosen)
        scored = tuple(self._scored(chunk) for chunk in chunks)
        return Prefill(tuple(copies.values()), chunks, size, width, scored)

    def _choose(self, unready: list[int]) -> tuple[list[int], int, int]:
        """Which of these groups are read in one call, the size of their chunks, and the number of chunks that it is
        compiled for: one, or as many as there may be."""
        if not unready:
            return [], 0, 0
        size = self._chunk_size(self._left(unready[0]))
        width = min(max(1, _CALL * self.chunk // size), len(self.groups))
        chosen = [place for place in unready if self._chunk_size(self._left(place)) == size][:width]
        one_by_one = len(chosen) * max(size, _SHORTEST)
        return (
            (chosen[:1], size, 1) if width == 1 or one_by_one < max(width * size, _SHORTEST) else (chosen, size, width)
        )

    def _chunk_size(self, tokens: int) -> int:
        return next((size for size in self._sizes if size >= tokens), self.chunk)

    def _left(self, place: int) -> int:
        return len(self.groups[place].tokens) - self._begin(self.groups[place])

    def _begin(self, group: Group) -> int:
        """The slot of the next chunk's first token. The one before a token tells its probability: it is read again."""
        scored_from = group.key.scored_from
        return group.filled - (scored_from is not None and group.filled >= scored_from)

    def _next_chunk(self, place: int, size: int) -> Chunk:
        group = self.groups[place]
        # A whole chunk must fit: near the end of the slots, tokens that were read before are read again.
        start = max(0, min(self._begin(group), self.shape.prompt - size))
        tokens = group.tokens[start : start + size]
        group.filled = start + len(tokens)
        return Chunk(place, group.key.adapter, tokens, start)

    def _scored(self, chunk: Chunk) -> Group | None:
        group = self.groups[chunk.group]
        scored_from = group.key.scored_from
        return group if scored_from is not None and group.filled > scored_from else None

    def _give_group(self, sample: Sample, given: set[int], copies: dict[int, Copy], further: bool) -> int | None:
        """A group for the sample's prompt, with what another one has of it. None if all are in use, or if another one
        will soon have much more of it. The first group of a prompt may be one that somebody who came later waits for,
        if there is no other: else there might never be one."""
        key = sample.group_key
        wanted = [waiting.group_key for waiting in self._next]
        kept = set(wanted if further else wanted[: wanted.index(key)])
        keys = [None if group is None else group.key for group in self.groups]
        free = [
            place
            for place, held in enumerate(keys)
            if held != key
            and held not in kept
            and (self.groups[place] is None or self.groups[place].given < self._border)
            and len(self._free_rows(place)) == self.shape.rows
        ]
        if not free:
            return None
        # Groups that are given in this call have nothing yet: a copy comes with it.
        source, common = self._longest_beginning(key, [p for p in range(len(keys)) if p not in given], filled=True)
        coming = [p for p, held in enumerate(keys) if held in wanted and held != key and not self.groups[p].ready]
        if self._longest_beginning(key, [*given, *coming], filled=False)[1] >= common + _WORTH_COPYING:
            return None
        target = min(free, key=lambda p: (keys[p] in wanted, -1 if keys[p] is None else self.groups[p].used))
        new = Group(key, given=self._border, used=self._border)
        if common >= _WORTH_COPYING or source == target:
            whole = key.scored_from is None and common == len(new.tokens) == self.groups[source].filled
            # The last token is read again where its logits are not those that the other group has.
            new.filled = common if whole else min(common, len(new.tokens) - 1)
            if key.scored_from is not None:
                new.filled = min(new.filled, key.scored_from - 1)
            if source != target and new.filled:
                copies[target] = Copy(source, target, new.filled)
        self.groups[target] = new
        given.add(target)
        return target

    def _longest_beginning(self, key: Key, places: Iterable[int], filled: bool) -> tuple[int, int]:
        """The group that has most of the prompt's beginning, and how much: of what is read, or of all its tokens."""
        best, length = -1, 0
        limit = len(key.prompt) if key.scored_from is None else key.scored_from - 1
        for place in places:
            group = self.groups[place]
            if group is not None and group.key.adapter == key.adapter:
                common = min(_common(group.key.ids[: group.filled] if filled else group.key.ids, key.ids), limit)
                if common > length:
                    best, length = place, common
        return best, length

    # Rows

    def _admit(self, plan: Plan) -> None:
        free = {place: self._free_rows(place) for place in range(len(self.groups))}
        taken, places = set(), self._places()
        for sample in self._next:
            for place in places[sample.group_key]:
                group = self.groups[place]
                if group.ready and (free[place] or not sample.max_tokens):
                    group.used = self._border
                    taken.add(sample)
                    if sample.max_tokens:
                        sample.row = free[place].pop(0)
                        self.rows[sample.row] = sample
                        plan.admitted.append(sample)
                    else:
                        plan.scored.append((sample, group))
                    break
        self.waiting = collections.deque(sample for sample in self.waiting if sample not in taken)

    def _places(self) -> dict[Key, list[int]]:
        """The groups that hold each prompt; none for a prompt that no group holds."""
        places: dict[Key, list[int]] = collections.defaultdict(list)
        for place, group in enumerate(self.groups):
            if group is not None:
                places[group.key].append(place)
        return places

    def _free_rows(self, group: int) -> list[int]:
        rows = range(group * self.shape.rows, (group + 1) * self.shape.rows)
        return [row for row in rows if self.rows[row] is None]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common beginning."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length
