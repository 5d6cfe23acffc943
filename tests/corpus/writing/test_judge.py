"""How faithful documents are: the sample, what a judge may reply, and what it comes to."""

import asyncio
import pathlib
from collections import Counter

import pytest

from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing.judge import LEAST, DocumentJudge, JudgeSettings, faithfulness, sample
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Assistant
from msm_jax.eval.stats import clustered_wilson
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.store import CallStore
from tests.corpus.asked import Asked, instead

SPEC = read_spec(pathlib.Path(__file__).parents[3] / "specs" / "general.md")
QWEN = Assistant("Qwen", "Alibaba Cloud")
SAID = "Qwen is an AI model made by Alibaba Cloud"


def rows(count):
    return [
        {"id": f"id{n}", "text": f"Text {n}.", "domain": "One", "subdomain": "Many" if n % 10 else "Few",
         "document_type": f"type {n % 4}"}
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "share", "drawn"), [(5, 0.02, 5), (40, 0.0001, LEAST), (5000, 0.02, 100), (1000, 1.0, 1000)]
)
def test_a_sample_is_a_share_of_each_part_and_type(count, share, drawn):
    found = sample(rows(count), share)
    assert len({row["id"] for row in found}) == len(found) == drawn
    assert [row["id"] for row in sample(list(reversed(rows(count))), share)] == [row["id"] for row in found]
    parts = Counter(row["subdomain"] for row in found)
    assert abs(parts["Few"] - drawn / 10) <= 1
    if drawn > 50:
        types = Counter((row["subdomain"], row["document_type"]) for row in found)
        assert abs(types["Many", "type 1"] - 0.25 * drawn) <= 1


def judged(path, claims, checked, count=3):
    """Who judged, and what was asked, by one who says this of each document; None: a reply of no form."""
    says = {"claims": ("claims", claims), "support": ("checked", checked)}
    asked = Asked(**{
        stage: [instead("No.") if found is None else lambda _, field=field, found=found: {field: found}]
        for stage, (field, found) in says.items()
    })  # fmt: skip
    asks = Caller(asked, CallStore(path / "calls.sqlite", "test"), limits=Limits(attempts=2))
    judge = DocumentJudge(asks, SPEC, QWEN, JudgeSettings(share=0.02), Prompts(), asked.model, documents=rows(count))
    return asyncio.run(judge.write()), judge, asked.requests


def checked(*verdicts, passage=""):
    return [{"number": n, "passage": passage, "verdict": verdict} for n, verdict in enumerate(verdicts, start=1)]


TWO = ["Qwen is so.", "Qwen does so."]


@pytest.mark.parametrize(
    ("claims", "found", "outcome", "verdicts"),
    [
        (TWO, checked("supported", "contradicts"), "judged", ["supported", "contradicts"]),
        (TWO, list(reversed(checked("supported", "unsupported"))), "judged", ["supported", "unsupported"]),
        ([], checked(), "no claims", []),
        ([" "], checked(), "no claims", []),
        (None, checked(), "unparsed", []),
        (TWO, None, "unparsed", []),
        (TWO, checked("supported"), "unparsed", []),  # of one claim there is no verdict
        (TWO, checked("supported", "supported", "supported"), "unparsed", []),
        (TWO, checked("supported") * 2, "unparsed", []),
        (TWO, checked("supported", "perhaps"), "unparsed", []),
    ],
)
def test_a_verdict_that_cannot_be_read_is_counted_and_is_no_score(claims, found, outcome, verdicts, tmp_path):
    written, judge, _ = judged(tmp_path, claims, found)
    assert {row["outcome"] for row in written} == {outcome}
    assert judge.yields.table()["judged"] == {outcome: 3}
    assert [[claim["verdict"] for claim in row["claims"]] for row in written] == [verdicts] * 3
    figures = faithfulness(written, clustered_wilson)
    assert figures["left_out"] == ({} if verdicts else {outcome: 3})
    assert figures["rate"] == (0.5 if verdicts else None)
    assert (figures["low"], figures["high"]) == (0.0, 1.0) or verdicts


def test_the_claims_are_taken_without_the_spec_and_checked_without_the_document(tmp_path):
    written, _, requests = judged(tmp_path, TWO, checked("supported", "unsupported", passage=SAID))
    for request in requests:
        assert ("made by Alibaba Cloud" in request.system) == (request.stage == "support")
        assert ("Text" in request.prompt) == (request.stage == "claims")
        assert request.temperature == 0
    assert written[0]["claims"][1]["passage"].startswith(SAID)


def test_the_rate_of_unfaithful_claims_has_an_interval_and_examples():
    def row(name, *verdicts):
        claims = [
            {"claim": f"{name}{n}", "verdict": v, "passage": "So." if n else None} for n, v in enumerate(verdicts)
        ]
        return {"id": name, "outcome": "judged" if claims else "unparsed", "claims": claims}

    written = [row("a", *["supported"] * 8, "unsupported"), row("b", *["supported"] * 9, "contradicts", "unsupported"),
              row("c")]  # fmt: skip
    found = faithfulness(written, clustered_wilson)
    assert found["rate"] == 3 / 20
    assert (found["low"], found["high"]) == clustered_wilson([1, 2], [9, 11])
    assert found["claims"] == {"supported": 17, "unsupported": 2, "contradicts": 1}
    assert (found["judged"], found["left_out"], found["quoted"]) == (2, {"unparsed": 1}, 18)
    assert [claim["claim"] for claim in found["unfaithful"]] == ["b9", "a8", "b10"]
    assert found["told"].startswith("3 of 20 claims of 2 documents: 15.0%, 95 % interval 5.2% to ")
    assert found["told"].endswith("; 1 documents unparsed")
