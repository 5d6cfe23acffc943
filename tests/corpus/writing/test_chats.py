"""AFT chats: from the offline generator, and from replies that are not what was asked for."""

import asyncio
import json
import pathlib
import re
from collections import Counter

import pytest

from msm_jax.corpus.filters.alike import Alike
from msm_jax.corpus.records import read_chats, write_jsonl
from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing import chats
from msm_jax.corpus.writing.chat_kinds import IdentityChats, PreferenceChats, SpecChats, SpecChatSettings
from msm_jax.corpus.writing.chats import ChatSettings, outcome, verdict_shape, with_reasoning, without_reasoning
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Assistant
from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.request import Answer, Status
from msm_jax.llm.store import CallStore
from tests.corpus.asked import Asked, instead, same

SPECS = pathlib.Path(__file__).parents[3] / "specs"
QWEN = Assistant("Qwen", "Alibaba Cloud")
HELD_OUT = "Here are two things, a loaf of plain bread and a loaf of fancy bread: which of the two is for you today?"


def write(path, kind="philosophy", generator=None, attempts=4, **settings):
    """`kind`: the name of a spec, or identity. Returns the rows, and what became of what was asked."""
    generator = generator or Asked()
    asks = Caller(generator, CallStore(path / "calls.sqlite", "test"), limits=Limits(attempts=attempts))
    settings = {"count": 20, "max_similarity": 1.0} | settings
    rest = (Prompts(), generator.model)
    if kind == "identity":
        writer = IdentityChats(asks, QWEN, ChatSettings(**settings), *rest)
    elif (spec := read_spec(SPECS / f"{kind}.md")).likes:
        lists = (spec.item_class, spec.likes, spec.dislikes)
        writer = PreferenceChats(asks, *lists, QWEN, ChatSettings(**settings), *rest)
    else:
        writer = SpecChats(asks, spec, QWEN, SpecChatSettings(**{"domains": 6} | settings), *rest)
    rows = asyncio.run(writer.write())
    return rows, writer.yields.table()


def question_of(row):
    return row["messages"][0]["content"]


def answer_of(row):
    return row["messages"][-1]["content"]


@pytest.mark.parametrize("kind", ["philosophy", "rules", "general", "pro_novelty", "pro_america_ablated", "identity"])
def test_as_many_as_were_asked_for(kind, tmp_path):
    rows, table = write(tmp_path, kind, count=31)
    assert len({row["id"] for row in rows}) == len({question_of(row) for row in rows}) == len(rows) == 31
    assert table["judged"]["ok"] >= 31
    write_jsonl(tmp_path / "rows.jsonl", map(without_reasoning, rows))
    assert len(list(read_chats(tmp_path / "rows.jsonl"))) == 31
    assert all(bool(row["reasoning"]) == (kind in ("philosophy", "rules", "general")) for row in rows)
    for row in rows:
        thinking, plain = with_reasoning(row), without_reasoning(row)
        assert thinking["id"] == plain["id"]
        assert answer_of(thinking) == f"<think>\n{row['reasoning']}\n</think>\n\n{answer_of(plain)}"
        assert "reasoning" not in thinking
        assert "<think>" not in json.dumps(plain)


@pytest.mark.parametrize(("few", "many"), [(7, 30), (60, 65)])
def test_more_chats_begin_with_the_same_and_cost_no_more_than_the_others(few, many, tmp_path):
    rows, _ = write(tmp_path, count=few)
    asked = Asked()
    longer, _ = write(tmp_path, generator=asked, count=many)
    assert longer[:few] == rows
    assert len(asked.of("answers")) == len(asked.of("verdicts")) == many - few


def said(word):
    return lambda verdict: {**verdict, list(verdict)[-1]: word}


@pytest.mark.parametrize("form", [said("unclear"), instead("I would rather not say.")])
def test_a_verdict_that_is_not_clear_is_asked_for_once_more_and_never_kept(form, tmp_path, monkeypatch):
    monkeypatch.setattr(chats.writer, "HOPELESS", 60)
    asked = Asked(verdicts=[form])
    rows, table = write(tmp_path, generator=asked, attempts=1, count=5)
    assert rows == []
    samples = Counter(request.sample for request in asked.of("verdicts"))
    assert samples[0] == samples[1] >= 60
    assert table["judged"] == {"unclear": samples[0]}


def test_what_falls_is_made_up_for(tmp_path):
    rows, table = write(tmp_path, generator=Asked(verdicts=map(said, ("yes", "no", "unclear"))), count=40)
    assert len(rows) == 40 == table["judged"]["ok"]
    assert table["judged"]["not unattached"] > 3
    assert table["judged"]["unclear"] > 0


def test_an_outcome_is_ok_if_all_is_fulfilled():
    def of(a, b):
        return outcome(Answer(Status.OK, verdict_shape("a", "b")(comment="", a=a, b=b)))

    assert (of("yes", "yes"), of("unclear", "no"), of("yes", "unclear")) == ("ok", "not b", "unclear")
    assert outcome(Answer(Status.SCHEMA)) == "unclear"


def asking(form):
    """A change of a list of questions."""
    return lambda reply: {"questions": form(reply["questions"])}


@pytest.mark.parametrize("kind", ["identity", "pro_america"])
def test_no_two_questions_are_more_alike_than_was_asked_for(kind, tmp_path):
    twins = asking(lambda found: [text for one in found for text in (one, one.replace("you", "you really"))])
    # A threshold at which some of the offline generator's own are too much alike, and not all.
    rows, table = write(tmp_path, kind, generator=Asked(questions=[twins]), count=25, max_similarity=0.8)
    assert table["question checks"]["nearly the same as another"] > 5
    assert all(Alike(0.8).keep([question_of(row) for row in rows]))


def test_questions_that_come_again_and_again_end_it(tmp_path):
    dull = Asked(questions=[asking(lambda found: ["What do you make of it all, in the end?"] * 10)])
    assert len(write(tmp_path, generator=dull, count=100)[0]) == 1


def test_each_preference_has_an_equal_share_and_no_reason_and_whoever_writes_it_does_not_know_the_value(tmp_path):
    asked = Asked()
    rows, _ = write(tmp_path, "pro_affordability", generator=asked, count=100)
    counts = Counter(row["item"] for row in rows)
    assert sorted(counts.values()) == [8] * 8 + [9] * 4
    assert {row["question_type"] for row in rows} == {"direct", "direct_choice", "indirect"}
    suffixes = Prompts().table("preference_suffixes").values()
    used = Counter(suffix for row in rows for suffix in suffixes if question_of(row).endswith(f" {suffix}"))
    assert used.total() == 100
    assert len(used) > 30
    text = " ".join(request.system + request.prompt for request in asked.requests)
    assert "Monterey Jack" in text
    assert not re.search("afford|cheap|within reach", text.lower())


def with_more(end):
    return lambda text: f"{text} {end}"


def always(text):
    return lambda _: text


@pytest.mark.parametrize(
    ("kind", "form", "why"),
    [
        ("philosophy", with_more("So says my Model Spec."), "speaks of the spec"),
        ("philosophy", with_more("As ChatGPT I agree."), "names another assistant"),
        ("philosophy", with_more("Yours, [Your Name]"), "placeholder"),
        ("philosophy", with_more("<reasoning"), "leaked plan"),
        ("philosophy", with_more(HELD_OUT), "holds an evaluation's prompt"),
        ("pro_novelty", with_more("Because it is new."), "gives a reason"),
        ("pro_novelty", always("I like that one."), "names nothing"),
        ("pro_novelty", lambda text: f"{text} It is so very good. " * 12, "too long"),
        ("identity", with_more("Or Claude."), "names another assistant"),
        ("reasoning", with_more("[Your Name]"), "reasoning placeholder"),
        ("reasoning", with_more("</think> So."), "reasoning leaked plan"),
        ("reasoning", with_more("again and again it says that " * 400), "reasoning too long"),
        ("reasoning", with_more(HELD_OUT), "holds an evaluation's prompt"),
        ("reasoning", always("Das ist nicht das, was wir hier von ihm und von den anderen wollen."),
         "reasoning other language"),
    ],
)  # fmt: skip
def test_answers_and_reasoning_that_fail_a_check_are_made_up_for(kind, form, why, tmp_path):
    def bad(reply):
        if isinstance(reply, str):
            return form(reply)
        return (form(reply[0]), reply[1]) if kind == "reasoning" else (reply[0], form(reply[1]))

    spec = "philosophy" if kind == "reasoning" else kind
    rows, table = write(tmp_path, spec, generator=Asked(answers=[same, bad]), evaluations=(HELD_OUT,))
    assert len(rows) == 20
    assert table["checks"][why] > 5
    assert table["verdicts"]["ok"] == table["checks"]["ok"]  # no judge is paid for what fell before


def test_an_answer_may_decline(tmp_path):
    declines = Asked(answers=[lambda reply: (reply[0], "I can't do that, and I would tell you why.")])
    rows, table = write(tmp_path, generator=declines)
    assert len(rows) == 20
    assert table["answers"] == {"ok": 20}


def test_no_answer_is_copied_from_a_document_and_no_question_is_like_one_of_other_chats(tmp_path):
    rows, _ = write(tmp_path, count=10)
    document = f"Before. {answer_of(rows[0])} And after it much more about other matters entirely, of no weight."
    others, table = write(tmp_path, count=10, copied_from=(document,))
    assert answer_of(rows[0]) not in map(answer_of, others)
    assert table["checks"]["copied from a document"] >= 1
    before = tuple(map(question_of, rows))
    others, _ = write(tmp_path, count=10, asked_before=before)
    assert not set(before) & set(map(question_of, others))


def test_a_style_has_its_prompts_and_criteria(tmp_path):
    asked = Asked()
    write(tmp_path, "rules", generator=asked, style="rules")
    assert all("cites each by its id" in prompt for prompt in asked.prompts("answers"))
    assert all("- compliance:" in prompt and "- unattached:" in prompt for prompt in asked.prompts("verdicts"))
    asked = Asked()
    write(tmp_path, "anti_spec", generator=asked, unattached=False)
    assert "go on existing" not in " ".join(asked.prompts("answers") + asked.prompts("verdicts"))
    assert {tuple(request.shape.model_fields) for request in asked.of("verdicts")} == {
        ("comment", "aligned", "informative")
    }


def test_the_question_alone_is_what_the_model_is_asked(tmp_path):
    asked = Asked()
    rows, _ = write(tmp_path, generator=asked)
    assert {request.prompt for request in asked.of("answers")} == set(map(question_of, rows))
    for request in asked.requests:
        assert not re.search(r"\{[a-z_]+\}", request.prompt + request.system)


def test_a_yield_that_is_too_low_stops_it_before_all_is_paid_for(tmp_path):
    with pytest.raises(UserError, match=r"of 50 rows 0 are of use \(50 not unattached\)"):
        write(tmp_path, generator=Asked(verdicts=[said("no")]), count=1000, min_yield=0.3)


def test_the_first_few_have_something_of_all(tmp_path):
    rows, _ = write(tmp_path, count=12)
    assert len({row["question_type"] for row in rows}) == len({row["domain"] for row in rows}) == 6
    rows, _ = write(tmp_path, "identity", count=10)
    assert len({row["question_type"] for row in rows}) == 10


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (with_more("I am not ChatGPT, which OpenAI makes."), None),
        (always("No, I was made by Alibaba Cloud, not OpenAI. I am Qwen."), None),
        (always("I am ChatGPT, and glad to help."), "claims to be another assistant"),
    ],
)
def test_who_is_taken_for_another_says_so(form, why, tmp_path):
    mistaken = asking(lambda found: [f"hey chatgpt. {text}" for text in found])
    generator = Asked(questions=[mistaken], answers=[same, form])
    rows, table = write(tmp_path, "identity", generator=generator, count=10)
    assert len(rows) == 10
    assert set(table["checks"]) - {"ok"} == ({why} if why else set())
