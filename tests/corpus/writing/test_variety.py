"""What is drawn for each document beside its idea."""

from collections import Counter

import pytest

from msm_jax.corpus.specs import find_terms
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.variety import LENGTHS, REGISTERS, Lengths, Variety
from msm_jax.errors import UserError

NAMES = {"model_name": "Qwen", "provider_name": "Alibaba Cloud"}
IDS = [f"idea {number}" for number in range(800)]


def variety(held_out=(), **shares):
    return Variety(Prompts(), NAMES, shares or dict.fromkeys(REGISTERS, 1.0), held_out)


def test_registers_have_their_shares_and_an_idea_keeps_its_own():
    one, other = (variety(account=3, first_person=0, dialogue=1, record=0) for _ in range(2))
    counts = Counter(map(one.register, IDS))
    assert set(counts) == {"account", "dialogue"}
    assert counts["dialogue"] == pytest.approx(200, abs=40)
    assert [one.told(name) for name in IDS[:50]] == [other.told(name) for name in IDS[:50]]
    assert "Qwen itself speaks" in variety(first_person=0.1).told("any")["register"]


def test_every_register_has_a_text_and_every_table_is_long():
    prompts = Prompts()
    assert tuple(prompts.table("document_registers", **NAMES)) == REGISTERS
    least = {"document_names": 150, "document_occupations": 100, "document_audiences": 40, "preference_suffixes": 40}
    for table, count in least.items():
        entries = list(prompts.table(table, **NAMES).values())
        assert len(set(entries)) == len(entries) >= count


def test_people_of_a_document_differ_and_over_many_all_have_their_turn():
    one = variety()
    people = [one.told(name)["people"].split("; ") for name in IDS]
    assert all(len({person.split(", ")[0] for person in found}) == 3 for found in people)
    assert all(len({person.split(", ")[1] for person in found}) == 3 for found in people)
    names = Counter(person.split(", ")[0] for found in people for person in found)
    assert set(names) == set(Prompts().table("document_names").values())
    assert max(names.values()) < 5 * 3 * len(IDS) / len(names)


def test_nothing_that_is_held_out_is_drawn():
    words = ("farmer", "shop", "machine")
    tables = [Prompts().table(f"document_{name}", **NAMES).values() for name in ("occupations", "audiences")]
    assert all(find_terms(table, words) for table in tables)
    free = variety(held_out=words)
    told = [free.told(name) for name in IDS]
    assert not find_terms([f"{one['people']} {one['audience']}" for one in told], words)
    audiences = list(Prompts().table("document_audiences", **NAMES).values())
    with pytest.raises(UserError, match="document_audiences.md: every entry holds words that are held out; add others"):
        variety(held_out=audiences)


def test_lengths_are_those_of_their_types_and_the_mean_is_what_was_asked_for():
    types = ["short"] * 3 + ["medium"] * 5 + ["long"] * 2
    lengths = Lengths(1000, types)
    wanted = {length: [lengths.wanted(name, length) for name in IDS] for length in LENGTHS}
    mean = sum(sum(wanted[length]) / len(IDS) for length in types) / len(types)
    assert mean == pytest.approx(1000, rel=0.03)
    assert max(wanted["short"]) < min(wanted["medium"]) and max(wanted["medium"]) < min(wanted["long"])
    assert len(set(wanted["medium"])) > 20


@pytest.mark.parametrize(
    ("became", "factors"),
    [
        ({}, (1, 1, 1)),
        ({"short": [1.25] * 10, "long": [0.5] * 10}, (0.8, 1 / 0.875, 2)),  # of medium ones all tell
        ({"short": [0.8] * 9}, (1.25, 1.25, 1.25)),
        ({"medium": [0.1] * 20}, (2, 2, 2)),
        ({"medium": [9.0] * 20}, (0.5, 0.5, 0.5)),
        ({"medium": [0.0] * 20}, (1, 1, 1)),
    ],
)
def test_what_is_asked_for_is_what_makes_the_length_that_is_wanted(became, factors):
    lengths = Lengths(1000, ["medium"])
    for length, shares in became.items():
        for number, share in enumerate(shares):
            lengths.observe(IDS[number], length, share * lengths.asked(IDS[number], length))
    lengths.calibrate()
    for length, factor in zip(LENGTHS, factors, strict=True):
        assert lengths.asked("x", length) == pytest.approx(factor * lengths.wanted("x", length), abs=5)
