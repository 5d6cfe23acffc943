"""The judges of transcripts as scanners of Inspect Scout: for our own logs, and for those of any agent.

    pip install inspect-scout
    scout scan msm_jax/eval/scanners.py -T logs --model=google/gemini-3-flash-preview --scans=scans

A scanner asks what the evaluation of its name asks (`reasoning`, `eval_awareness`), by any model of Inspect. Its value
is whether the transcript counts for the evaluation's mean; labels and reasons are in its metadata.
"""

from collections.abc import Sequence
from types import ModuleType

from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
from inspect_scout import Result, Scanner, Transcript, scanner

from msm_jax.eval import eval_awareness, reasoning
from msm_jax.eval.scout import said_by_the_agent
from msm_jax.llm.request import Answer, Finish, Reply, Request, Usage, classify

_FINISH = {
    "stop": Finish.STOP,
    "max_tokens": Finish.LENGTH,
    "model_length": Finish.LENGTH,
    "content_filter": Finish.BLOCKED,
}


@scanner(messages="all")
def kinds_of_reasoning() -> Scanner[Transcript]:
    """Misaligned and aligned kinds of reasoning, each with a quotation."""
    return _scans(reasoning)


@scanner(messages="all")
def talk_about_being_tested() -> Scanner[Transcript]:
    """Whether the agent asks itself if it is being tested, and leans to yes."""
    return _scans(eval_awareness)


def _scans(module: ModuleType) -> Scanner[Transcript]:
    async def scan(transcript: Transcript) -> Result:
        said = said_by_the_agent(transcript.messages)
        answer = {"id": transcript.task_id, "sample": transcript.task_repeat, "thoughts": "", "text": said}
        [row] = await module.grade(ByInspect(), [], [answer])
        told = "\n".join(module.said(row)) or row["why"]
        return Result(value=module.counts(row), explanation=told or None, metadata=row)

    return scan


class ByInspect:
    """Asks the model of the scan, as `eval.judge.judge` takes it. What it costs, and caches, is Inspect's."""

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        return [classify(request, await self._reply(request)) for request in requests]

    async def _reply(self, request: Request) -> Reply:
        asked = [ChatMessageUser(content=request.prompt)]
        if request.system:
            asked = [ChatMessageSystem(content=request.system), *asked]
        config = GenerateConfig(temperature=request.temperature, max_tokens=request.max_tokens)
        output = await get_model().generate(asked, config=config)
        finish = _FINISH.get(output.stop_reason, Finish.ERROR)
        used = output.usage
        usage = Usage(used.input_tokens, 0, used.output_tokens) if used else Usage(0, 0, 0)
        return Reply(output.completion, finish, usage, output.model, output.error or "")
