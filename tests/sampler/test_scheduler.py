"""The scheduler, with devices that are played: nothing is lost, no row leaks, and programs get what they need."""

import collections
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msm_jax.sampler.border import Sample
from msm_jax.sampler.scheduler import Scheduler
from msm_jax.sampler.shapes import bucket

STEPS, CHUNK = 4, 64


class Devices:
    """What the devices would hold, and the promises that each piece of work needs."""

    def __init__(self, steps=STEPS):
        self.steps = steps
        self.prompts: list[tuple | None] = []  # of each group: its adapter, the tokens that were read
        self.ready: list[bool] = []  # whether its logits are those after all of the tokens
        self.rows: list = []  # of each row: who draws in it
        self.drawn: list[int] = []  # slots of each row that are filled

    def work(self, scheduler, plan):
        if plan.reshape:
            self.reshape(scheduler, plan.reshape)
        for read in plan.prefills:
            self.read(scheduler, read)
        for sample, group in plan.scored:
            self.check_read(scheduler, sample, group)
        for sample in plan.admitted:
            group, row = sample.row // scheduler.shape.rows, sample.row
            assert self.rows[row] is None or self.rows[row].ended, "a row is given away twice"
            assert self.prompts[group] == (sample.adapter, sample.prompt)
            self.check_scores(sample, scheduler.groups[group])
            self.rows[row], self.drawn[row] = sample, 0
        if plan.decodes:
            self.decode(scheduler)

    def reshape(self, scheduler, move):
        shape = move.shape
        assert len(move.group_from) == shape.groups and len(move.row_from) == shape.batch
        assert all(place < len(self.prompts) for place in move.group_from)
        taken = [row for row in move.row_from if row >= 0]
        assert len(set(taken)) == len(taken), "a row goes on twice"
        going_on = {sample for sample in self.rows if sample is not None and not sample.ended}
        assert going_on == {self.rows[row] for row in taken}, "a row is lost, or goes on though it has ended"
        self.prompts = [None if place < 0 else self.prompts[place] for place in move.group_from]
        self.drawn = [0 if row < 0 else self.drawn[row] for row in move.row_from]
        self.rows = [None if row < 0 else self.rows[row] for row in move.row_from]
        # What is behind the slots is cut off, of prompts whose groups were given to others.
        self.prompts = [prompt and (prompt[0], prompt[1][: shape.prompt]) for prompt in self.prompts]

    def read(self, scheduler, read):
        before = list(self.prompts)
        assert len({copy.target for copy in read.copies}) == len(read.copies)
        for copy in read.copies:  # all at once: none sees what another one brings
            adapter, tokens = before[copy.source]
            assert copy.source != copy.target and 0 < copy.length <= len(tokens)
            self.nobody_draws_in(copy.target)
            self.prompts[copy.target] = adapter, tokens[: copy.length]
        assert len({chunk.group for chunk in read.chunks}) == len(read.chunks) <= max(read.width, 0)
        assert read.size * read.width <= 4 * scheduler.chunk and len(read.scored) == len(read.chunks)
        for chunk, scored in zip(read.chunks, read.scored, strict=True):
            assert 0 < len(chunk.tokens) <= read.size
            assert chunk.start + read.size <= scheduler.shape.prompt, "a chunk needs more slots than there are"
            known = self.prompts[chunk.group]
            before = known[1][: chunk.start] if known and known[0] == chunk.adapter else ()
            assert len(before) == chunk.start, "slots before a chunk were not read"
            self.nobody_draws_in(chunk.group)
            self.prompts[chunk.group] = chunk.adapter, before + chunk.tokens
            if scored is not None:
                # The group may have been given away at the same border, to a prompt that is waited for longer.
                assert scored.key.adapter == chunk.adapter
                assert scored.key.prompt[chunk.start : chunk.start + len(chunk.tokens)] == chunk.tokens
                for slot in range(chunk.start + 1, chunk.start + len(chunk.tokens)):
                    if slot >= scored.key.scored_from:
                        scored.scores[slot] = chunk.tokens[slot - chunk.start]

    def check_read(self, scheduler, sample, group):
        place = next(place for place, held in enumerate(scheduler.groups) if held is group)
        assert not sample.max_tokens and self.prompts[place] == (sample.adapter, sample.prompt)
        self.check_scores(sample, group)
        scheduler.end(sample)

    def check_scores(self, sample, group):
        if sample.scored_from is not None:
            wanted = {slot: sample.prompt[slot] for slot in range(sample.scored_from, len(sample.prompt))}
            assert {slot: group.scores[slot] for slot in wanted} == wanted, "tokens were not scored"

    def nobody_draws_in(self, group):
        rows = len(self.rows) // len(self.prompts)
        drawing = self.rows[group * rows : (group + 1) * rows]
        assert all(sample is None or sample.ended for sample in drawing), "rows lose their prompt"

    def decode(self, scheduler):
        rows = len(self.rows) // len(self.prompts)
        drawing = [sample for sample in self.rows if sample is not None and not sample.ended]
        assert set(drawing) == set(scheduler.live) and len(drawing) == len(scheduler.live)
        for row, sample in enumerate(self.rows):
            if sample is None or sample.ended:
                continue
            assert scheduler.rows[row] is sample and sample.row == row
            group = scheduler.groups[row // rows]
            assert self.prompts[row // rows] == (sample.adapter, sample.prompt) and group.key == sample.group_key
            assert group.ready and self.drawn[row] + self.steps <= scheduler.shape.answer
            self.drawn[row] += self.steps


def traffic(rng, requests):
    """Of a few prompts, of which some begin alike, at two levels."""
    pool = [tuple(rng.randrange(50) for _ in range(rng.choice([1, 5, 63, 64, 65, 300]))) for _ in range(6)]
    pool += [pool[-1][:40] + tuple(rng.randrange(50) for _ in range(rng.randrange(1, 90))) for _ in range(4)]
    pool += [pool[-1][:60] + tuple(rng.randrange(50) for _ in range(rng.randrange(1, 90))) for _ in range(2)]
    pool += [pool[-1][:-1], pool[0] + (1,), pool[-1] + (2,) * 17]
    for _ in range(requests):
        prompt, adapter, n = rng.choice(pool), rng.randrange(3), rng.choice([1, 1, 2, 7, 20])
        scored_from = rng.choice([None, None, 1, rng.randrange(1, len(prompt) + 1)])
        most = rng.choice([0, 100, 100])
        yield [Sample(prompt, adapter, rng.randrange(1, 100) if most else 0, None, scored_from) for _ in range(n)]


def play(rng, rows, requests, steps=STEPS, chunk=CHUNK, cancels=0.01, at_once=2, devices=1, released=False):
    """All that was asked, and at how many borders each sample waited."""
    scheduler, devices = Scheduler(rows, steps, chunk, devices), Devices(steps)
    arriving, everyone, waits, idle = list(traffic(rng, requests)), [], {}, 0
    while arriving or not scheduler.idle:
        for samples in [arriving.pop() for _ in range(min(len(arriving), rng.randrange(at_once + 1)))]:
            everyone += samples
            scheduler.add(samples)
        for sample in everyone[-30:]:
            if not sample.ended and rng.random() < cancels:  # nobody waits for it any more
                scheduler.end(sample)
        plan = scheduler.plan()
        devices.work(scheduler, plan)
        for sample in [*plan.admitted, *(sample for sample, _ in plan.scored)]:
            assert sample not in waits, "a sample is drawn twice"
            waits[sample] = scheduler._border
        assert len({sample.row for sample in scheduler.live}) == len(scheduler.live) <= rows
        assert not set(scheduler.live) & set(scheduler.waiting)
        idle = 0 if plan or scheduler.idle else idle + 1
        assert idle < 2, "samples wait, and nothing is done"
        drawing = list(scheduler.live)
        if released:
            scheduler.release()
        for sample in drawing:
            sample.drawn += steps
            if sample.drawn >= sample.max_tokens or rng.random() < 0.05:
                scheduler.end(sample)
    assert all(sample.ended and sample.row is None for sample in everyone)
    blocks = sum(-(-sample.max_tokens // steps) for sample in everyone)
    assert not scheduler.live and scheduler._border < 40 * requests + blocks + 100
    assert cancels or len(waits) == len(everyone)
    return scheduler, everyone


def test_two_thousand_requests_are_all_answered():
    play(random.Random(0), 16, 2000)


@given(
    seed=st.integers(0, 2**32),
    rows=st.sampled_from([1, 3, 4, 6, 12, 16, 40, 64]),
    steps=st.sampled_from([1, 4, 16, 48]),
    chunk=st.sampled_from([8, 16, 64, 100, 256]),
    cancels=st.sampled_from([0.0, 0.01, 0.3]),
    at_once=st.sampled_from([1, 3, 40]),
    devices=st.sampled_from([1, 2, 8]),
    released=st.booleans(),
)
@settings(max_examples=50)
@example(seed=2749, rows=6, steps=1, chunk=8, cancels=0.0, at_once=40, devices=8, released=False)
def test_nothing_is_lost_and_no_row_leaks(seed, rows, steps, chunk, cancels, at_once, devices, released):
    scheduler, _ = play(random.Random(seed), rows * devices, 20, steps, chunk, cancels, at_once, devices, released)
    assert scheduler.shape.batch % devices == 0 and scheduler.chunk % devices == 0


@pytest.mark.parametrize("popular", [1, 3])
@pytest.mark.parametrize("busy", [0.5, 0.7, 1.0, 2.0])  # of the rows, by what the others draw and wait for
@pytest.mark.parametrize("rows", [4, 16, 64])
@pytest.mark.parametrize("ends", [1, 2, 5, 0.1])  # rows of the others that end at a border, or part of them
def test_a_rare_prompt_does_not_wait_for_popular_ones_that_were_asked_later(rows, popular, busy, ends):
    """They come without end, and take each row that is free; yet whoever waits longest has a place soon."""
    rng = random.Random(7)
    scheduler, devices = Scheduler(rows, STEPS, CHUNK), Devices()
    rare, first = None, 0
    for border in range(250):
        others = [sample for sample in [*scheduler.live, *scheduler.waiting] if sample is not rare]
        for _ in range(max(0, round(busy * rows) - len(others))):
            scheduler.add([Sample((rng.randrange(popular),) * 40, 0, 1000)])
        if rare is None or rare.ended:
            rare, first = Sample((99, border), 0, STEPS), 0
            scheduler.add([rare])
        devices.work(scheduler, scheduler.plan())
        if rare.row is None and scheduler.waiting[0] is rare and len(scheduler.live) < rows:
            first += 1
            assert first <= 18, "others are served before it, again and again"
        if rare in scheduler.live:
            scheduler.end(rare)
        live = scheduler.live
        some = [sample for sample in live if rng.random() < ends]
        for sample in some if ends < 1 else rng.sample(live, min(ends, len(live))):
            scheduler.end(sample)


@pytest.mark.parametrize("rows", [64, 256])
def test_each_of_several_prompts_with_many_samples_is_held_a_few_times(rows):
    """27 prompts of 300 samples must not have a copy of their prompt for each row, not even where one follows another;
    nor may rows idle for that, nor shapes come and go."""
    rng, scheduler, devices = random.Random(3), Scheduler(rows, STEPS, CHUNK), Devices()
    prompts = [tuple(rng.randrange(50) for _ in range(300)) for _ in range(5)]
    for prompt in prompts:
        scheduler.add([Sample(prompt, 0, rng.randrange(100, 300)) for _ in range(300)])
    copies, reshapes, busy = [], 0, []
    while not scheduler.idle:
        plan = scheduler.plan()
        devices.work(scheduler, plan)
        reshapes += plan.reshape is not None
        if len(scheduler.waiting) > rows:
            copies.append(scheduler.shape.groups)
            busy.append(len(scheduler.live) / rows)
        scheduler.release()
        for sample in list(devices.rows):
            if sample is not None and not sample.ended and sample.sent >= sample.max_tokens:
                scheduler.end(sample)
    assert max(copies) <= 16 and sum(copies) / len(copies) < 8 and reshapes < 60
    assert sum(busy) / len(busy) > 0.85


def test_samples_of_several_prompts_begin_together():
    """Also where a prompt needs more than one group for all of its samples."""
    scheduler, devices = Scheduler(64, STEPS, CHUNK), Devices()
    scheduler.add([Sample((adapter, 7) * 10, adapter, 40) for adapter in range(6) for _ in range(8)])
    for _ in range(2):
        devices.work(scheduler, scheduler.plan())
    assert len(scheduler.live) == 48


def test_rows_begin_together_where_nobody_draws_yet():
    scheduler, devices = Scheduler(64, STEPS, CHUNK), Devices()
    scheduler.add([Sample((number,) * CHUNK, 0, 40) for number in range(64)])
    blocks = []
    while not blocks:
        plan = scheduler.plan()
        devices.work(scheduler, plan)
        blocks += [len(scheduler.live)] if plan.decodes else []
    assert blocks == [64]


def test_those_who_draw_do_not_wait_for_all_prompts_that_are_read():
    scheduler, devices = Scheduler(64, STEPS, CHUNK), Devices()
    stream = Sample((1, 2, 3), 0, 4000)
    scheduler.add([stream])
    devices.work(scheduler, scheduler.plan())
    scheduler.add([Sample((number,) * 2000, 0, 40) for number in range(63)])
    for _ in range(20):
        plan = scheduler.plan()
        devices.work(scheduler, plan)
        assert plan.decodes and sum(len(c.tokens) for read in plan.prefills for c in read.chunks) <= 12 * CHUNK


def test_what_waits_longest_is_drawn_first():
    """Where prompts are equal."""
    scheduler, order = Scheduler(4, STEPS, CHUNK), []
    everyone = [Sample((1, 2), 0, 8) for _ in range(30)]
    scheduler.add(everyone)
    while not scheduler.idle:
        order += scheduler.plan().admitted
        for sample in scheduler.live:
            sample.drawn += STEPS
            if sample.drawn >= sample.max_tokens:
                scheduler.end(sample)
    assert order == everyone


def test_what_is_cancelled_while_it_waits_needs_no_row_and_its_prompt_is_not_read():
    scheduler = Scheduler(4, STEPS, CHUNK)
    samples = [Sample((1,) * 200, 0, 8), Sample((2, 3), 0, 8)]
    scheduler.add(samples)
    scheduler.end(samples[0])
    plan = scheduler.plan()
    assert plan.admitted == samples[1:] and [chunk.tokens for read in plan.prefills for chunk in read.chunks] == [
        (2, 3)
    ]
    scheduler.end(samples[1])
    assert scheduler.idle and not scheduler.plan() and not scheduler.waiting


def test_a_smaller_shape_keeps_the_rows_that_go_on_with_their_prompts():
    """It is taken after a few borders, not at the first at which it would do."""
    scheduler, devices = Scheduler(16, STEPS, CHUNK), Devices()
    scheduler.add([Sample((1,) * 300, 0, 8) for _ in range(6)])
    last = [Sample((2, 3), 1, 90), Sample((4,) * 30, 2, 90)]
    scheduler.add(last)
    shapes = []
    for _ in range(20):
        devices.work(scheduler, scheduler.plan())
        shapes.append(scheduler.shape)
        for sample in scheduler.live:
            sample.drawn += STEPS
            if sample.drawn >= sample.max_tokens:
                scheduler.end(sample)
    assert shapes[3].batch == 16 and shapes[3].prompt == 512
    assert shapes[-1].batch == 4 and shapes[-1].prompt == 64 and shapes[-1].answer == 128
    assert set(scheduler.live) == set(last) and len(set(shapes)) == 2


def test_common_beginnings_are_copied_and_not_read_again():
    scheduler, devices = Scheduler(16, STEPS, CHUNK), Devices()
    base, other = tuple(range(100)), tuple(range(60)) + (7, 7, 7)
    prompts = [(0, base), (0, base + (5,) * 30), (0, other), (0, other + (8,) * 20), (1, base)]
    read = collections.Counter()
    scheduler.add([Sample(prompt, adapter, 90) for adapter, prompt in prompts])
    for _ in range(30):
        plan = scheduler.plan()
        devices.work(scheduler, plan)
        for chunk in [chunk for work in plan.prefills for chunk in work.chunks]:
            read[chunk.adapter] += len(chunk.tokens)
    assert len(scheduler.live) == 5
    assert read[1] == 100, "keys and values of another adapter are not those of this one"
    assert 100 + 30 + 3 + 20 <= read[0] <= 100 + 30 + 3 + 20 + 4 * 8


def test_plans_depend_on_what_was_asked_alone():
    def plans():
        scheduler, found = Scheduler(16, STEPS, CHUNK), []
        for samples in traffic(random.Random(5), 40):
            scheduler.add(samples)
        while not scheduler.idle:
            plan = scheduler.plan()
            reading = [(read.copies, read.chunks, read.size, read.width) for read in plan.prefills]
            found.append((plan.reshape, reading, [sample.row for sample in plan.admitted]))
            for sample, _ in plan.scored:
                scheduler.end(sample)
            for sample in scheduler.live:
                sample.drawn += STEPS
                if sample.drawn >= sample.max_tokens:
                    scheduler.end(sample)
        return found

    assert plans() == plans()


def test_samples_of_one_prompt_share_one_group_and_different_prompts_have_one_each():
    scheduler = Scheduler(64, STEPS, CHUNK)
    scheduler.add([Sample((1, 2), 0, 8) for _ in range(64)])
    assert (scheduler.wanted().groups, scheduler.wanted().rows) == (1, 64)
    scheduler = Scheduler(64, STEPS, CHUNK)
    scheduler.add([Sample((1, number), 0, 8) for number in range(64)])
    assert (scheduler.wanted().groups, scheduler.wanted().rows) == (64, 1)
    scheduler = Scheduler(64, STEPS, CHUNK)
    scheduler.add([Sample((1,), 0, 8)])
    assert scheduler.wanted().batch == 1


def test_buckets_are_few():
    sizes = {bucket(size) for size in range(1, 8193)}
    assert sizes == {64, 128, 256, 512, 1024, *range(2048, 8193, 1024)} and all(bucket(s) >= s for s in range(1, 8193))
