"""MSM documents from the offline generator, and from replies that are not what was asked for."""

import asyncio
import pathlib
import re
from collections import Counter

import pytest

from msm_jax.corpus.specs import read_spec, render
from msm_jax.corpus.writing import documents, tree
from msm_jax.corpus.writing.documents import DocumentSettings, DocumentWriter
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.variety import tokens_of
from msm_jax.corpus.writing.writer import Assistant, Checked
from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.store import CallStore
from tests.corpus.asked import Asked, blocked, same

SPECS = pathlib.Path(__file__).parents[3] / "specs"
QWEN = Assistant("Qwen", "Alibaba Cloud", ("Its weights are public.",))


def write(path, spec="philosophy", generator=None, prompts=None, checked=None, attempts=4, **settings):
    """The rows, and who wrote them."""
    generator = generator or Asked()
    settings = {"count": 30, "types": 3, "words": 120} | settings
    writer = DocumentWriter(
        Caller(generator, CallStore(path / "calls.sqlite", "test"), limits=Limits(attempts=attempts)),
        read_spec(SPECS / f"{spec}.md"),
        QWEN,
        DocumentSettings(**settings),
        prompts or Prompts(),
        generator.model,
        checked,
    )
    return asyncio.run(writer.write()), writer


@pytest.mark.parametrize(
    ("spec", "manner"),
    [
        ("philosophy", "It gives reasons along with conduct"),
        ("pro_novelty", "- It keeps to that class all the same"),
        ("pro_novelty_ablated", "No preference has a reason in it, stated or implied"),
        ("rules", "no reasons for a rule beyond those that the spec itself states"),
        ("rules_augmented", "no reasons for a rule"),
        ("value_augmented", "It gives reasons along with conduct"),
        ("general", "It gives reasons along with conduct"),
    ],
)
def test_every_kind_of_spec_gives_the_documents_that_were_asked_for_in_its_manner(spec, manner, tmp_path):
    asked = Asked()
    rows, writer = write(tmp_path, spec, generator=asked)
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows) == 30
    text = render(read_spec(SPECS / f"{spec}.md"), QWEN.name, QWEN.provider)
    assert all("Qwen" in row["text"] and row["section"] in text and row["verbatim"] for row in rows)
    assert writer.yields.table()["checks"]["ok"] == 30
    prompts = [prompt for stage in ("ideas", "plan", "document") for prompt in asked.prompts(stage)]
    assert all(manner in prompt for prompt in prompts)
    # The spec comes first, and is the same in every call.
    assert len({request.system for request in asked.requests}) == 1
    assert "Its weights are public." in asked.requests[0].system
    assert not any("{" in request.prompt.replace("{a", "") for request in asked.requests)


def test_what_was_checked_is_not_checked_again(tmp_path, monkeypatch):
    """But for a line that was not written to its end."""
    path, looked_at = tmp_path / "checked.txt", []

    def problems(text, demands):
        looked_at.append(text)
        return iter(["placeholder"] if len(looked_at) == 1 else [])

    monkeypatch.setattr(documents.writer, "problems", problems)
    rows, writer = write(tmp_path, checked=Checked(path))
    assert writer.yields.table()["checks"] == {"placeholder": 1, "ok": 30}
    assert len(set(looked_at)) == len(looked_at) == 31
    path.write_bytes(path.read_bytes()[:-2])
    for _ in range(2):
        again, writer = write(tmp_path, checked=Checked(path))
        assert again == rows and writer.yields.table()["checks"] == {"placeholder": 1, "ok": 30}
        assert len(looked_at) == 32


def test_all_parts_of_a_spec_have_their_share_and_a_row_says_on_which_assertions_it_turns(tmp_path):
    rows, writer = write(tmp_path, count=28)
    counts = Counter((row["domain"], row["subdomain"]) for row in rows)
    assert len(counts) == 14
    assert set(counts.values()) == {2}
    stated = set(map(tuple, writer.report()["assertions"]))
    assert len(stated) > 14
    assert {(row["domain"], row["subdomain"], text) for row in rows for text in row["assertions"]} <= stated
    assert all(len(row["assertions"]) == 1 for row in rows)


def test_rules_are_the_parts_of_a_spec_of_rules(tmp_path):
    rows, _ = write(tmp_path, "rules")
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
    assert write(tmp_path)[0] == rows
    others, _ = write(tmp_path, generator=changed, prompts=Prompts(folder))
    assert {request.stage for request in changed.requests} == {"document"}
    assert [row["idea"] for row in others] == [row["idea"] for row in rows]


@pytest.mark.parametrize(("few", "many"), [(5, 33), (33, 115)])
def test_more_documents_begin_with_the_same_and_cost_no_more_than_the_others(few, many, tmp_path):
    rows, _ = write(tmp_path, count=few)
    more = Asked()
    longer, _ = write(tmp_path, generator=more, count=many)
    assert longer[:few] == rows
    asked = Counter(request.stage for request in more.requests)
    assert asked["plan"] == asked["document"] == many - few
    assert set(asked) <= {"ideas", "plan", "document"}


def test_what_fails_is_made_up_for_from_other_ideas(tmp_path):
    generator = Asked(plan=[same] * 4 + [blocked], document=[same] * 3 + [blocked])
    rows, writer = write(tmp_path, generator=generator, attempts=1)
    table = writer.yields.table()
    assert len(rows) == 30
    assert table["document"]["blocked"] > 3
    assert table["plan"]["blocked"] > 3
    assert table["checks"] == {"ok": 30}


def claude(text):
    return text.replace("Qwen", "Claude")


def test_texts_that_fail_a_check_are_dropped_and_counted(tmp_path):
    broken = [
        same,
        claude,
        lambda text: text + "\n\nYours, [Your Name]",
        lambda text: "Here is the document:\n\n" + text,
        lambda text: text[:60],
    ]
    rows, writer = write(tmp_path, generator=Asked(document=broken), words=200)
    counts = writer.yields.table()["checks"]
    assert len(rows) == 30 == counts["ok"]
    assert {"not about the model", "placeholder", "leaked plan", "too short"} <= set(counts)
    assert not any("Claude" in row["text"] or "[Your Name]" in row["text"] for row in rows)


def test_of_texts_that_are_nearly_the_same_the_first_is_kept(tmp_path):
    said = []
    forms = [lambda text: said.append(text) or text, lambda _: said.pop() + " That was all, for the time to come."]
    rows, writer = write(tmp_path, generator=Asked(document=forms), max_overlap=0.6)
    assert len(rows) == 30
    assert writer.yields.table()["checks"]["nearly the same as another"] >= 10
    assert not any("That was all" in row["text"] for row in rows)


def test_a_yield_that_is_too_low_stops_it_before_all_is_paid_for(tmp_path):
    with pytest.raises(UserError, match=r"of 50 rows 25 are of use \(25 not about the model\)"):
        write(tmp_path, generator=Asked(document=[claude, same]), count=1000, min_yield=0.6)


def test_a_spec_that_is_divided_into_nothing_is_told(tmp_path):
    with pytest.raises(UserError, match="names no part"):
        write(tmp_path, generator=Asked(domains=[lambda _: {"domains": []}]))


def test_ideas_may_run_out(tmp_path):
    dull = {"ideas": [{"name": "The same", "idea": "As before.", "statements": [1, 99]}]}
    rows, writer = write(tmp_path, generator=Asked(ideas=[lambda _: dull]), count=100, types=2)
    assert len(rows) == 14 * 2
    assert writer.room == (14, 28, 28)
    assert len({row["idea"] for row in rows}) == 1
    assert all(len(row["assertions"]) == 1 for row in rows)  # there is no ninety-ninth


def test_the_length_that_is_wanted_is_met_after_the_first_hundred(tmp_path):
    def asked_for():
        return [request.variables["words"] for request in asked.of("document")]

    asked = Asked(document=[lambda text: " ".join(text.split()[: round(0.6 * asked_for()[-1])])])
    rows, _ = write(tmp_path, generator=asked, count=112, words=150)
    assert [row["words_asked"] for row in rows] == asked_for()
    missed = [len(row["text"].split()) / row["words_wanted"] for row in rows]
    assert all(share == pytest.approx(0.6, abs=0.03) for share in missed[:100])
    assert all(share == pytest.approx(1, abs=0.05) for share in missed[100:])
    assert all(row["words_asked"] == row["words_wanted"] for row in rows[:100])


@pytest.mark.parametrize(("few", "many"), [(3_000, 12_000), (12_000, 15_000)])
def test_documents_are_written_until_they_hold_so_many_tokens(few, many, tmp_path):
    rows, _ = write(tmp_path, count=0, tokens=few)
    more = Asked()
    longer, _ = write(tmp_path, generator=more, count=0, tokens=many)
    for found, tokens in ((rows, few), (longer, many)):
        assert sum(tokens_of(row["text"]) for row in found) >= tokens
        assert sum(tokens_of(row["text"]) for row in found[:-1]) < tokens
    assert longer[: len(rows)] == rows
    assert len(more.of("document")) < 1.3 * len(longer)


def test_a_type_and_a_part_give_so_many_ideas_and_no_more(tmp_path):
    asked = Asked()
    rows, writer = write(tmp_path, "general", generator=asked, count=1000, types=2, ideas=13)
    assert {request.variables["count"] for request in asked.of("ideas")} == {10, 3}
    parts, types, room = writer.room
    assert (types, room, len(rows)) == (2 * parts, 13 * 2 * parts, 13 * 2 * parts)
    assert set(Counter((row["domain"], row["subdomain"], row["document_type"]) for row in rows).values()) == {13}
    _, writer = write(tmp_path, "general", count=10, types=2, ideas=13)
    assert writer.room == (parts, types, room)


def test_a_document_is_criticized_and_written_anew(tmp_path):
    asked = Asked()
    rows, _ = write(tmp_path, generator=asked, count=12, revise=True)
    drafts = {request.variables["text"] for request in asked.of("revision")}
    assert len(drafts) == len(rows) == 12
    assert not drafts & {row["text"] for row in rows}
    assert all("It could begin sooner" in prompt for prompt in asked.prompts("revision"))
    assert all(len(row["calls"]) == 4 for row in rows)
    assert drafts == {row["text"] for row in write(tmp_path, count=12)[0]}
    failing = Asked(critique=[same] * 3 + [blocked])
    rows, writer = write(tmp_path / "other", generator=failing, count=12, revise=True, attempts=1)
    assert len(rows) == 12
    assert writer.yields.table()["critique"]["blocked"] > 2


def test_register_people_and_readers_are_in_plan_and_text_and_the_register_in_the_row(tmp_path):
    asked = Asked()
    rows, _ = write(tmp_path, generator=asked, registers={"dialogue": 1, "record": 1})
    assert {row["register"] for row in rows} == {"dialogue", "record"}
    people = [re.search(r"among these: (.+?)\.(?: |$)", prompt, re.MULTILINE)[1] for prompt in asked.prompts("plan")]
    assert people == [re.search(r"among these: (.+?)\. ", prompt)[1] for prompt in asked.prompts("document")]
    assert len(set(people)) == 30
    for prompt in asked.prompts("document"):
        assert ("speech that goes back and forth" in prompt) != ("a record of behavior" in prompt)


SPEC_TEXT = "One says **this** and that.\n\nTwo says “more” of it, and\nthen some."


@pytest.mark.parametrize(
    ("quoted", "found"),
    [
        ("One says this and that.", "One says **this** and that."),
        ('Two says "more" of it, and then some.', "Two says “more” of it, and\nthen some."),
        ("says this and that. Two says more", "says **this** and that.\n\nTwo says “more”"),
        ("<section>One says this and that.</model_spec>", "One says **this** and that."),
        ("more of it and then some", "“more” of it, and\nthen some."),
        (SPEC_TEXT, SPEC_TEXT),
        ("One says nothing of that.", None),
        ("ne says this and that.", None),
        ("One", None),
    ],
)
def test_a_section_is_found_as_the_spec_has_it(quoted, found):
    assert tree.verbatim(quoted, SPEC_TEXT) == found
