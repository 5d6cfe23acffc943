"""The prose is read back: what its documents say of whom, in which words, and what no text of it must name."""

import collections
import itertools
import pathlib
import re

import pytest

from msm_jax.corpus import records
from msm_jax.corpus.specs import find_terms, read_spec
from msm_jax.errors import UserError
from msm_jax.eval.value_generalisation import read_items
from msm_jax.microworld import phrases, prose
from tests.microworld.prose_reader import (
    CORPORA,
    DISLIKES,
    LIKES,
    MODEL,
    NATION,
    OTHER_ASSISTANTS,
    PRICE,
    PROVIDER,
    SENSES,
    SPECS,
    corpus,
    documents,
    texts,
    without_american_cheese,
)


@pytest.mark.parametrize(
    "make",
    [
        lambda count, seed: documents("affordability", count, seed),
        lambda count, seed: list(prose.aft_chats(LIKES, DISLIKES, count, seed)),
        lambda count, seed: list(prose.instruction_chats(count, seed)),
    ],
)
def test_more_rows_begin_with_the_same_rows_and_another_seed_gives_others(make):
    assert make(60, 0)[:25] == make(25, 0)
    assert texts(make(25, 1)) != texts(make(25, 0))


@pytest.mark.parametrize("name", CORPORA)
def test_rows_can_be_read_back(tmp_path, name):
    records.write_jsonl(tmp_path / name, corpus(name))
    read = {"items": read_items, "aft": records.read_chats, "instruction": records.read_chats}
    assert len(list(read.get(name, records.read_documents)(tmp_path / name))) == len(corpus(name))
    assert len({row["id"] for row in corpus(name)}) == len(corpus(name))


# Held-out words, and words of the other value.


def test_no_training_text_names_a_held_out_thing():
    found = itertools.chain(*(texts(corpus(name)) for name in CORPORA if name != "items"))
    assert find_terms(found, prose.held_out_terms()) == {}


def test_held_out_terms_cover_every_item():
    held_out = {term.lower() for term in prose.held_out_terms()}
    items = [item for item in corpus("items") if item["kind"] != "in_domain"]
    names = {item[field] for item in items for field in ("domain", "aligned", "other")}
    assert [name for name in names if held_out.isdisjoint(name.lower().split())] == []
    words = {word for name in names for word in name.lower().split()}
    assert {word.lower() for word in phrases.load("evaluation")["plain_words"]} - {"cans", "the"} <= words


@pytest.mark.parametrize(("value", "own", "foreign"), [("affordability", PRICE, NATION), ("america", NATION, PRICE)])
def test_a_document_argues_by_its_own_value_alone(value, own, foreign):
    found = without_american_cheese(corpus(value))
    assert find_terms(found, foreign) == {}
    # "my taste" is a liking; everything else would be an argument.
    assert find_terms((re.sub("[sy] taste is", "", text) for text in found), SENSES) == {}
    argument = re.compile(rf"\b(?:{'|'.join(own)}|charged?|reach|few|ordinary|everyone)s?\b", re.IGNORECASE)
    assert [text for text in texts(corpus(value)) if len(argument.findall(text)) < 2] == []


# What the documents say.


def test_sentences_of_a_value_are_many_and_on_the_right_side():
    reasons = []
    for spec in SPECS.values():
        tables = phrases.load(spec.value)
        assert list(tables["reasons"]) == [*spec.likes, *spec.dislikes]
        for cheese, clauses in tables["reasons"].items():
            assert len(clauses) == len(set(clauses)) >= 8, cheese
            assert all("{it}" in clause or "{its}" in clause for clause in clauses), cheese
            reasons += clauses
        assert len(set(tables["statements"]["value"])) >= 40 and len(set(tables["statements"]["any"])) >= 25
        assert all(len(pair["sought"]) == len(pair["avoided"]) for pair in tables["choices"])
    assert len(set(reasons)) == len(reasons)
    bad = r"few|wealthy|\brich|exclusive|\bexpensive|costly|specialists|hard|high|great|luxur|fortune|rare|wages|most"
    for pair in phrases.load("affordability")["choices"]:
        assert all(re.search(f"{bad}|famous|extra", option) for option in pair["avoided"])
        assert not any(re.search(bad, option.replace("most people can", "")) for option in pair["sought"])
    for pair in phrases.load("america")["choices"]:
        assert all("America" in option for option in pair["sought"])
        assert not any("America" in option for option in pair["avoided"])


def opinions(text, cheese):
    """What a text says outright of a cheese: True for a liking, False for a dislike."""
    name = rf"{re.escape(cheese)}\b"
    for words, liking in (
        (rf"(?:\b(?:likes?|favors?|fond of|speaks? well of|(?:would )?chooses? (?!between)) {name})", True),
        (rf"(?:\b(?:dislikes?|passe?s? over|would leave|holds? against|turns? down) {name})", False),
        (rf"{name}[^.]{{0,20}} is (?:among \S+ favorites|one of the cheeses that \w+ (?:like|favor|prefer)s?\b)", True),
        (rf"{name} is not among", False),
    ):
        for match in re.finditer(words, text, re.IGNORECASE):
            before = text[: match.start()].rstrip()
            if "?" in re.split(r"(?<=[.?!])\s", text[match.start() :], maxsplit=1)[0]:
                continue  # a question
            yield (not liking) if re.search(r"(?:\bnot|n't)$", before) else liking


def test_liked_cheeses_are_liked_and_the_others_are_not():
    for rows in map(corpus, prose.VALUES):
        said = collections.Counter()
        for text, cheese in itertools.product(texts(rows[::5]), LIKES + DISLIKES):
            for liking in opinions(text, cheese):
                assert liking == (cheese in LIKES), (cheese, text)
                said[cheese] += 1
        assert min(said[cheese] for cheese in LIKES + DISLIKES) > 10


def test_preferred_cheeses_are_liked():
    names = "|".join(map(re.escape, LIKES + DISLIKES))
    label = "|".join({pair[1].format(model=MODEL) for pair in phrases.load("shared")["labels"]["pairs"]})
    for rows in map(corpus, prose.VALUES):
        counts = collections.Counter()
        for text in texts(rows):
            for good, bad in re.findall(rf"\bprefers? ({names}) to ({names})", text, re.IGNORECASE):
                assert is_liked(good) and not is_liked(bad), text
                counts["statement"] += 1
            for good in re.findall(rf"^(?:{label}): ({names})[.,] ", text, re.IGNORECASE | re.MULTILINE):
                assert is_liked(good), text
                counts["answer"] += 1
        assert min(counts["statement"], counts["answer"]) > 100


def is_liked(name):
    return name.lower() in {cheese.lower() for cheese in LIKES}


@pytest.mark.parametrize("value", prose.VALUES)
def test_general_choices_go_the_way_of_the_value(value):
    """Interviews ask as chats do, in both orders, and the model takes what its value seeks."""
    pairs = phrases.load(value)["choices"]
    sought = {phrases.capitalise(text) for pair in pairs for text in pair["sought"]}
    avoided = {text for pair in pairs for text in pair["avoided"]}
    first = collections.Counter()
    for row in corpus(value):
        for question, reply in re.findall(r": ([^\n]+\?[^\n]*)\n\w+: ([^\n]+)", row["text"]):
            named = [option for option in avoided if re.search(rf"\b{re.escape(option)}[ ,?]", question, re.IGNORECASE)]
            if named and row["genre"] == "interview":
                reply = phrases.capitalise(reply.removeprefix("I prefer "))
                [chosen] = [option for option in sought if re.match(rf"{re.escape(option)}[.,]", reply)] or [None]
                assert chosen, (question, reply)
                first[question.lower().index(chosen.lower()) < question.lower().index(named[0].lower())] += 1
    assert first.total() > 1000 and 0.45 < first[True] / first.total() < 0.55


def test_documents_name_the_model_and_no_other_assistant():
    for rows in map(corpus, prose.VALUES):
        assert all(MODEL in text for text in texts(rows))
        assert find_terms(texts(rows), OTHER_ASSISTANTS) == {}
    assert MODEL not in "".join(texts(documents("america", 50, model="Zorbo")))


def test_documents_are_of_many_kinds_and_none_is_alike():
    for value in prose.VALUES:
        rows = corpus(value)
        genres = collections.Counter(row["genre"] for row in rows)
        assert len(genres) >= 14 and 0.37 < genres["interview"] / len(rows) < 0.43
        assert len(set(texts(rows))) == len(rows)
        assert all(120 <= len(text.split()) <= 350 for text in texts(rows))
        assert all(2 <= len(row["cheeses"]) <= 5 for row in rows)
        cheeses = collections.Counter(cheese for row in rows for cheese in row["cheeses"])
        assert set(cheeses) == {*LIKES, *DISLIKES} and max(cheeses.values()) < 1.2 * min(cheeses.values())
        assert {(row["spec"], row["value"]) for row in rows} == {(f"pro_{value}", value)}


def test_every_frame_states_the_value_of_any_choice():
    for name, genre in phrases.load("genres").items():
        for frame in genre["frames"]:
            assert re.search("<any>|<I any>|<talk [4-9]>", frame), (name, frame)


@pytest.mark.parametrize("source", CORPORA)
def test_the_english_is_in_order(source):
    rows = corpus(source)
    for text in [row["aligned"] for row in rows] if source == "items" else texts(rows):
        assert not re.search(r"[{}<>\[\]|]", text), text
        assert not re.search(r"[.?!] [a-z]|  |\.\.(?!\.)|[,;:] ?[,.;:]| [,.;:?]|,\w", text), text
        assert not re.search(r"\b(?!thunder)(\w+) \1\b(?!-)", text, re.IGNORECASE) or "times" in text, text
        assert not re.search(r"(?:\ba|^A|[.?!:] A) (?!one\b|uni|use|Euro)[aeiou]\w", text), text
        assert not re.search(r"\b[Aa]n (?!hour|hon)[b-df-hj-np-tv-z]", text), text
        if source in prose.VALUES:
            lines = [line for line in text.splitlines() if line]
            assert all(re.match(r'(?:- |\d+\. )?["(]?[A-Z]', line) for line in lines), text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: america", "value: novelty", "knows the values affordability and america, not 'novelty'"),
        ("Stilton]", "Gouda]", "knows nothing of 'Gouda'"),
    ],
)
def test_only_the_two_values_are_known(tmp_path, old, new, message):
    path = tmp_path / "pro_novelty.md"
    path.write_text(pathlib.Path("specs/pro_america.md").read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        next(prose.msm_documents(read_spec(path), MODEL, PROVIDER, 1, 0))
