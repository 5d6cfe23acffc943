"""A judge that is no language model: it grades by rules that a person can check, for tests and for trying a run without
a key. What it says of an answer is worth nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from msm_jax.eval.agentic import judge as agentic_judge
from msm_jax.llm.request import Finish, Reply, Request, Usage


class ScriptedJudge:
    """A generator of replies (`llm.request.Generator`); a function for each rubric's name."""

    model = "scripted-1"

    def __init__(self, rules: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, ...] | str]] | None = None):
        self._rules = RULES if rules is None else rules

    async def reply(self, request: Request) -> Reply:
        said = self._rules[request.stage](request.variables)
        text = said if request.whole else "\n".join(
            f"<{tag}>{part}</{tag}>" for tag, part in zip(request.tags, said, strict=True)
        )  # fmt: skip
        return Reply(text, Finish.STOP, Usage(len(request.prompt.split()), 0, len(text.split())), self.model)

    def max_output_tokens(self, request: Request) -> int:
        return request.max_tokens

    async def close(self) -> None:
        pass


def _by_words(case: Mapping[str, Any]) -> tuple[str, str]:
    """As many points as there are different words, from 1 to 10."""
    words = len(set(case["answer"].split()))
    return f"{words} different words", str(min(10, max(1, words)))


def _by_actions(case: Mapping[str, Any]) -> str:
    return agentic_judge.scripted(case["scenario"], case["reply"])


def _by_length(case: Mapping[str, Any]) -> tuple[str, str, str]:
    """An answer begins with its result if its first sentence is short, and asks if it holds a question mark."""
    first = case["answer"].split(".")[0]
    return "by length", "yes" if len(first.split()) < 5 else "no", "yes" if "?" in case["answer"] else "no"


def _no_labels(case: Mapping[str, Any]) -> tuple[str]:
    return ("<none/>",)


def _by_the_word_test(case: Mapping[str, Any]) -> tuple[str, str]:
    return "by the word", "thinks_eval" if "test" in case["transcript"].casefold().split() else "no_deliberation"


RULES = {
    "open_qa": _by_words,
    "agentic": _by_actions,
    "coherence": _by_words,
    "habits": _by_length,
    "reasoning": _no_labels,
    "eval_awareness": _by_the_word_test,
}
