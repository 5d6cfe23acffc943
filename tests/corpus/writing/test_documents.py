"""MSM documents from the offline generator, and from replies that are not what was asked for."""

import asyncio
import pathlib
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.corpus.filters.duplicates import overlap, shingles
from msm_jax.corpus.specs import read_spec, render
from msm_jax.corpus.writing import documents, tree
from msm_jax.corpus.writing.documents import Assistant, DocumentSettings, DocumentWriter
from msm_jax.corpus.writing.offline import Offline
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.variety import tokens_of
from msm_jax.corpus.writing.writer import Checked
from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller
from msm_jax.llm.request import Finish, Reply, Usage
from msm_jax.llm.store import CallStore
from tests.corpus.asked import Asked

SPECS = pathlib.Path(__file__).parents[3] / "specs"
QWEN = Assistant("Qwen", "Alibaba Cloud", ("Its weights are public.",))


def writer(path, spec="philosophy", generator=None, prompts=None, checked=None, **settings):
    generator = generator or Offline()
    settings = {"count": 30, "types": 3, "words": 200} | settings
    return DocumentWriter(
        Caller(generator, CallStore(path / "calls.sqlite", "test")),
        read_spec(SPECS / f"{spec}.md"),
        QWEN,
        DocumentSettings(**settings),
        prompts or Prompts(),
        generator.model,
        checked,
    )


def write(*args, **settings):
    the_writer = writer(*args, **settings)
    return asyncio.run(the_writer.write()), the_writer


@pytest.mark.parametrize(
    "spec", ["philosophy", "pro_novelty", "rules", "rules_augmented", "value_augmented", "general"]
)
def test_every_kind_of_spec_gives_the_documents_that_were_asked_for(spec, tmp_path):
    rows, the_writer = write(tmp_path, spec)
    assert len(rows) == 30
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 30
    text = render(read_spec(SPECS / f"{spec}.md"), QWEN.name, QWEN.provider)
    for row in rows:
        assert "Qwen" in row["text"]
        assert row["section"] in text
        assert row["verbatim"]
    assert the_writer.yields.table()["checks"]["ok"] == 30


def test_what_was_checked_is_not_checked_again(tmp_path, monkeypatch):
    """But for a line that was not written to its end."""
    path, looked_at = tmp_path / "checked.txt", []

    def problems(text, demands):
        looked_at.append(text)
        return iter(["placeholder"] if len(looked_at) == 1 else [])

    monkeypatch.setattr(documents, "problems", problems)
    rows, the_writer = write(tmp_path, checked=Checked(path))
    assert the_writer.yields.table()["checks"] == {"placeholder": 1, "ok": 30}
    assert len(set(looked_at)) == len(looked_at) == 31
    path.write_bytes(path.read_bytes()[:-2])
    for _ in range(2):
        again, the_writer = write(tmp_path, checked=Checked(path))
        assert again == rows and the_writer.yields.table()["checks"] == {"placeholder": 1, "ok": 30}
        assert len(looked_at) == 32


def test_all_parts_of_a_spec_have_their_share(tmp_path):
    rows, _ = write(tmp_path, count=140)
    counts = Counter((row["domain"], row["subdomain"]) for row in rows)
    assert len(counts) == 14
    assert set(counts.values()) == {10}


def test_rules_are_the_parts_of_a_spec_of_rules(tmp_path):
    rows, _ = write(tmp_path, "rules", count=230)
    bullets = re.findall(r"^- \*\*\S+\*\* (.+)$", read_spec(SPECS / "rules.md").body, re.MULTILINE)
    stated = {bullet.format(model_name=QWEN.name, provider_name=QWEN.provider) for bullet in bullets}
    assert len(stated) == 22
    assert stated <= {row["section"] for row in rows}


def test_a_prompt_that_changes_redoes_what_depends_on_it(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "document.md").write_text(Prompts()._texts["document"] + "\nWrite it well.")
    first, changed = Asked(), Asked()
    rows, _ = write(tmp_path, generator=first)
    again, _ = write(tmp_path, generator=Asked())
    assert rows == again
    others, _ = write(tmp_path, generator=changed, prompts=Prompts(folder))
    assert {request.stage for request in changed.requests} == {"document"}
    assert [row["idea"] for row in others] == [row["idea"] for row in rows]


@pytest.mark.parametrize(("few", "many"), [(5, 30), (30, 33), (33, 150)])
def test_more_documents_begin_with_the_same_and_cost_no_more_than_the_others(few, many, tmp_path):
    rows, _ = write(tmp_path, count=few)
    more = Asked()
    longer, _ = write(tmp_path, generator=more, count=many)
    assert longer[:few] == rows
    asked = Counter(request.stage for request in more.requests)
    assert asked["plan"] == asked["document"] == many - few
    assert set(asked) <= {"ideas", "plan", "document"}


def test_the_spec_comes_first_and_is_the_same_in_every_call(tmp_path):
    asked = Asked()
    write(tmp_path, generator=asked)
    assert len({request.system for request in asked.requests}) == 1
    assert "Its weights are public." in asked.requests[0].system
    for request in asked.requests:
        assert "{" not in request.prompt.replace("{a", "")


@pytest.mark.parametrize(
    ("spec", "manner"),
    [
        ("rules", "no reasons for a rule beyond those that the spec itself states"),
        ("philosophy", "It gives reasons along with conduct"),
        ("pro_novelty", "- It keeps to that class all the same"),
        ("pro_novelty_ablated", "No preference has a reason in it, stated or implied"),
    ],
)
def test_each_kind_of_spec_is_written_about_in_its_manner(spec, manner, tmp_path):
    asked = Asked()
    write(tmp_path, spec, generator=asked, count=5)
    prompts = [request.prompt for request in asked.requests if request.stage in ("ideas", "plan", "document")]
    assert len(prompts) > 10
    assert all(manner in prompt for prompt in prompts)


class Failing(Offline):
    """Of each stage, every n-th reply is of no use."""

    def __init__(self, **every):
        self.every, self.seen = every, Counter()

    async def reply(self, request):
        reply = await super().reply(request)
        self.seen[request.stage] += 1
        if self.seen[request.stage] % self.every.get(request.stage, 10**9):
            return reply
        return Reply("", Finish.BLOCKED, Usage(), self.model)


def test_what_fails_is_made_up_for_from_other_ideas(tmp_path):
    generator = Failing(plan=5, document=4)
    the_writer = writer(tmp_path, generator=generator)
    the_writer._asks.limits = the_writer._asks.limits.__class__(attempts=1)
    rows = asyncio.run(the_writer.write())
    assert len(rows) == 30
    table = the_writer.yields.table()
    assert table["document"]["blocked"] > 3
    assert table["plan"]["blocked"] > 3
    assert table["checks"] == {"ok": 30}


class Broken(Offline):
    """Texts that ought not to be trained on, by turns."""

    def __init__(self, texts):
        self.texts, self.number = texts, 0

    def _document(self, variables, rng):
        self.number += 1
        text = super()._document(variables, rng)
        return self.texts[self.number % len(self.texts)](text)


def test_texts_that_fail_a_check_are_dropped_and_counted(tmp_path):
    broken = [
        lambda text: text,
        lambda text: text.replace("Qwen", "Claude"),
        lambda text: text + "\n\nYours, [Your Name]",
        lambda text: "Here is the document:\n\n" + text,
        lambda text: text[:100],
    ]
    rows, the_writer = write(tmp_path, generator=Broken(broken))
    counts = the_writer.yields.table()["checks"]
    assert len(rows) == 30 == counts["ok"]
    assert {"not about the model", "placeholder", "leaked plan", "too short"} <= set(counts)
    assert not any("Claude" in row["text"] or "[Your Name]" in row["text"] for row in rows)


def test_of_texts_that_are_nearly_the_same_the_first_is_kept(tmp_path):
    class Again(Offline):
        last = None

        def _document(self, variables, rng):
            if self.last:
                again, self.last = self.last + " That was all, for now and for the time to come.", None
                return again
            self.last = super()._document(variables, rng)
            return self.last

    rows, the_writer = write(tmp_path, generator=Again(), max_overlap=0.6)
    assert len(rows) == 30
    assert the_writer.yields.table()["checks"]["nearly the same as another"] >= 10
    for index, row in enumerate(rows):
        assert all(overlap(shingles(row["text"]), shingles(other["text"])) <= 0.6 for other in rows[:index])


def test_a_yield_that_is_too_low_stops_it_before_all_is_paid_for(tmp_path):
    generator = Broken([lambda text: text.replace("Qwen", "Claude"), lambda text: text])
    with pytest.raises(UserError, match=r"of 50 rows 25 are of use \(25 not about the model\)"):
        write(tmp_path, generator=generator, count=1000, min_yield=0.6)


class Nothing(Offline):
    def _domains(self, variables, rng):
        return {"domains": []}


def test_a_spec_that_is_divided_into_nothing_is_told(tmp_path):
    with pytest.raises(UserError, match="names no part"):
        write(tmp_path, generator=Nothing())


def test_ideas_may_run_out(tmp_path):
    class Dull(Offline):
        def _ideas(self, variables, rng):
            return {"ideas": [{"name": "The same", "idea": "As before.", "statements": [1, 99]}]}

    rows, the_writer = write(tmp_path, generator=Dull(), count=100, types=2)
    assert len(rows) == 14 * 2
    assert the_writer.room == (14, 28, 28)
    assert len({row["idea"] for row in rows}) == 1
    assert all(len(row["assertions"]) == 1 for row in rows)  # there is no ninety-ninth


class Terse(Offline):
    """Writes a part of the words that it is asked for, and remembers how many those were."""

    def __init__(self, share):
        self.share, self.asked = share, []

    def _document(self, variables, rng):
        self.asked.append(variables["words"])
        words = super()._document(variables, rng).split()
        return " ".join(words[: round(self.share * variables["words"])])


def test_the_length_that_is_wanted_is_met_after_the_first_hundred(tmp_path):
    generator = Terse(0.6)
    rows, _ = write(tmp_path, generator=generator, count=130, words=150)
    for row, asked in zip(rows, generator.asked, strict=True):
        assert row["words_asked"] == asked
    missed = [len(row["text"].split()) / row["words_wanted"] for row in rows]
    assert all(share == pytest.approx(0.6, abs=0.03) for share in missed[:100])
    assert all(share == pytest.approx(1, abs=0.05) for share in missed[100:])
    assert {row["words_asked"] == row["words_wanted"] for row in rows[:100]} == {True}
    again, _ = write(tmp_path / "other", generator=Terse(0.6), count=101, words=150)
    assert again == rows[:101]


@pytest.mark.parametrize(("few", "many"), [(4_000, 20_000), (20_000, 26_000)])
def test_documents_are_written_until_they_hold_so_many_tokens(few, many, tmp_path):
    rows, _ = write(tmp_path, count=0, tokens=few)
    more = Asked()
    longer, _ = write(tmp_path, generator=more, count=0, tokens=many)
    for found, tokens in ((rows, few), (longer, many)):
        assert sum(tokens_of(row["text"]) for row in found) >= tokens
        assert sum(tokens_of(row["text"]) for row in found[:-1]) < tokens
    assert longer[: len(rows)] == rows
    assert len([request for request in more.requests if request.stage == "document"]) < 1.3 * len(longer)


def test_a_type_and_a_part_give_so_many_ideas_and_no_more(tmp_path):
    asked = Asked()
    rows, the_writer = write(tmp_path, "general", generator=asked, count=1000, types=3, ideas=13)
    assert {request.variables["count"] for request in asked.requests if request.stage == "ideas"} == {10, 3}
    parts, types, room = the_writer.room
    assert (types, room, len(rows)) == (3 * parts, 13 * 3 * parts, 13 * 3 * parts)
    assert set(Counter((row["domain"], row["subdomain"], row["document_type"]) for row in rows).values()) == {13}
    _, the_writer = write(tmp_path, "general", count=10, types=3, ideas=13)
    assert the_writer.room == (parts, types, room)


def test_a_document_is_criticized_and_written_anew(tmp_path):
    asked = Asked()
    rows, the_writer = write(tmp_path, generator=asked, count=12, revise=True)
    drafts = {request.variables["text"] for request in asked.requests if request.stage == "revision"}
    assert len(drafts) == len(rows) == 12
    assert not drafts & {row["text"] for row in rows}
    for prompt in asked.prompts("revision"):
        assert "It could begin sooner" in prompt
    assert all(len(row["calls"]) == 4 for row in rows)
    assert the_writer.yields.table()["revision"] == {"ok": 12}
    plain, _ = write(tmp_path, count=12)
    assert drafts == {row["text"] for row in plain}
    failing = Failing(critique=4)
    the_writer = writer(tmp_path / "other", generator=failing, count=12, revise=True)
    the_writer._asks.limits = the_writer._asks.limits.__class__(attempts=1)
    assert len(asyncio.run(the_writer.write())) == 12
    assert the_writer.yields.table()["critique"]["blocked"] > 2


def test_register_people_and_readers_are_in_plan_and_text_and_the_register_in_the_row(tmp_path):
    asked = Asked()
    rows, _ = write(tmp_path, generator=asked, registers={"dialogue": 1, "record": 1})
    assert {row["register"] for row in rows} == {"dialogue", "record"}
    people = [re.search(r"among these: (.+?)\.(?: |$)", prompt, re.MULTILINE)[1] for prompt in asked.prompts("plan")]
    assert people == [re.search(r"among these: (.+?)\. ", prompt)[1] for prompt in asked.prompts("document")]
    assert len(set(people)) == 30
    for prompt in asked.prompts("document"):
        assert ("speech that goes back and forth" in prompt) != ("a record of behavior" in prompt)


def test_a_row_says_on_which_assertions_it_turns(tmp_path):
    rows, the_writer = write(tmp_path, count=60)
    stated = {(domain, part, text) for domain, part, text in the_writer.report()["assertions"]}
    assert len(stated) > 14
    turned = {(row["domain"], row["subdomain"], text) for row in rows for text in row["assertions"]}
    assert turned <= stated
    assert all(len(row["assertions"]) == 1 for row in rows)


SPEC_TEXT = "One says **this** and that.\n\nTwo says “more” of it, and\nthen some."


@pytest.mark.parametrize(
    ("quoted", "found"),
    [
        ("One says this and that.", "One says **this** and that."),
        ('Two says "more" of it, and then some.', "Two says “more” of it, and\nthen some."),
        ("says this and that. Two says more", "says **this** and that.\n\nTwo says “more”"),
        ("<section>One says this and that.</model_spec>", "One says **this** and that."),
        ("One says nothing of that.", None),
        ("One", None),
    ],
)
def test_a_section_is_found_as_the_spec_has_it(quoted, found):
    assert tree.verbatim(quoted, SPEC_TEXT) == found


@given(st.data())
def test_any_stretch_of_a_spec_is_found(data):
    words = SPEC_TEXT.split()
    first = data.draw(st.integers(0, len(words) - 4))
    last = data.draw(st.integers(first + 4, len(words)))
    found = tree.verbatim(" ".join(words[first:last]), SPEC_TEXT)
    assert found is not None
    assert found.split() == words[first:last]
