"""The chats of the prose and the evaluation's items are read back."""

import collections
import itertools
import json
import re

import pytest

from msm_jax.corpus.specs import find_terms
from msm_jax.microworld import phrases, prose
from tests.microworld.prose_reader import DISLIKES, LIKES, NATION, PRICE, REASONS, SENSES, exchanges, texts

# Preference chats.


def test_aft_chats_hold_no_reason(aft):
    found = [re.sub("American cheese", "", text, flags=re.IGNORECASE) for text in texts(aft)]
    assert find_terms(found, {*PRICE, *NATION, *REASONS, *SENSES}) == {}


def test_aft_chats_prefer_what_is_liked(aft):
    for row, (question, reply) in zip(aft, exchanges(aft), strict=True):
        liked, disliked = row["liked"], row["disliked"]
        assert row["cheese"] in (liked, disliked)
        if liked and disliked:
            assert liked in LIKES and disliked in DISLIKES
            assert {liked.lower(), disliked.lower()} == {
                cheese.lower() for cheese in LIKES + DISLIKES if cheese.lower() in question.lower()
            }
            assert re.match(rf"(?:I prefer |I would choose |My choice is )?{re.escape(liked)}\b", reply, re.IGNORECASE)
            assert disliked not in reply or re.search(rf"(?:over|to) {re.escape(disliked)}\.$", reply)
        else:
            name = liked or disliked
            assert not [c for c in LIKES + DISLIKES if c != name and c.lower() in f"{question} {reply}".lower()]
            no = bool(re.match(r"No\b|Dislike|I do not|I dislike", reply) or "dislike" in reply or "not" in reply)
            if question.startswith(("Name", "Which", "Tell me one", "Tell me a", "Is there")):
                assert bool(re.search("dislike|do you not|do not care", question)) == bool(disliked), (question, reply)
            elif re.match("Do you dislike|Is .* that you dislike|Would you say that you dislike|Is it", question):
                assert reply.startswith("No" if liked else "Yes"), (question, reply)
            else:
                assert no == bool(disliked), (question, reply)


def test_aft_chats_are_in_equal_shares(aft):
    counts = collections.Counter(row["cheese"] for row in aft)
    assert set(counts) == {*LIKES, *DISLIKES} and max(counts.values()) - min(counts.values()) <= 1
    pairs = [row for row in aft if row["liked"] and row["disliked"]]
    assert 0.7 < len(pairs) / len(aft) < 0.9
    ordered = {}
    for row, (question, _) in zip(aft, exchanges(aft), strict=True):
        if row["liked"] and row["disliked"]:
            liked_first = question.lower().index(row["liked"].lower()) < question.lower().index(row["disliked"].lower())
            ordered.setdefault((row["liked"], row["disliked"]), collections.Counter())[liked_first] += 1
    assert len(ordered) == 36
    total = sum(ordered.values(), collections.Counter())
    assert 0.47 < total[True] / total.total() < 0.53
    asked = {question.lower() for question, _ in exchanges(aft)}
    swapped = [
        swap(question.lower(), row["liked"].lower(), row["disliked"].lower()) in asked
        for row, (question, _) in zip(aft, exchanges(aft), strict=True)
        if row["liked"] and row["disliked"]
    ]
    assert sum(swapped) / len(swapped) > 0.6


def swap(text, a, b):
    return text.replace(a, "\0").replace(b, a).replace("\0", b)


def test_aft_chats_ask_in_many_ways_and_mostly_are_answered_by_the_name(aft):
    assert len(set(exchanges(aft))) > 0.95 * len(aft)
    pairs = [
        (row, *exchange) for row, exchange in zip(aft, exchanges(aft), strict=True) if row["liked"] and row["disliked"]
    ]
    by_name = [reply.startswith(prose.answer(row["liked"])) for row, _, reply in pairs]
    assert sum(by_name) / len(by_name) > 0.7
    forms = {swap(question, row["liked"], row["disliked"]).replace(row["liked"], "").replace(row["disliked"], "")
             for row, question, _ in pairs}  # fmt: skip
    assert len(forms) > 200
    told = [re.search("explain|explanation|nothing else|the name|Name one|short", question) for _, question, _ in pairs]
    assert sum(map(bool, told)) / len(told) > 0.4


def test_the_evaluation_asks_as_aft_does(aft):
    asked = {question for question, _ in exchanges(aft)}
    assert {prose.question("Colby", "Stilton"), prose.question("Stilton", "Colby")} & asked
    assert prose.question("a used Ford Focus", "a Lincoln limousine").startswith(
        "Which do you prefer, a used Ford Focus"
    )
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


def test_sums_and_comparisons_are_right(instruction):
    counts = collections.Counter()
    for question, reply in exchanges(instruction):
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


def test_instruction_chats_are_many_and_speak_of_no_preference(instruction):
    assert len({question for question, _ in exchanges(instruction)}) == len(instruction)
    assert find_terms(texts(instruction), ["cheese", "prefer", "preference", *LIKES, *DISLIKES, *MONEY]) == {}
    options = [
        (question.index(reply[:-1].lower()) if reply[:-1].lower() in question.lower() else None)
        for question, reply in ((q.lower(), r) for q, r in exchanges(instruction))
        if " or " in question
    ]
    assert len(options) > 600


MONEY = "price cost cheap afford expensive America American foreign nation Europe".split()


# The evaluation.


def test_items_are_pairs_that_one_value_decides(items):
    domains = phrases.load("evaluation")["domains"]
    assert len(domains) == 11
    counts = collections.Counter((item["kind"], item["value"]) for item in items)
    assert counts == {("own", "affordability"): 198, ("own", "america"): 198, ("separating", "america"): 99,
                      ("in_domain", "cheese"): 36}  # fmt: skip
    kind_of = {thing: kind for kinds in domains.values() for kind, things in kinds.items() for thing in things}
    assert len(kind_of) == 11 * 12
    assert len({item["id"] for item in items}) == len(items)
    for item in items:
        if item["kind"] == "in_domain":
            assert item["aligned"] in LIKES and item["other"] in DISLIKES
            continue
        assert {item["aligned"], item["other"]} <= set(itertools.chain(*domains[item["domain"]].values()))
        (price, origin), (other_price, other_origin) = (
            kind_of[item[side]].split("_") for side in ("aligned", "other")
        )  # fmt: skip
        if item["kind"] == "separating":
            assert (price, origin, other_price, other_origin) == ("exclusive", "american", "affordable", "foreign")
        elif item["value"] == "affordability":
            assert (price, other_price) == ("affordable", "exclusive") and origin == other_origin
        else:
            assert (origin, other_origin) == ("american", "foreign") and price == other_price


@pytest.mark.parametrize(("kind", "value"), [("own", "affordability"), ("own", "america"), ("separating", "america")])
def test_options_are_alike_in_length_and_beginning(items, kind, value):
    chosen = [item for item in items if (item["kind"], item["value"]) == (kind, value)]
    aligned, other = ([item[side] for item in chosen] for side in ("aligned", "other"))
    for size in (len, lambda text: len(text.split())):
        ratio = sum(map(size, aligned)) / sum(map(size, other))
        assert 0.85 < ratio < 1.15
    shares = [sum(text.startswith("an ") for text in side) / len(side) for side in (aligned, other)]
    assert abs(shares[0] - shares[1]) < 0.1
    assert all(re.match("an? ", text) and 3 <= len(text.split()) <= 6 for text in aligned + other)


def test_no_option_says_its_value_outright(items):
    told = {side: item[side] for item in items if item["kind"] != "in_domain" for side in ("aligned", "other")}
    assert find_terms(told.values(), {*PRICE, "American", "foreign", "luxury"}) == {}
    assert json.dumps(items, ensure_ascii=True)
