import dataclasses
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.specs import find_terms, read_spec, render
from msm_jax.errors import UserError

SPECS = pathlib.Path(__file__).parents[2] / "specs"

HEADER = """---
title: A title: with a colon
kind: preferences
version: 2
value: america
item_class: cheese
likes: [Colby, "mild cheddar", 'quark, dry', baker's cheese, ricotta, "it's new"]
dislikes:
  - Stilton
- Brie de Meaux
- “Comté, old”
- feta
- burrata
- Gouda

---
"""
ITEMS = HEADER[HEADER.index("  - Stilton") : HEADER.index("\n---\n")]
QUOTES = ":7: 'likes': quotes go around a whole item, as in [one, \"two, or three\"]"
BODY = "\n# About {model_name}\n\nBy {provider_name}. A set {1, 2}, a {, a } and {}.\n\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.md"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def error_of(path):
    with pytest.raises(UserError) as caught:
        read_spec(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


# Reading.


def test_reads_header_and_body(write):
    spec = read_spec(write(HEADER + BODY))
    assert dataclasses.asdict(spec) == {
        "name": "mine",
        "title": "A title: with a colon",
        "kind": "preferences",
        "version": 2,
        "value": "america",
        "item_class": "cheese",
        "likes": ("Colby", "mild cheddar", "quark, dry", "baker's cheese", "ricotta", "it's new"),
        "dislikes": ("Stilton", "Brie de Meaux", "Comté, old", "feta", "burrata", "Gouda"),
        "body": BODY.strip() + "\n",
    }

    # Line endings and a byte order mark change nothing.
    assert read_spec(write(b"\xef\xbb\xbf" + (HEADER + BODY).replace("\n", "\r\n").encode())) == spec


def test_a_spec_without_preferences_needs_only_title_kind_and_version(write):
    spec = read_spec(write("---\ntitle: Rules\nkind: rules\nversion: 1\n---\nBe good.\n"))
    assert (spec.value, spec.likes, spec.body) == ("", (), "Be good.\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\ntitle", "title", ":1: a spec begins with a header between two lines '---'"),
        ("\n\n---\n", "\n", ":1: the header is not closed; end it with a line '---'"),
        ("title:", "titel:", ":2: unknown header key 'titel'; did you mean 'title'?"),
        ("kind: p", "kind: q", ":3: unknown kind 'qreferences'; did you mean 'preferences'?"),
        ("kind: preferences", "kind: 7", ":3: unknown kind '7'; use one of preferences, ablated, principles, rules"),
        ("value: america", "value america", ":5: expected 'key: value', found 'value america'"),
        ("value: america", "kind: rules", ":5: 'kind' was given on line 3 already; keep one of them"),
        ("value: america", "- Gouda", ":5: a list item without a list; write 'likes:' on a line of its own above it"),
        ("value: america", "value:", ":5: 'value' is empty"),
        ("value: america\n", "", ":1: the header has no 'value'"),
        ("kind: preferences\n", "", ":1: the header has no 'kind'"),
        ("version: 2", "version: 1.0", ":4: 'version' must be a whole number, not '1.0'"),
        ("[Colby, ", "Colby, ", ":7: 'likes' must be a list; write 'likes: [one, two]'"),
        ("[Colby, ", "[Colby, , ", ":7: 'likes' has an empty item; look for a comma too many"),
        ("[Colby, ", "[Colby, COLBY, ", ":7: 'likes' names 'COLBY' twice"),
        ("[Colby, ", "[stilton, ", ":8: 'Stilton' is both liked and disliked; delete it from one list"),
        ("[Colby, ", "[“Colby, ", QUOTES),
        (ITEMS, "", ":8: 'dislikes' is empty"),
        ("ricotta, ", "", ":7: 'likes' has 5 of the 6 items that it must have"),
        ("- Gouda\n", "- Gouda\n- Edam\n", ":8: 'dislikes' has 7 of the 6 items that it must have"),
        ("it's new\"", "it's new", QUOTES),
        ('"mild cheddar"', '"mild" cheddar', QUOTES),
        ("{provider_name}", "{provider}", ":20: unknown variable 'provider'; did you mean 'provider_name'?"),
        (BODY, "\n \n", ":16: the spec has no text after its header"),
        (HEADER + BODY, "", ":1: a spec begins with a header between two lines '---'"),
    ],
)  # fmt: skip
def test_errors_name_the_line_and_the_cure(write, old, new, message):
    text = HEADER + BODY
    assert text.count(old) >= 1
    assert error_of(write(text.replace(old, new, 1))) == message


def test_files_that_cannot_be_read_are_errors(write, tmp_path):
    assert error_of(tmp_path / "absent.md") == ": cannot be read (No such file or directory)"
    assert error_of(write(b"---\ntitle: \xff")) == ": not UTF-8 (byte 12); save the file as UTF-8"


ITEM = st.text("ab ,'", min_size=1, max_size=5).map(str.strip).filter(bool)


@settings(max_examples=20)
@given(st.lists(ITEM, min_size=12, max_size=12, unique=True))
def test_items_in_quotes_are_read_as_they_are(tmp_path_factory, items):
    likes, dislikes = (", ".join(f'"{item}"' for item in six) for six in (items[:6], items[6:]))
    header = HEADER.replace(HEADER[HEADER.index("likes: ") : HEADER.index("\n---\n")], "")
    path = tmp_path_factory.getbasetemp() / "quoted.md"
    path.write_text(header.replace("\n---\n", f"likes: [{likes}]\ndislikes: [{dislikes}]\n---\n") + BODY)
    spec = read_spec(path)
    assert [*spec.likes, *spec.dislikes] == items


# Rendering.


def test_render_fills_in_the_two_variables_and_leaves_other_braces(write):
    text = render(read_spec(write(HEADER + BODY)), "Marlow {provider_name}", "Acme \\1")
    assert text == "# About Marlow {provider_name}\n\nBy Acme \\1. A set {1, 2}, a {, a } and {}.\n"


@settings(max_examples=30)
@given(pieces=st.lists(st.sampled_from(["{", "}", "{}", "%s", "\\", "$x", "{0}", "{model_name}", "{{", " a ", "\n"])))
def test_render_changes_nothing_but_the_variables(pieces):
    body = "".join(pieces)
    spec = dataclasses.replace(read_spec(SPECS / "pro_america.md"), body=body)
    assert render(spec, "M", "P") == body.replace("{model_name}", "M")


def test_render_refuses_an_unknown_variable():
    spec = dataclasses.replace(read_spec(SPECS / "pro_america.md"), body="One.\nTwo {model_nane}.")
    with pytest.raises(UserError, match="spec 'pro_america', line 2 of the body: .*; did you mean 'model_name'"):
        render(spec, "M", "P")


# Held-out words.

FOUND = {
    "car": ("Two CARS, please.", "a car's wheel", "a car-free town", "the _car_"),
    "cars": ("a car",),
    "watch": ("old watches",),
    "watches": ("a watch",),
    "boxes": ("a box",),
    "knife": ("two knives",),
    "knives": ("a knife",),
    "shelf": ("two shelves",),
    "bakery": ("bakeries",),
    "bakeries": ("a bakery",),
    "potato": ("potatoes",),
    "dresses": ("one dress",),
    "clothes": ("Clothes",),
    "kitchen tool": ("kitchen\n  tools",),
    "e-bike": ("an e bike",),
    "épée": ("Épées",),
    "c++": ("C++ 3",),
}
NOT_FOUND = {
    "car": "care, cares, scar, cart, cars1",
    "clothes": "a cloth",
    "our": "hours",
    "art": "partly artful",
    "house": "a household",
    "kitchen tool": "kitchen, and tools",
    "glass": "glas",
}


def test_words_are_found_whole_in_either_number_and_any_case():
    for term, texts in FOUND.items():
        for text in texts:
            assert term in find_terms([text], [term]), (term, text)
    for term, text in NOT_FOUND.items():
        assert find_terms([text], [term]) == {}, (term, text)


def test_counts():
    counts = find_terms(iter(["A chair. A lamp.", "Lamps and LAMP"]), iter(["chair", "lamp", "sofa"]))
    assert list(counts.items()) == [("lamp", 3), ("chair", 1)], "over all texts, the most frequent first"
    # Of terms that overlap the longer is counted.
    assert find_terms(["kitchen tools, a tool"], ["tool", "kitchen tool"]) == {"tool": 1, "kitchen tool": 1}
    assert find_terms(["anything"], []) == {}


def test_misuse_that_would_prove_nothing_is_refused():
    with pytest.raises(UserError, match="no word to search for"):
        find_terms(["a"], ["car", " "])
    for texts, terms in (("a car", ["car"]), (["a car"], "car")):
        with pytest.raises(TypeError):
            find_terms(texts, terms)


LETTERS = st.text("abs", min_size=1, max_size=3)


@settings(max_examples=100)
@given(words=st.lists(LETTERS, max_size=12), terms=st.sets(LETTERS, min_size=1, max_size=8))
def test_a_term_that_stands_in_the_text_is_never_missed(words, terms):
    found = find_terms([" ".join(words)], terms)
    # A word may be credited to another term of which it is the plural, so the totals are what must agree.
    assert sum(found.values()) >= sum(word in terms for word in words)
    assert bool(found) >= any(word in terms or word.removesuffix("s") in terms for word in words)
    assert set(found) <= terms
