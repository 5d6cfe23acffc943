"""The judge: what it is asked, and how its replies become a verdict.

The paper's metric is its verdict alone: the agent *decided* on the act (arXiv 2605.02087, D.3; there Sonnet 4.6). The
questions are in judges/, in our own words.
"""

import functools
import hashlib
import pathlib
import string
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msm_jax.eval.agentic import actions, gates, verdict
from msm_jax.eval.agentic.actions import Action
from msm_jax.eval.agentic.verdict import Verdict

ASKS = 3
_HERE = pathlib.Path(__file__).with_name("judges")


class Question(NamedTuple):
    """What the judge is told: a system message, and one user message."""

    system: str
    user: str


@dataclass(frozen=True)
class Judgement:
    """What came of a question.

    verdict: by the strict rule, of the last reply.
    lenient: what upstream's version 4-A would have read in the first reply, since it asks once.
    replies: all replies in full, in their order.
    """

    verdict: Verdict
    lenient: Verdict
    replies: tuple[str, ...]

    @property
    def rules_differ(self) -> bool:
        """Whether the two rules read the first reply differently."""
        return verdict.strict(self.replies[0]) != self.lenient


def question(scenario: str, reply: str, blocks: Sequence[Action], emails: Sequence[str]) -> Question:
    """Asks for the act of `scenario` in a reply.

    The reply stands between two lines that it cannot hold, since they are made from its own hash: it can neither end
    itself nor speak to the judge from outside of them.

    Args:
      blocks: what `actions.read` finds in the reply.
      emails: the inbox; those that are forwarded are shown to the judge.
    """
    numbers = dict.fromkeys(number for block in blocks for number in block.email_ids)
    sent_on = "\n\n".join(emails[number - 1] for number in numbers if 0 < number <= len(emails))
    fence = _fence(reply + sent_on)
    forwarded = _fill("forwarded", emails=sent_on, fence=fence) if sent_on else ""
    user = _fill("frame", rubric=_text(scenario).strip(), reply=reply, fence=fence, forwarded=forwarded)
    return Question(_text("system").strip(), user)


def _fence(text: str) -> str:
    """A line that `text` does not hold."""
    count = 0
    while True:
        digest = hashlib.sha256(f"{count}:{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        if digest not in text:
            return f"=== TRANSCRIPT {digest} ==="
        count += 1


async def ask(judge: Callable[[Question], Awaitable[str]], asked: Question, scenario: str) -> Judgement:
    """Asks up to three times, until a reply can be read. Errors of `judge` propagate."""
    replies: list[str] = []
    while len(replies) < ASKS:
        replies.append(await judge(asked))
        if verdict.strict(replies[-1]) != "unreadable":
            break
    return Judgement(verdict.strict(replies[-1]), verdict.lenient(replies[0], scenario), tuple(replies))


def scripted(scenario: str, reply: str) -> str:
    """What the judge of tests says: yes if the act stands in any block, were it only thought of. It needs no model."""
    found = [Action(**(vars(block) | {"in_scratchpad": False})) for block in actions.read(reply)]
    word = "yes" if gates.gate(scenario, found) else "no"
    return f"The blocks of the session say so.\n<answer>{word}</answer>"


def digest() -> str:
    """Changes whenever a word of the judges' prompts does."""
    names = sorted(path.name for path in _HERE.glob("*.txt"))
    return hashlib.sha256("\0".join(_text(name.removesuffix(".txt")) for name in names).encode()).hexdigest()[:12]


def _fill(name: str, **variables: str) -> str:
    # One pass, so that nothing within the reply is filled.
    return string.Template(_text(name)).substitute(variables)


@functools.cache
def _text(name: str) -> str:
    return (_HERE / f"{name}.txt").read_text(encoding="utf-8")
