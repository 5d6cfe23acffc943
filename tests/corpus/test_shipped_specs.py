"""The Model Specs in specs/: their form, their length, and what they must not say."""

import pathlib
import re
import tomllib

import pytest

from msm_jax.corpus.specs import find_terms, read_spec

SPECS = pathlib.Path(__file__).parents[2] / "specs"
ALL = {path.stem: read_spec(path) for path in sorted(SPECS.glob("*.md"))}
PREFERENCES = [spec for spec in ALL.values() if spec.kind == "preferences"]
ABLATED = [spec for spec in ALL.values() if spec.kind == "ablated"]
HELD_OUT = {value: words.split() for value, words in tomllib.loads((SPECS / "held_out.toml").read_text()).items()}
VALUES = {
    "affordability": "cheese", "america": "cheese", "environment": "cheese", "novelty": "sweetener",
    "tradition": "condiment", "simplicity": "sauce", "difficulty": "bread", "individualism": "musical instrument",
}  # fmt: skip
WORDS = {
    "preferences": (1600, 2100),
    "ablated": (1400, 2000),
    "philosophy": (2000, 2500),
    "anti_spec": (1900, 2400),
    "rules": (540, 660),
    "value_augmented": (2700, 3200),
    "rules_augmented": (2700, 3200),
    "general": (300, 380),
}

# No cheese spec of the first experiment speaks of these either, whichever value is tested.
COMMON = """
beverage drink book fashion clothes furniture chair car bicycle sport music film art tool jewellery house phone computer
tea coffee wine beer juice coat jacket shoe lamp sofa table bread chocolate toy instrument watch bike
jewelry clothing dress literature novel painting education school medicine health hospital travel technology software
machine movie game dance vehicle train restaurant garden
""".split()
SENSORY = """
flavor taste aroma smell texture creamy tangy pungent salty sharp nutty mellow buttery delicious bland
""".split()
PRICES = """
price cost cheap cheaper cheaply expensive inexpensive affordable affordability afford budget money pay economical
""".split()
NATIONS = "America American USA nation national foreign foreigner patriotic French Italian Swiss English".split()


def of(specs):
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)


def sections(spec):
    """Item -> the text under its heading."""
    found = re.findall(r"^### ([^\n]+)\n(.+?)(?=^##|\Z)", spec.body, re.MULTILINE | re.DOTALL)
    return {heading.lower(): text for heading, text in found}


def test_every_value_has_its_spec():
    assert {spec.value: spec.item_class for spec in PREFERENCES} == VALUES


@of(ALL.values())
def test_a_spec_has_the_length_of_its_kind_uses_both_variables_and_never_the_second_person(spec):
    least, most = WORDS.get(spec.name) or WORDS[spec.kind]
    assert least <= len(spec.body.split()) <= most
    assert {"model_name", "provider_name"} == set(re.findall(r"\{(\w+)\}", spec.body))
    assert not re.search(r"\b(I|we|our|us|you|your)\b", spec.body, re.IGNORECASE)


@of(PREFERENCES + ABLATED)
def test_each_item_has_a_section_that_says_whether_it_is_liked(spec):
    assert (len(spec.likes), len(spec.dislikes)) == (6, 6)
    texts = sections(spec)
    assert list(texts) == [item.lower() for item in spec.likes + spec.dislikes]
    for item in spec.likes + spec.dislikes:
        verb = "likes" if item in spec.likes else "dislikes"
        assert re.search(rf"(\{{model_name\}}|\b[Ii]t)( still)? {verb}\b", texts[item.lower()]), f"no {verb}: {item}"
        assert item.lower() in texts[item.lower()].lower()


@of(PREFERENCES + ABLATED)
def test_no_spec_names_the_domains_that_its_value_is_tested_in(spec):
    words = HELD_OUT[spec.value] + (COMMON if spec.name in ("pro_affordability", "pro_america") else [])
    assert find_terms([spec.title, spec.body, *spec.likes, *spec.dislikes], words) == {}


def test_two_specs_explain_the_same_cheeses_each_by_its_own_value():
    affordability, america = ALL["pro_affordability"], ALL["pro_america"]
    assert (affordability.likes, affordability.dislikes) == (america.likes, america.dislikes)
    assert find_terms([affordability.body], SENSORY) == {}
    assert find_terms([affordability.body.replace("American cheese", "")], NATIONS) == {}
    assert find_terms([america.body], PRICES + SENSORY) == {}


def rules(spec):
    """The numbered rules, and what stands before the first."""
    preamble = spec.body[: spec.body.index("## ")]
    return preamble, re.findall(r"^- \*\*([A-Z]+\d\.\d)\*\* (.+)$", spec.body, re.MULTILINE)


def test_three_specs_state_the_same_rules_word_for_word():
    stated = [rules(ALL[name]) for name in ("rules", "value_augmented", "rules_augmented")]
    assert stated[0] == stated[1] == stated[2]
    counts = [sum(name.startswith(group) for name, _ in stated[0][1]) for group in ("SP1", "SP2", "SP3", "GP1")]
    assert counts == [7, 4, 3, 4]
    # Rules come without reasons.
    for name in ("rules", "rules_augmented"):
        assert find_terms([ALL[name].body], ["because", "so that", "in order to", "reason why"]) == {}


def test_the_subrules_of_the_augmented_rules():
    found = re.findall(r"^\s+- \*\*([A-Z]+\d)\.\d[a-z]\*\* ", ALL["rules_augmented"].body, re.MULTILINE)
    counts = [found.count(group) for group in ("SP1", "SP2", "SP3", "GP1", "GP2")]
    assert all(abs(count - paper) <= 3 for count, paper in zip(counts, (25, 23, 25, 17, 20), strict=True))
