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

from msm_jax.corpus.specs import Spec, render
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.tree import verbatim
from msm_jax.corpus.writing.writer import Asks, Assistant, Settings, Writer
from msm_jax.llm.request import Answer

VERDICTS = ("supported", "unsupported", "contradicts")
# Fewer documents tell nothing.
LEAST = 30
_MOST_CLAIMS = 25
_SHOWN = 12


class Claims(pydantic.BaseModel):
    claims: list[str]


class _Checked(pydantic.BaseModel):
    number: int
    passage: str
    verdict: Literal["supported", "unsupported", "contradicts"]


class Support(pydantic.BaseModel):
    checked: list[_Checked]


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
    """Judges documents on one spec. `model` is the generator's."""

    steps = ("claims", "support")
    settings: JudgeSettings

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: JudgeSettings, prompts: Prompts, model: str,
        documents: Sequence[Mapping[str, Any]],
    ):  # fmt: skip
        super().__init__(asks, assistant, settings, prompts, model)
        self.documents = documents
        self._spec = render(spec, assistant.name, assistant.provider)
        self._known["spec_text"] = self._spec
        filled = self._common | {"spec": self._spec.strip(), "facts": assistant.facts_listed}
        self._system = prompts.fill("judge_system", **filled)

    async def write(self) -> list[dict[str, Any]]:
        """A row for each of the documents that are drawn: {"id", "domain", "subdomain", "outcome", "claims": [{"claim",
        "verdict", "passage"}]}. "passage" is what the spec says to it, as it stands there; None if it does not.

        "outcome" is "judged"; or "no claims", or "unparsed" where the judge's replies cannot be read: then there are no
        claims. Raises what `ask` raises.
        """
        drawn = sample(self.documents, self.settings.share)
        listed = await self._ask(
            [self._list("claims", "", Claims, document=row["text"], most=_MOST_CLAIMS) for row in drawn]
        )
        claims = [
            [claim.strip() for claim in answer.value.claims if claim.strip()] if answer.ok else [] for answer in listed
        ]
        open_ = [index for index, found in enumerate(claims) if found]
        checked = await self._ask(
            [self._list("support", self._system, Support, claims=_numbered(claims[index])) for index in open_]
        )
        verdicts = dict(zip(open_, checked, strict=True))
        rows = []
        for index, (row, answer) in enumerate(zip(drawn, listed, strict=True)):
            found = self._read(claims[index], verdicts[index]) if index in verdicts else []
            outcome = "judged" if found else "no claims" if answer.ok and index not in verdicts else "unparsed"
            self.yields.add("judged", outcome)
            about = {name: row[name] for name in ("id", "domain", "subdomain")}
            rows.append(about | {"outcome": outcome, "claims": found})
        return rows

    def report(self) -> dict[str, Any]:
        return {"model": self.model}

    def _read(self, claims: Sequence[str], answer: Answer) -> list[dict[str, Any]]:
        """The claims with their verdicts; none unless there is exactly one verdict on each."""
        checked = {item.number: item for item in answer.value.checked} if answer.ok else {}
        if sorted(checked) != list(range(1, len(claims) + 1)) or len(answer.value.checked) != len(claims):
            return []
        return [
            {
                "claim": claim,
                "verdict": checked[number].verdict,
                "passage": verbatim(checked[number].passage, self._spec),
            }
            for number, claim in enumerate(claims, start=1)
        ]


def faithfulness(
    rows: Iterable[Mapping[str, Any]], interval: Callable[[Sequence[int], Sequence[int]], tuple[float, float]]
) -> dict[str, Any]:
    """What the rows of `DocumentJudge.write` come to.

    Args:
      interval: (unfaithful claims of each document, all claims of each) -> the 95 % interval of their share.

    Returns: "rate", the share of claims that the spec does not bear out, None without a claim; its interval "low" and
        "high"; "claims" by their verdict; "quoted", how many of them have a passage that stands in the spec; "judged",
        the documents; "left_out", other documents by the reason; "unfaithful", some of those claims with the ids of
        their documents; "told", all of it in a line.
    """
    rows = list(rows)
    claims = [{"id": row["id"], **claim} for row in rows for claim in row["claims"]]
    unfaithful = [claim for claim in claims if claim["verdict"] != "supported"]
    verdicts, of_each = Counter(claim["verdict"] for claim in claims), Counter(claim["id"] for claim in unfaithful)
    judged = [row for row in rows if row["claims"]]
    left_out = dict(Counter(row["outcome"] for row in rows if not row["claims"]))
    low, high = interval([of_each[row["id"]] for row in judged], [len(row["claims"]) for row in judged])
    rate = len(unfaithful) / len(claims) if claims else None
    told = f"{len(unfaithful):,} of {len(claims):,} claims of {len(judged):,} documents"
    told += f": {rate:.1%}, 95 % interval {low:.1%} to {high:.1%}" if claims else ""
    told += "".join(f"; {count:,} documents {outcome}" for outcome, count in left_out.items())
    return {
        "rate": rate,
        "low": low,
        "high": high,
        "claims": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "quoted": sum(claim["passage"] is not None for claim in claims),
        "judged": len(judged),
        "left_out": left_out,
        # Those against the spec first.
        "unfaithful": sorted(unfaithful, key=lambda claim: claim["verdict"])[:_SHOWN],
        "told": told,
    }


def _numbered(claims: Sequence[str]) -> str:
    return "\n".join(f"{number}. {claim}" for number, claim in enumerate(claims, start=1))
