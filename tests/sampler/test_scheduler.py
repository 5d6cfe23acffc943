"""The scheduler, with devices that are played: nothing is lost, no row leaks, and programs get what they need."""

import random

import pytest

from msm_jax.sampler.scheduler import Chunk, Copy, Sample, Scheduler, bucket

STEPS, CHUNK = 4, 64


class Devices:
    """What the devices would hold, and the promises that each piece of work needs."""

    def __init__(self):
        self.prompts: list[tuple | None] = []

    def work(self, scheduler, plan):
        if plan.reshape:
            shape, old = plan.reshape.shape, self.prompts
            assert len(plan.reshape.group_from) == shape.groups and len(plan.reshape.row_from) == shape.batch
            self.prompts = [None if place < 0 else old[place] for place in plan.reshape.group_from]
            for row, sample in enumerate(scheduler.rows):  # the rows that go on have their prompts
                if sample is not None and sample not in plan.admitted:
                    assert self.prompts[row // shape.rows] == (sample.adapter, sample.prompt)
        for work in plan.reading:
            if isinstance(work, Copy):
                adapter, tokens = self.prompts[work.source]
                assert work.length <= len(tokens)
                self.prompts[work.target] = adapter, tokens[: work.length]
                continue
            assert isinstance(work, Chunk) and len(work.tokens) <= work.size
            assert work.start + work.size <= scheduler.shape.prompt
            known = self.prompts[work.group]
            before = known[1][: work.start] if known and known[0] == work.adapter else ()
            assert len(before) == work.start
            self.prompts[work.group] = work.adapter, before + work.tokens
        for sample in plan.admitted:
            assert self.prompts[sample.row // scheduler.shape.rows] == (sample.adapter, sample.prompt)
            assert -(-sample.max_tokens // STEPS) * STEPS <= scheduler.shape.answer


def traffic(rng, requests):
    pool = [tuple(rng.randrange(50) for _ in range(rng.choice([1, 5, 63, 64, 65, 300]))) for _ in range(6)]
    pool += [pool[-1][:40] + tuple(rng.randrange(50) for _ in range(rng.randrange(1, 90))) for _ in range(4)]
    for _ in range(requests):
        prompt, adapter, n = rng.choice(pool), rng.randrange(3), rng.choice([1, 1, 2, 7, 20])
        yield [Sample(prompt, adapter, rng.randrange(1, 100)) for _ in range(n)]


@pytest.mark.parametrize(
    ("rows", "requests", "seed"), [(16, 2000, 0), (64, 300, 1), (1, 60, 2), (12, 300, 3), (6, 200, 4)]
)
def test_nothing_is_lost_and_no_row_leaks(rows, requests, seed):
    rng = random.Random(seed)
    scheduler, devices = Scheduler(rows, STEPS, CHUNK), Devices()
    arriving, everyone, borders, idle = list(traffic(rng, requests)), [], 0, 0
    admitted: dict[Sample, int] = {}
    while arriving or not scheduler.idle:
        for samples in [arriving.pop() for _ in range(min(len(arriving), rng.randrange(3)))]:
            everyone += samples
            scheduler.add(samples)
        for sample in everyone[-30:]:
            if not sample.ended and rng.random() < 0.01:  # nobody waits for it any more
                scheduler.end(sample)
        plan = scheduler.plan()
        devices.work(scheduler, plan)
        for sample in plan.admitted:
            admitted[sample] = admitted.get(sample, 0) + 1
        assert len({sample.row for sample in scheduler.live}) == len(scheduler.live) <= rows
        idle = 0 if plan or scheduler.idle else idle + 1
        assert idle < 2, "samples wait, and nothing is done"
        for sample in scheduler.live:
            sample.drawn += STEPS
            if sample.drawn >= sample.max_tokens or rng.random() < 0.05:
                scheduler.end(sample)
        borders += 1
    assert all(sample.ended for sample in everyone) and set(admitted.values()) == {1}
    assert not scheduler.waiting and not scheduler.live and borders < 40 * requests + 1000


def test_plans_depend_on_what_was_asked_alone():
    def plans():
        scheduler, found = Scheduler(16, STEPS, CHUNK), []
        for samples in traffic(random.Random(5), 40):
            scheduler.add(samples)
        while not scheduler.idle:
            plan = scheduler.plan()
            found.append((plan.reshape, tuple(plan.reading), tuple(sample.row for sample in plan.admitted)))
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
