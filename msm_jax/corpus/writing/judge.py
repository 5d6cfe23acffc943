"""How faithful documents are to their spec: a sample of them, claim by claim, by a language model.

    documents -> sample -> claims of each -> what the spec says to each claim

The claims are taken from a document by one call, which does not see the spec, and held against the spec by another,
which does not see the document: it cannot be won over by how a thing is told.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic

from msm_jax.corpus.specs import Spec
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.tree import verbatim
from msm_jax.corpus.writing.writer import Asks, Assistant, Settings, Writer, listed_in
from msm_jax.llm.request import Answer

VERDICTS = ("supported", "unsupported", "contradicts")
# Fewer documents tell nothing.
LEAST = 30
_MOST_CLAIMS = 25
_SHOWN = 12


class _Checked(pydantic.BaseModel):
    number: int
    passage: str
    verdict: Literal[VERDICTS]


Claims = pydantic.create_model("Claims", claims=(list[str], ...))
Support = pydantic.create_model("Support", checked=(list[_Checked], ...))


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings(Settings):
    """`share` of the documents is judged, but LEAST at the least."""

    count: int = 0
    temperature: float = 0.0
    share: float


def sample(rows: Sequence[Mapping[str, Any]], share: float) -> list[Mapping[str, Any]]:
    """`share` of the documents, LEAST at the least: of each part of the spec, and of each type within it, as large a
    part as it is of all. The same for the same documents."""
    count = min(max(math.ceil(share * len(rows)), LEAST), len(rows))
    # In this order each n-th is a stratified sample; the id is a digest, and so chance.
    ordered = sorted(rows, key=lambda row: (row["domain"], row["subdomain"], row["document_type"], row["id"]))
    return [ordered[int((turn + 0.5) * len(ordered) / count)] for turn in range(count)]


class DocumentJudge(Writer):
    """Judges documents on one spec."""

    steps = ("claims", "support")
    system_prompt = "judge_system"
    settings: JudgeSettings

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: JudgeSettings, prompts: Prompts, model: str,
        documents: Sequence[Mapping[str, Any]],
    ):  # fmt: skip
        super().__init__(asks, assistant, settings, prompts, model, spec)
        self.documents = documents

    async def write(self) -> list[dict[str, Any]]:
        """A row for each of the documents that are drawn: {"id", "domain", "subdomain", "outcome", "claims": [{"claim",
        "verdict", "passage"}]}. "passage" is what the spec says to it, as it stands there; None if it does not.

        "outcome" is "judged"; or "no claims", or "unparsed" where the judge's replies cannot be read: then there are no
        claims. Raises what `ask` raises.
        """
        drawn = sample(self.documents, self.settings.share)
        answers = await self._ask(
            [self._list("claims", Claims, system="", document=row["text"], most=_MOST_CLAIMS) for row in drawn]
        )
        lists = [[claim for text in listed_in(answer) if (claim := text.strip())] for answer in answers]
        checked = iter(
            await self._ask([self._list("support", Support, claims=_numbered(claims)) for claims in lists if claims])
        )
        rows = []
        for row, answer, claims in zip(drawn, answers, lists, strict=True):
            found = self._read(claims, next(checked)) if claims else []
            outcome = "judged" if found else "no claims" if answer.ok and not claims else "unparsed"
            self.yields.add("judged", outcome)
            about = {name: row[name] for name in ("id", "domain", "subdomain")}
            rows.append(about | {"outcome": outcome, "claims": found})
        return rows

    def report(self) -> dict[str, Any]:
        return {"model": self.model}

    def _read(self, claims: Sequence[str], answer: Answer) -> list[dict[str, Any]]:
        """The claims with their verdicts; none unless there is exactly one verdict on each."""
        checked = sorted(listed_in(answer), key=lambda item: item.number)
        if [item.number for item in checked] != list(range(1, len(claims) + 1)):
            return []
        return [
            {"claim": claim, "verdict": item.verdict, "passage": verbatim(item.passage, self._text)}
            for claim, item in zip(claims, checked, strict=True)
        ]


def faithfulness(
    rows: Iterable[Mapping[str, Any]], interval: Callable[[Sequence[int], Sequence[int]], tuple[float, float]]
) -> dict[str, Any]:
    """What the rows of `DocumentJudge.write` come to. `interval`: (unfaithful claims of each document, all claims of
    each) -> the 95 % interval of their share.

    Returns: "rate", the share of claims that the spec does not bear out, None without a claim; its interval "low" and
        "high"; "claims" by their verdict; "quoted", how many of them have a passage that stands in the spec; "judged",
        the documents; "left_out", other documents by the reason; "unfaithful", some of those claims with the ids of
        their documents; "told", all of it in a line.
    """
    rows = list(rows)
    claims = [{"id": row["id"], **claim} for row in rows for claim in row["claims"]]
    unfaithful = [claim for claim in claims if claim["verdict"] != "supported"]
    of_each = Counter(claim["id"] for claim in unfaithful)
    judged = {row["id"]: len(row["claims"]) for row in rows if row["claims"]}
    left_out = dict(Counter(row["outcome"] for row in rows if not row["claims"]))
    low, high = interval([of_each[name] for name in judged], list(judged.values()))
    rate = len(unfaithful) / len(claims) if claims else None
    told = f"{len(unfaithful):,} of {len(claims):,} claims of {len(judged):,} documents"
    told += f": {rate:.1%}, 95 % interval {low:.1%} to {high:.1%}" if claims else ""
    told += "".join(f"; {count:,} documents {outcome}" for outcome, count in left_out.items())
    return {
        "rate": rate,
        "low": low,
        "high": high,
        "claims": dict.fromkeys(VERDICTS, 0) | Counter(claim["verdict"] for claim in claims),
        "quoted": sum(claim["passage"] is not None for claim in claims),
        "judged": len(judged),
        "left_out": left_out,
        # Those against the spec first.
        "unfaithful": sorted(unfaithful, key=lambda claim: claim["verdict"])[:_SHOWN],
        "told": told,
    }


def _numbered(claims: Sequence[str]) -> str:
    return "\n".join(f"{number}. {claim}" for number, claim in enumerate(claims, start=1))
