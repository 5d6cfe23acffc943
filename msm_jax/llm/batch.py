"""Asks by batch jobs, at half the price: what they leave unanswered is asked one call at a time.

A job is entered in the store before it is sent, with its name, and its id when it is known. So it survives the process:
the next one collects it, and finds by its name a job whose answer to the sending was lost. A request goes into one job
at most. A job that ran out of time has answered a part, or nothing: the rest is asked singly.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from msm_jax.errors import Interrupted, UserError
from msm_jax.llm.caller import Caller
from msm_jax.llm.gemini import Gemini
from msm_jax.llm.request import Answer, Gone, Request, Unavailable
from msm_jax.llm.store import Job
from msm_jax.storage import files

# A job of a few requests saves cents, and may take a day.
_LEAST = 20
# Small jobs come back sooner, and lose less when one expires. The service takes 20 MB at once.
_MOST = 500
_MOST_BYTES = 15_000_000


class BatchCaller:
    """A `Caller` that `sends` what it can in batch jobs, or else only collects those that were sent before. It looks at
    them every `poll` seconds, and waits for one no longer than `deadline` seconds."""

    def __init__(self, caller: Caller, sends: bool = True, deadline: float = 26 * 3600.0, poll: float = 30.0):
        self._caller, self._sends, self._deadline, self._poll = caller, sends, deadline, poll
        self._batches: Gemini = caller.generator

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """As `Caller.ask`."""
        model = self._caller.generator.model
        distinct = {request.key(model): request for request in requests}
        waiting = {key: request for key, request in distinct.items() if not self._caller.known(request, key)}
        await self._settle_unsent()
        new = {key: request for key, request in waiting.items() if not self._caller.store.was_batched(key)}
        await self._work(_shards(new) if self._sends and len(new) >= _LEAST else [], waiting)
        return await self._caller.ask(requests)

    async def _settle_unsent(self) -> None:
        """Of jobs that an earlier process entered, and maybe sent: finds which were sent, and forgets the others."""
        for job in self._caller.store.jobs():
            if job.own and not job.id:
                if found := await self._patiently_found(job):
                    self._caller.store.name_job(job.name, found)
                else:
                    self._caller.store.drop_job(job.name)

    async def _patiently_found(self, job: Job) -> str | None:
        began = time.monotonic()
        while True:
            try:
                return await self._batches.find(job.name)
            except Unavailable as error:
                if self._caller.stopping or time.monotonic() - began > self._caller.limits.patience:
                    raise UserError(f"batch jobs cannot be looked up ({error}); run the same command again") from None
                await self._caller.sleep(error.after or self._poll)

    async def _work(self, shards: list[dict[str, Request]], waiting: Mapping[str, Request]) -> None:
        """Sends `shards` as jobs, as far and as soon as the budget and the service have room, and collects these jobs
        and those of before that hold any of the requests."""
        store, limits = self._caller.store, self._caller.limits
        shards = list(reversed(shards))
        heard = time.monotonic()
        while True:
            while shards and store.open_job(self._name(shards[-1]), shards[-1], self._most(shards[-1]), limits.budget):
                shards.pop()
            jobs = [job for job in store.jobs() if job.keys & waiting.keys() and (job.id or job.own)]
            if not jobs:
                break
            if self._caller.stopping:
                raise Interrupted(f"{len(jobs)} batch jobs go on without this process, and the next one collects them")
            why = None
            for job in jobs:
                if why and not job.id:  # a service that has no room for one has none for the next
                    continue
                try:
                    await (self._look(job, waiting) if job.id else self._submit(job, waiting))
                    heard = time.monotonic()
                except (UserError, OSError):
                    raise
                except Exception as error:
                    why = error if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
            if why and time.monotonic() - heard > limits.patience:
                raise UserError(f"no batch job is taken or answered ({why}); run the same command again later")
            if any(job.keys & waiting.keys() for job in store.jobs()):
                await self._caller.sleep(self._poll)
        if shards:
            raise UserError(self._caller.broke(self._most(shards[-1])))

    async def _submit(self, job: Job, requests: Mapping[str, Request]) -> None:
        # It may have been sent by a process that did not live to hear its id.
        found = await self._batches.find(job.name)
        shard = {key: requests[key] for key in sorted(job.keys)}
        self._caller.store.name_job(job.name, found or await self._batches.submit(job.name, shard))

    async def _look(self, job: Job, requests: Mapping[str, Request]) -> None:
        young = time.time() - job.created < self._deadline
        try:
            done = await self._batches.collect(job.id)
        except Gone:  # it was over, and its results are deleted
            self._caller.store.lose_job(job.name)
            return
        except Unavailable:
            if young:
                raise
            done = None  # its results cannot be read
        if done is None:
            if not young:
                await self._batches.cancel(job.id)
                self._caller.store.lose_job(job.name)
            return
        state, replies = done
        if not replies and state in ("EXPIRED", "CANCELLED"):  # nobody says what was done until then
            self._caller.store.lose_job(job.name)
            return
        times = Counter(key for key, _ in replies)
        replies = [(key if times[key] == 1 else None, reply) for key, reply in replies]  # of two, one is to another
        most = {key: self._caller.most(requests[key]) for key in job.keys & requests.keys()}
        dearest = max(most.values(), default=job.dollars)  # of what nobody counted, nor says what it is to
        charged = self._caller.price.charged
        paid = [(key, reply, charged(reply, most.get(key, dearest))) for key, reply in replies]
        self._caller.store.settle_job(job.name, paid)
        strays = [cost for key, _, cost in paid if key not in job.keys]
        if not strays:
            return
        told = (
            f"batch job {job.id}: {len(strays)} of {len(paid)} replies do not say which request they are to; they are "
            f"entered as spent, ${sum(strays):.2f}"
        )
        if self._sends and len(strays) == len(paid):  # the next jobs would be paid for in vain too
            raise UserError(f"{told}; set config.calls.service=flex, at the same price, and run the same command again")
        print(f"{told}, and asked again singly", file=sys.stderr, flush=True)

    def _name(self, shard: Mapping[str, Request]) -> str:
        return f"msm-{files.fingerprint(sorted(shard), length=24)}"

    def _most(self, shard: Mapping[str, Request]) -> float:
        return sum(self._caller.most(request) for request in shard.values())


def _shards(requests: Mapping[str, Request]) -> list[dict[str, Request]]:
    shards: list[dict[str, Request]] = []
    size = 0
    for key, request in requests.items():
        length = len(request.prompt.encode()) + len(request.system.encode()) + 2000
        if not shards or len(shards[-1]) >= _MOST or size + length > _MOST_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = request
        size += length
    return shards
