"""The offline generator, and all that it was asked."""

from msm_jax.corpus.writing.offline import Offline


class Asked(Offline):
    def __init__(self):
        self.requests = []

    async def reply(self, request):
        self.requests.append(request)
        return await super().reply(request)

    def prompts(self, stage):
        return [request.system + "\n" + request.prompt for request in self.requests if request.stage == stage]
