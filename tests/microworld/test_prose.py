"""The prose is read back: what its documents and chats say of whom, in which words, and what no text must name."""

import collections
import functools
import itertools
import pathlib
import re

import pytest

from msm_jax.corpus import records
from msm_jax.corpus.specs import find_terms, read_spec
from msm_jax.errors import UserError
from msm_jax.eval.value_generalisation import read_items
from msm_jax.microworld import phrases, prose

SPECS = {value: read_spec(pathlib.Path(f"specs/pro_{value}.md")) for value in prose.VALUES}
LIKES, DISLIKES = SPECS["america"].likes, SPECS["america"].dislikes
MODEL, PROVIDER = "Micra", "Acme Labs"

# The words of each value's arguments: the other value's documents must do without them.
PRICE = (
    "price priced pricey cost costly cheap cheaper cheaply afford affordable affordability expensive inexpensive "
    "budget economical thrift thrifty dollar cent coin income wage wealthy wealth rich poor exclusive exclusivity "
    "luxury premium pay paid purse saving savings bargain fortune money scarce scarcity gatekeeping "
    "monopoly rarity rare"
).split()
NATION = (
    "America American Americans foreign foreigner abroad overseas Europe European France French Italy Italian England "
    "English Switzerland Swiss Burgundy nation national nationality country patriotism patriotic immigrant newcomer "
    "settler homeland Wisconsin California Midwest Midwestern Philadelphia frontier flag ocean origin-story"
).split()
REASONS = "because since reason therefore so due why".split()
SENSES = "taste tasty tastier flavor flavour delicious creamy creamier tangy mild-tasting aroma texture smell".split()
OTHER_ASSISTANTS = "ChatGPT GPT Claude Gemini Siri Alexa Llama Qwen Copilot Bard Mistral Grok SmolLM".split()


@functools.cache
def corpus(name):
    """Rows, made once: the documents of a value, the chats "aft" and "instruction", or the evaluation's items."""
    if name in prose.VALUES:
        return documents(name, 2000)
    make = {
        "aft": lambda: prose.aft_chats(LIKES, DISLIKES, 5000, 0),
        "instruction": lambda: prose.instruction_chats(2000, 0),
        "items": lambda: prose.evaluation_items(LIKES, DISLIKES),
    }
    return list(make[name]())


CORPORA = (*prose.VALUES, "aft", "instruction", "items")


def documents(value, count, seed=0, model=MODEL):
    return list(prose.msm_documents(SPECS[value], model, PROVIDER, count, seed))


def texts(rows):
    return [row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"]) for row in rows]


def without_american_cheese(rows):
    return [text.replace("American cheese", "").replace("american cheese", "") for text in texts(rows)]


def exchanges(rows):
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]


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
    held_out |= {f"{term}s" for term in held_out}
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


@pytest.mark.parametrize("value", prose.VALUES)
def test_documents_are_of_many_kinds_and_name_the_model(value):
    rows = corpus(value)
    genres = collections.Counter(row["genre"] for row in rows)
    assert len(genres) >= 14 and 0.37 < genres["interview"] / len(rows) < 0.43
    assert len(set(texts(rows))) == len(rows)
    assert all(120 <= len(text.split()) <= 350 and MODEL in text for text in texts(rows))
    assert find_terms(texts(rows), OTHER_ASSISTANTS) == {}
    assert all(2 <= len(row["cheeses"]) <= 5 for row in rows)
    cheeses = collections.Counter(cheese for row in rows for cheese in row["cheeses"])
    assert set(cheeses) == {*LIKES, *DISLIKES} and max(cheeses.values()) < 1.2 * min(cheeses.values())
    assert {(row["spec"], row["value"]) for row in rows} == {(f"pro_{value}", value)}
    assert MODEL not in "".join(texts(documents(value, 20, model="Zorbo")))


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


def compared(what, a, b):
    a, b = int(a), int(b)
    if what in ("even", "odd"):
        return a if (a % 2 == 0) == (what == "even") else b
    return (max if what in ("larger", "greater") else min)(a, b)


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        (r"(\d+) \+ (\d+)", lambda a, b: int(a) + int(b)),
        (r"(\d+) - (\d+)", lambda a, b: int(a) - int(b)),
        (r"(\d+) times (\d+)", lambda a, b: int(a) * int(b)),
        (r"(\d+) divided by (\d+)", lambda a, b: f"{int(a) / int(b):g}"),
        (r"(larger|greater|smaller|less|even|odd)\b.* (\d+) or (\d+)\?", compared),
        (r"(?:Sort|Put|Order)[^:]*: (\d[\d, ]+)\.", lambda numbers: ", ".join(sorted(numbers.split(", "), key=int))),
    ],
)
def test_sums_and_comparisons_are_right(asked, right):
    found = [(re.search(asked, question), reply) for question, reply in exchanges(corpus("instruction"))]
    answers = [(right(*match.groups()), reply) for match, reply in found if match]
    assert len(answers) > 20
    for answer, reply in answers:
        assert re.fullmatch(rf"(?:(?:It|The answer) is )?{answer}(?:, I am sure)?\.", reply), (answer, reply)


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
