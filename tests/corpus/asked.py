"""The offline generator, with some replies changed, and all that it was asked."""

import itertools

from msm_jax.corpus.writing.offline import Offline
from msm_jax.llm.request import Finish, Reply, Usage


class Asked(Offline):
    """`changes`: stage -> functions that make its replies of those of the offline generator, by turns."""

    def __init__(self, **changes):
        self.requests = []
        for stage, forms in changes.items():
            setattr(self, f"_{stage}", self._changed(getattr(self, f"_{stage}"), itertools.cycle(forms)))

    @staticmethod
    def _changed(original, forms):
        return lambda variables, rng: next(forms)(original(variables, rng))

    async def reply(self, request):
        self.requests.append(request)
        try:
            return await super().reply(request)
        except _Instead as instead:
            return instead.args[0]

    def prompts(self, stage):
        return [request.system + "\n" + request.prompt for request in self.of(stage)]

    def of(self, stage):
        return [request for request in self.requests if request.stage == stage]


class _Instead(Exception):
    pass


def instead(text, finish=Finish.STOP):
    """A change: this reply, whatever was asked."""

    def form(_):
        raise _Instead(Reply(text, finish, Usage(), Offline.model))

    return form


def same(reply):
    return reply


blocked = instead("", Finish.BLOCKED)
