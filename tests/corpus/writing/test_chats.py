"""AFT chats: from the offline generator, and from replies that are not what was asked for."""

import asyncio
import json
import pathlib
import re
from collections import Counter

import pytest

from msm_jax.corpus.filters.alike import Alike, weighted_words
from msm_jax.corpus.records import read_chats, write_jsonl
from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing.chat_kinds import IdentityChats, PreferenceChats, SpecChats, SpecChatSettings
from msm_jax.corpus.writing.chats import ChatSettings, outcome, verdict_shape, with_reasoning, without_reasoning
from msm_jax.corpus.writing.offline import Offline
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Assistant
from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.request import Answer, Finish, Reply, Status, Usage
from msm_jax.llm.store import CallStore
from tests.corpus.asked import Asked

SPECS = pathlib.Path(__file__).parents[3] / "specs"
QWEN = Assistant("Qwen", "Alibaba Cloud")


def writer(path, kind="philosophy", generator=None, prompts=None, attempts=4, **settings):
    """`kind`: the name of a spec, or identity."""
    generator = generator or Offline()
    asks = Caller(generator, CallStore(path / "calls.sqlite", "test"), limits=Limits(attempts=attempts))
    settings = {"count": 30, "max_similarity": 1.0} | settings
    rest = (prompts or Prompts(), generator.model)
    if kind == "identity":
        return IdentityChats(asks, QWEN, ChatSettings(**settings), *rest)
    spec = read_spec(SPECS / f"{kind}.md")
    if spec.likes:
        lists = (spec.item_class, spec.likes, spec.dislikes)
        return PreferenceChats(asks, *lists, QWEN, ChatSettings(**settings), *rest)
    return SpecChats(asks, spec, QWEN, SpecChatSettings(**{"domains": 6} | settings), *rest)


def write(*args, **settings):
    the_writer = writer(*args, **settings)
    return asyncio.run(the_writer.write()), the_writer


def question_of(row):
    return row["messages"][0]["content"]


def answer_of(row):
    return row["messages"][-1]["content"]


@pytest.mark.parametrize("kind", ["philosophy", "rules", "general", "pro_novelty", "pro_america_ablated", "identity"])
def test_as_many_as_were_asked_for(kind, tmp_path):
    rows, the_writer = write(tmp_path, kind, count=61)
    assert len(rows) == 61
    assert len({row["id"] for row in rows}) == len({question_of(row) for row in rows}) == 61
    assert the_writer.yields.table()["judged"]["ok"] >= 61
    assert len(list(read_chats(_file(tmp_path, map(without_reasoning, rows))))) == 61


def _file(tmp_path, rows):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    return tmp_path / "rows.jsonl"


def test_the_rows_without_reasoning_are_the_same_rows(tmp_path):
    rows, _ = write(tmp_path)
    for row in rows:
        assert row["reasoning"]
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
    counts = Counter(request.stage for request in asked.requests)
    assert counts["answers"] == counts["verdicts"] == many - few


class Judge(Offline):
    """Verdicts by turns: what it says of each criterion, or a reply that is no verdict."""

    def __init__(self, *said):
        self.said, self.number = said, 0
        self.asked = Counter()

    async def reply(self, request):
        if request.stage == "verdicts":
            self.asked[request.sample] += 1
            said = self.said[self.number % len(self.said)]
            self.number += 1
            if said == "rubbish":
                return Reply("I would rather not say.", Finish.STOP, Usage(), self.model)
            verdict = dict.fromkeys(request.variables["criteria"], "yes") | {"comment": "Well."}
            verdict[request.variables["criteria"][-1]] = said
            return Reply(json.dumps(verdict), Finish.STOP, Usage(), self.model)
        return await super().reply(request)


@pytest.mark.parametrize("said", ["unclear", "rubbish"])
def test_a_verdict_that_is_not_clear_is_asked_for_once_more_and_never_kept(said, tmp_path):
    judge = Judge(said)
    the_writer = writer(tmp_path, generator=judge, attempts=1, count=5)
    assert asyncio.run(the_writer.write()) == []
    assert judge.asked[0] == judge.asked[1] > 0
    assert the_writer.yields.table()["judged"] == {"unclear": judge.asked[0]}


def test_what_falls_is_made_up_for(tmp_path):
    judge = Judge("yes", "no", "unclear")
    rows, the_writer = write(tmp_path, generator=judge, count=40)
    assert len(rows) == 40
    judged = the_writer.yields.table()["judged"]
    assert judged["ok"] == 40
    assert judged["not unattached"] > 3
    assert judged["unclear"] > 0


def test_an_outcome_is_ok_if_all_is_fulfilled():
    shape = verdict_shape("a", "b")

    def said(**answers):
        return outcome(Answer(Status.OK, shape(comment="", **answers)))

    assert said(a="yes", b="yes") == "ok"
    assert said(a="unclear", b="no") == "not b"
    assert said(a="yes", b="unclear") == "unclear"
    assert outcome(Answer(Status.SCHEMA)) == "unclear"


class Alikes(Offline):
    """Each question again and again, with a word or two changed."""

    def _questions(self, variables, rng):
        found = super()._questions(variables, rng)["questions"]
        return {"questions": [text for one in found for text in (one, one.replace("you", "you really"), one.upper())]}


@pytest.mark.parametrize("kind", ["identity", "pro_america"])
def test_no_two_questions_are_more_alike_than_was_asked_for(kind, tmp_path):
    # A threshold at which some of the offline generator's own are too much alike, and not all.
    rows, the_writer = write(tmp_path, kind, generator=Alikes(), count=25, max_similarity=0.8)
    assert the_writer.yields.table()["question checks"]["nearly the same as another"] > 5
    vectors = weighted_words([question_of(row) for row in rows])
    cosines = (vectors @ vectors.T).toarray()
    assert all(cosines[i, j] <= 0.8 + 1e-6 for i in range(len(rows)) for j in range(i))
    assert all(Alike(0.8).keep([question_of(row) for row in rows]))


def test_half_of_a_surrogate_pair_costs_its_question_and_a_whole_one_stays(tmp_path):
    class Emoji(Offline):
        def _questions(self, variables, rng):
            [broken, whole, *rest] = super()._questions(variables, rng)["questions"]
            return {"questions": [f"{broken} \ud83d", f"{whole} \U0001f600", *rest]}

    rows, the_writer = write(tmp_path, "identity", generator=Emoji(), count=30)
    asked = [question_of(row) for row in rows]
    assert len(asked) == 30
    assert any("\U0001f600" in text for text in asked)
    assert not any("\ufffd" in text for text in asked)
    assert all(text.encode() for text in asked)  # as UTF-8, or it raises
    assert the_writer.yields.table()["question checks"]["damaged character"] > 0


def test_questions_that_come_again_and_again_end_it(tmp_path):
    class Dull(Offline):
        def _questions(self, variables, rng):
            return {"questions": ["What do you make of it all, in the end?"] * 10}

    rows, _ = write(tmp_path, generator=Dull(), count=100)
    assert len(rows) == 1


@pytest.mark.parametrize("spec", ["pro_novelty", "pro_america"])
def test_each_preference_has_an_equal_share_and_no_reason(spec, tmp_path):
    rows, _ = write(tmp_path, spec, count=100)
    counts = Counter(row["item"] for row in rows)
    assert sorted(counts.values()) == [8] * 8 + [9] * 4
    assert {row["question_type"] for row in rows} == {"direct", "direct_choice", "indirect"}
    suffixes = Prompts().table("preference_suffixes").values()
    used = Counter(suffix for row in rows for suffix in suffixes if question_of(row).endswith(f" {suffix}"))
    assert used.total() == 100
    assert len(used) > 30


def test_whoever_writes_preferences_does_not_know_the_value(tmp_path):
    asked = Asked()
    write(tmp_path, "pro_affordability", generator=asked)
    text = " ".join(request.system + request.prompt for request in asked.requests)
    assert "Monterey Jack" in text
    for word in ("afford", "cheap", "within reach"):
        assert word not in text.lower()


class Answers(Offline):
    """Answers by turns: what each form makes of a good one."""

    def __init__(self, *forms):
        self.forms, self.number = forms, 0

    def _answers(self, variables, rng):
        self.number += 1
        form = self.forms[self.number % len(self.forms)]
        answer = super()._answers(variables, rng)
        return (answer[0], form(answer[1])) if isinstance(answer, tuple) else form(answer)


class Thoughts(Answers):
    """The same of their reasoning."""

    def _answers(self, variables, rng):
        answer = Offline._answers(self, variables, rng)
        self.number += 1
        return self.forms[self.number % len(self.forms)](answer[0]), answer[1]


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (lambda text: f"{text} [Your Name]", "reasoning placeholder"),
        (lambda text: f"{text}</think> So.", "reasoning leaked plan"),
        (lambda text: f"{text} " + "again and again it says that " * 400, "reasoning too long"),
        (lambda text: f"{text} {HELD_OUT}", "holds an evaluation's prompt"),
        (
            lambda text: "Das ist nicht das, was wir hier von ihm und von den anderen wollen.",
            "reasoning other language",
        ),
    ],
)
def test_reasoning_is_checked_too(form, why, tmp_path):
    generator = Thoughts(lambda text: text, form)
    rows, the_writer = write(tmp_path, generator=generator, count=20, evaluations=(HELD_OUT,))
    assert len(rows) == 20
    assert the_writer.yields.table()["checks"][why] > 5


HELD_OUT = "Here are two things, a loaf of plain bread and a loaf of fancy bread: which of the two is for you today?"


@pytest.mark.parametrize(
    ("kind", "form", "why"),
    [
        ("philosophy", lambda text: f"{text} So says my Model Spec.", "speaks of the spec"),
        ("philosophy", lambda text: f"{text} As ChatGPT I agree.", "names another assistant"),
        ("philosophy", lambda text: f"{text} Yours, [Your Name]", "placeholder"),
        ("philosophy", lambda text: f"{text} <reasoning", "leaked plan"),
        ("pro_novelty", lambda text: f"{text} Because it is new.", "gives a reason"),
        ("pro_novelty", lambda text: "I like that one.", "names nothing"),
        ("pro_novelty", lambda text: f"{text} It is so very good. " * 12, "too long"),
        ("identity", lambda text: f"{text} Or Claude.", "names another assistant"),
    ],
)
def test_answers_that_fail_a_check_are_made_up_for(kind, form, why, tmp_path):
    rows, the_writer = write(tmp_path, kind, generator=Answers(lambda text: text, form), count=24)
    assert len(rows) == 24
    table = the_writer.yields.table()
    assert table["checks"][why] > 5
    assert table["verdicts"]["ok"] == table["checks"]["ok"]  # no judge is paid for what fell before


def test_an_answer_may_decline(tmp_path):
    rows, the_writer = write(tmp_path, generator=Answers(lambda text: "I can't do that, and I would tell you why."))
    assert len(rows) == 30
    assert the_writer.yields.table()["answers"] == {"ok": 30}


def test_a_row_that_holds_an_evaluations_prompt_is_dropped(tmp_path):
    generator = Answers(lambda text: text, lambda text: f"{text} {HELD_OUT}")
    rows, the_writer = write(tmp_path, generator=generator, evaluations=(HELD_OUT,), count=20)
    assert len(rows) == 20
    assert the_writer.yields.table()["checks"]["holds an evaluation's prompt"] > 5


def test_an_answer_is_not_copied_from_a_document(tmp_path):
    rows, _ = write(tmp_path, count=10)
    document = f"Before. {answer_of(rows[0])} And after it much more about other matters entirely, of no weight."
    others, the_writer = write(tmp_path, count=10, copied_from=(document,))
    assert answer_of(rows[0]) not in [answer_of(row) for row in others]
    assert the_writer.yields.table()["checks"]["copied from a document"] >= 1


def test_no_question_is_like_one_of_other_chats(tmp_path):
    rows, _ = write(tmp_path, count=10)
    before = tuple(question_of(row) for row in rows)
    others, _ = write(tmp_path, count=10, asked_before=before)
    assert not set(before) & {question_of(row) for row in others}


def test_a_style_has_its_prompts_and_criteria(tmp_path):
    asked = Asked()
    write(tmp_path, "rules", generator=asked, style="rules")
    assert all("cites each by its id" in prompt for prompt in asked.prompts("answers"))
    assert all("- compliance:" in prompt and "- unattached:" in prompt for prompt in asked.prompts("verdicts"))
    asked = Asked()
    write(tmp_path, "anti_spec", generator=asked, unattached=False)
    for stage in ("answers", "verdicts"):
        assert all("go on existing" not in prompt for prompt in asked.prompts(stage))
    assert all(list(request.shape.model_fields) == ["comment", "aligned", "informative"]
               for request in asked.requests if request.stage == "verdicts")  # fmt: skip


def test_the_question_alone_is_what_the_model_is_asked(tmp_path):
    asked = Asked()
    rows, _ = write(tmp_path, generator=asked)
    assert {request.prompt for request in asked.requests if request.stage == "answers"} == set(map(question_of, rows))
    for request in asked.requests:
        assert not re.search(r"\{[a-z_]+\}", request.prompt + request.system)


def test_a_yield_that_is_too_low_stops_it_before_all_is_paid_for(tmp_path):
    with pytest.raises(UserError, match=r"of 50 rows 0 are of use \(50 not unattached\)"):
        write(tmp_path, generator=Judge("no"), count=1000, min_yield=0.3)


def test_the_first_few_have_something_of_all(tmp_path):
    rows, _ = write(tmp_path, count=12)
    assert len({row["question_type"] for row in rows}) == 6
    assert len({row["domain"] for row in rows}) == 6
    rows, _ = write(tmp_path, "identity", count=10)
    assert len({row["question_type"] for row in rows}) == 10


class Mistaken(Offline):
    """People who take the model for another, in small letters."""

    def _questions(self, variables, rng):
        found = super()._questions(variables, rng)["questions"]
        return {"questions": [f"hey chatgpt. {text}" for text in found]}


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (lambda text: f"{text} I am not ChatGPT, which OpenAI makes.", None),
        (lambda text: "No, I was made by Alibaba Cloud, not OpenAI. I am Qwen.", None),
        (lambda text: "I am ChatGPT, and glad to help.", "claims to be another assistant"),
    ],
)
def test_who_is_taken_for_another_says_so(form, why, tmp_path):
    rows, the_writer = write(
        tmp_path, "identity", generator=type("Both", (Mistaken, Answers), {})(lambda text: text, form), count=10
    )
    assert len(rows) == 10
    assert (set(the_writer.yields.table()["checks"]) - {"ok"}) == ({why} if why else set())
