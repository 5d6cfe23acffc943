"""Asks by batch jobs, at half the price: what they leave unanswered is asked one call at a time.

A job is entered in the store before it is sent, with its name, and its id when it is known. So it survives the process:
the next one collects it, and finds by its name a job whose answer to the sending was lost. A request goes into one job
at most. A job that ran out of time has answered a part, or nothing: the rest is asked singly.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from msm_jax import files
from msm_jax.corpus.generators.caller import Caller
from msm_jax.corpus.generators.request import Answer, Reply, Request, Unavailable
from msm_jax.corpus.generators.store import Job
from msm_jax.errors import Interrupted, UserError

# A job of a few requests saves cents, and may take a day.
_LEAST = 20
# Small jobs come back sooner, and lose less when one expires. The service takes 20 MB at once.
_MOST = 500
_MOST_BYTES = 15_000_000


class Batches(Protocol):
    """What a generator with batch jobs does besides (`gemini.Gemini`)."""

    async def submit(self, name: str, requests: Mapping[str, Request]) -> str: ...

    async def find(self, name: str) -> str | None: ...

    async def collect(self, job_id: str) -> tuple[str, dict[str, Reply]] | None: ...

    async def cancel(self, job_id: str) -> None: ...


class BatchCaller:
    """A `Caller` that sends what it can in batch jobs.

    Args:
        caller: for single calls; its generator has batch jobs too.
        deadline: seconds after which a job is waited for no longer.
        poll: seconds between two looks at the jobs.
    """

    def __init__(self, caller: Caller, deadline: float = 26 * 3600.0, poll: float = 30.0):
        self._caller, self._deadline, self._poll = caller, deadline, poll
        self._batches: Batches = caller.generator

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """As `Caller.ask`."""
        model = self._caller.generator.model
        distinct = {request.key(model): request for request in requests}
        waiting = {key: request for key, request in distinct.items() if not self._caller.known(request, key)}
        self._enter({key: request for key, request in waiting.items() if not self._caller.store.was_batched(key)})
        await self._work(waiting)
        return await self._caller.ask(requests)

    def _enter(self, requests: Mapping[str, Request]) -> None:
        """Enters jobs of these requests.

        Raises: UserError if the budget has no room for one.
        """
        if len(requests) < _LEAST:
            return
        for shard in _shards(requests):
            name = f"msm-{files.fingerprint(sorted(shard), length=24)}"
            dollars = sum(self._most(request) for request in shard.values())
            if not self._caller.store.open_job(name, shard, dollars, self._caller.limits.budget):
                raise UserError(self._caller.broke(dollars))

    async def _work(self, requests: Mapping[str, Request]) -> None:
        """Sends the jobs that hold these requests, as the service takes them, and collects what they answer."""
        heard, limits = time.monotonic(), self._caller.limits
        while jobs := [job for job in self._caller.store.jobs() if self._is_of(job, requests)]:
            if self._caller.stopping:
                raise Interrupted(f"{len(jobs)} batch jobs go on without this process, and the next one collects them")
            why = None
            for job in jobs:
                if why and not job.id:  # a service that has no room for one has none for the next
                    continue
                try:
                    if job.id:
                        await self._look(job)
                    else:
                        await self._submit(job, requests)
                    heard = time.monotonic()
                except Unavailable as error:
                    why = error
            if why and time.monotonic() - heard > limits.patience:
                raise UserError(f"no batch job is taken or answered ({why}); run the same command again later")
            if self._caller.store.jobs():
                await self._caller.sleep(self._poll)

    def _is_of(self, job: Job, requests: Mapping[str, Request]) -> bool:
        """Whether it has some of these requests; one that was not sent, all that it is to be sent with."""
        return bool(job.keys & requests.keys()) and (bool(job.id) or job.keys <= requests.keys())

    async def _submit(self, job: Job, requests: Mapping[str, Request]) -> None:
        # It may have been sent by a process that did not live to hear its id.
        found = await self._batches.find(job.name)
        shard = {key: requests[key] for key in sorted(job.keys)}
        self._caller.store.name_job(job.name, found or await self._batches.submit(job.name, shard))

    async def _look(self, job: Job) -> None:
        done = await self._batches.collect(job.id)
        if done is None and time.time() - job.created < self._deadline:
            return
        if done is None:
            await self._batches.cancel(job.id)
            self._caller.store.lose_job(job.name)
            return
        _, replies = done
        price = self._caller.price
        self._caller.store.settle_job(
            job.name, {key: (reply, price.cost(reply.usage)) for key, reply in replies.items()}
        )

    def _most(self, request: Request) -> float:
        return self._caller.price.most(request, self._caller.generator.most_output(request))


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
