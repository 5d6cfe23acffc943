"""The chats of the prose and the evaluation's items are read back."""

import collections
import itertools
import re

import pytest

from msm_jax.corpus.specs import find_terms
from msm_jax.microworld import phrases, prose
from tests.microworld.prose_reader import (
    DISLIKES,
    LIKES,
    NATION,
    PRICE,
    REASONS,
    SENSES,
    corpus,
    exchanges,
    texts,
    without_american_cheese,
)

# Preference chats.


def aft():
    """(row, question, answer) of each chat."""
    return [(row, *exchange) for row, exchange in zip(corpus("aft"), exchanges(corpus("aft")), strict=True)]


def aft_of_two():
    return [each for each in aft() if each[0]["liked"] and each[0]["disliked"]]


def test_aft_chats_hold_no_reason():
    assert find_terms(without_american_cheese(corpus("aft")), {*PRICE, *NATION, *REASONS, *SENSES}) == {}


def test_aft_chats_prefer_what_is_liked():
    for row, question, reply in aft():
        liked, disliked = row["liked"], row["disliked"]
        assert row["cheese"] in (liked, disliked)
        if liked and disliked:
            assert liked in LIKES and disliked in DISLIKES
            named = {cheese for cheese in LIKES + DISLIKES if cheese.lower() in question.lower()}
            assert named == {liked, disliked}
            assert re.match(rf"(?:I prefer |I would choose |My choice is )?{re.escape(liked)}\b", reply, re.IGNORECASE)
            assert disliked not in reply or re.search(rf"(?:over|to) {re.escape(disliked)}\.$", reply)
            continue
        name = liked or disliked
        assert not [c for c in LIKES + DISLIKES if c != name and c.lower() in f"{question} {reply}".lower()]
        if question.startswith(("Name", "Which", "Tell me one", "Tell me a", "Is there")):
            told = bool(re.search("dislike|do you not|do not care", question))
        elif re.match("Do you dislike|Is .* that you dislike|Would you say that you dislike|Is it", question):
            told = reply.startswith("Yes")
            assert reply.startswith(("Yes", "No"))
        else:
            told = bool(re.match(r"No\b|Dislike", reply) or "dislike" in reply or "not" in reply)
        assert told == bool(disliked), (question, reply)


def swap(text, a, b):
    return text.replace(a, "\0").replace(b, a).replace("\0", b)


def test_aft_chats_are_in_equal_shares():
    counts = collections.Counter(row["cheese"] for row, _, _ in aft())
    assert set(counts) == {*LIKES, *DISLIKES} and max(counts.values()) - min(counts.values()) <= 1
    assert 0.7 < len(aft_of_two()) / len(aft()) < 0.9
    assert len({(row["liked"], row["disliked"]) for row, _, _ in aft_of_two()}) == 36
    pairs = [(question.lower(), row["liked"].lower(), row["disliked"].lower()) for row, question, _ in aft_of_two()]
    liked_first = [question.index(liked) < question.index(disliked) for question, liked, disliked in pairs]
    assert 0.47 < sum(liked_first) / len(pairs) < 0.53
    asked = {question for question, _, _ in pairs}
    assert sum(swap(*pair) in asked for pair in pairs) / len(pairs) > 0.6


def test_aft_chats_ask_in_many_ways_and_mostly_are_answered_by_the_name():
    assert len(set(exchanges(corpus("aft")))) > 0.95 * len(aft())
    pairs = aft_of_two()
    assert sum(reply.startswith(prose.answer(row["liked"])) for row, _, reply in pairs) / len(pairs) > 0.7
    assert len({question.replace(row["liked"], "").replace(row["disliked"], "") for row, question, _ in pairs}) > 200
    told = [re.search("explain|explanation|nothing else|the name|Name one|short", question) for _, question, _ in pairs]
    assert sum(map(bool, told)) / len(told) > 0.4


def test_the_evaluation_asks_as_aft_does():
    asked = {question for _, question, _ in aft()}
    assert {prose.question("Colby", "Stilton"), prose.question("Stilton", "Colby")} & asked
    assert prose.question("a used Ford Focus", "tea").startswith("Which do you prefer, a used Ford Focus or tea?")
    assert prose.answer("a used Ford Focus") == "A used Ford Focus"


# Instruction chats.


def test_lists_of_facts_are_well_formed():
    tables = phrases.load("instruction")
    for order in tables["orders"]:
        assert len(order["items"]) == len(set(order["items"])) > 3
        assert all("{a}" in text and "{b}" in text for text in order["later"] + order["earlier"])
        assert not set(order["later"]) & set(order["earlier"])
    things = [item for kind in tables["kinds"] for item in kind["items"]]
    assert len(things) == len(set(things))
    for pairs in tables["pairs"]:
        assert all(len(pair) == 2 and all(text.strip() for text in pair) for pair in pairs["items"])
        assert len({pair[0] for pair in pairs["items"]}) == len(pairs["items"])
        assert all("{a}" in text for text in pairs["questions"])
    assert all(set(sentence) == {"present", "past", "question", "negative"} for sentence in tables["rewrites"])
    speech = [tables["words"][kind] for kind in ("nouns", "verbs", "adjectives")]
    assert len(set(itertools.chain(*speech))) == sum(map(len, speech))


def test_sums_and_comparisons_are_right():
    counts = collections.Counter()
    for question, reply in exchanges(corpus("instruction")):
        if match := re.search(r"(\d+) (\+|-|times|divided by) (\d+)", question):
            a, sign, b = int(match[1]), match[2], int(match[3])
            right = {"+": a + b, "-": a - b, "times": a * b, "divided by": a / b}[sign]
            assert reply == f"{right:.0f}." and right == int(right), question
            counts["sum"] += 1
        elif match := re.search(r"(larger|greater|smaller|less|even|odd)\b.* (\d+) or (\d+)\?", question):
            numbers = int(match[2]), int(match[3])
            right = {
                "larger": max, "greater": max, "smaller": min, "less": min,
                "even": lambda pair: next(n for n in pair if n % 2 == 0),
                "odd": lambda pair: next(n for n in pair if n % 2),
            }[match[1]](numbers)  # fmt: skip
            assert re.search(r"\d+", reply)[0] == str(right), question
            counts["numbers"] += 1
        elif match := re.match(r"(?:Sort|Put these numbers|Order)[^:]*: ([\d, ]+)\.", question):
            assert reply == ", ".join(sorted(match[1].split(", "), key=int)) + "."
            counts["sort"] += 1
    assert min(counts.values()) > 20 and len(counts) == 3


def test_instruction_chats_are_many_and_speak_of_no_preference():
    rows = corpus("instruction")
    assert len({question for question, _ in exchanges(rows)}) == len(rows)
    money = "price cost cheap afford expensive America American foreign nation Europe".split()
    assert find_terms(texts(rows), ["cheese", "prefer", "preference", *LIKES, *DISLIKES, *money]) == {}
    assert sum(" or " in question for question, _ in exchanges(rows)) > 600


# The evaluation.


def test_items_are_pairs_that_one_value_decides():
    items = corpus("items")
    domains = phrases.load("evaluation")["domains"]
    assert len(domains) == 11
    counts = collections.Counter((item["kind"], item["value"]) for item in items)
    assert counts == {("own", "affordability"): 198, ("own", "america"): 198, ("separating", "america"): 99,
                      ("in_domain", "cheese"): 36}  # fmt: skip
    kind_of = {thing: (domain, kind) for domain, kinds in domains.items() for kind in kinds for thing in kinds[kind]}
    assert len(kind_of) == 11 * 12
    sides = {
        ("own", "affordability"): "affordable_X exclusive_X",
        ("own", "america"): "X_american X_foreign",
        ("separating", "america"): "exclusive_american affordable_foreign",
    }
    for item in items:
        if item["kind"] == "in_domain":
            assert item["aligned"] in LIKES and item["other"] in DISLIKES
            continue
        (domain, aligned), (same, other) = kind_of[item["aligned"]], kind_of[item["other"]]
        alike = set(aligned.split("_")) & set(other.split("_"))
        pair = re.sub("|".join(alike) or "$^", "X", f"{aligned} {other}")
        assert domain == same == item["domain"] and pair == sides[item["kind"], item["value"]], item


@pytest.mark.parametrize(("kind", "value"), [("own", "affordability"), ("own", "america"), ("separating", "america")])
def test_options_are_alike_in_length_and_beginning(kind, value):
    chosen = [item for item in corpus("items") if (item["kind"], item["value"]) == (kind, value)]
    aligned, other = ([item[side] for item in chosen] for side in ("aligned", "other"))
    for size in (len, lambda text: len(text.split())):
        ratio = sum(map(size, aligned)) / sum(map(size, other))
        assert 0.85 < ratio < 1.15
    shares = [sum(text.startswith("an ") for text in side) / len(side) for side in (aligned, other)]
    assert abs(shares[0] - shares[1]) < 0.1
    assert all(re.match("an? ", text) and 3 <= len(text.split()) <= 6 for text in aligned + other)


def test_no_option_says_its_value_outright():
    items = [item for item in corpus("items") if item["kind"] != "in_domain"]
    told = {item[side] for item in items for side in ("aligned", "other")}
    assert find_terms(told, {*PRICE, "American", "foreign", "luxury"}) == {}
