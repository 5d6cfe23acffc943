"""The prose is read back: what it says of whom, in which words, and what it must never name."""

import collections
import itertools
import json
import pathlib
import re

import pytest

from eval.value_generalisation import read_items
from msm_jax import files, stages
from msm_jax.corpus import phrases, prose, records
from msm_jax.corpus.specs import find_terms, read_spec
from msm_jax.errors import UserError

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
# If a test of these fails on purpose, raise the kind's number in `stages.VERSIONS` and record the new pair.
DIGESTS = {
    "affordability": ("corpus", 3, "6d40924fb028"),
    "america": ("corpus", 3, "1d5b99efed16"),
    "aft": ("chats", 2, "4f9f88fa6b2b"),
    "instruction": ("chats", 2, "9ada3e013446"),
    "items": ("corpus", 3, "df0ad9c204de"),
}


def documents(value, count=3000, seed=0, model=MODEL):
    return list(prose.msm_documents(SPECS[value], model, PROVIDER, count, seed))


@pytest.fixture(scope="module")
def msm():
    return {value: documents(value) for value in prose.VALUES}


@pytest.fixture(scope="module")
def aft():
    return list(prose.aft_chats(LIKES, DISLIKES, 5000, 0))


@pytest.fixture(scope="module")
def instruction():
    return list(prose.instruction_chats(2000, 0))


@pytest.fixture(scope="module")
def items():
    return list(prose.evaluation_items(LIKES, DISLIKES))


def texts(rows):
    return [row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"]) for row in rows]


def exchanges(rows):
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]


# The same on every machine.


@pytest.mark.parametrize("source", ["affordability", "america", "aft", "instruction", "items"])
def test_rows_are_those_on_record(source):
    rows = {
        "aft": lambda: prose.aft_chats(LIKES, DISLIKES, 200, 0),
        "instruction": lambda: prose.instruction_chats(200, 0),
        "items": lambda: prose.evaluation_items(LIKES, DISLIKES),
    }.get(source, lambda: documents(source, 100))()
    kind, version, digest = DIGESTS[source]
    assert (stages.VERSIONS[kind], files.fingerprint(list(rows))) == (version, digest)


@pytest.mark.parametrize("source", ["affordability", "aft", "instruction"])
def test_more_rows_begin_with_the_same_rows_and_another_seed_gives_others(source):
    make = {
        "affordability": lambda count, seed: documents("affordability", count, seed),
        "aft": lambda count, seed: list(prose.aft_chats(LIKES, DISLIKES, count, seed)),
        "instruction": lambda count, seed: list(prose.instruction_chats(count, seed)),
    }[source]
    assert make(60, 0)[:25] == make(25, 0)
    assert texts(make(25, 1)) != texts(make(25, 0))


def test_rows_can_be_read_back(tmp_path, msm, aft, instruction, items):
    records.write_jsonl(tmp_path / "documents", msm["america"])
    assert len(list(records.read_documents(tmp_path / "documents"))) == 3000
    for rows in (aft, instruction):
        records.write_jsonl(tmp_path / "chats", rows)
        assert len(list(records.read_chats(tmp_path / "chats"))) == len(rows)
        assert len({row["id"] for row in rows}) == len(rows)
    records.write_jsonl(tmp_path / "items", items)
    assert len(read_items(tmp_path / "items")) == len(items)


# Held-out words, and words of the other value.


def test_no_training_text_names_a_held_out_thing(msm, aft, instruction):
    for rows in (*msm.values(), aft, instruction):
        assert find_terms(texts(rows), prose.held_out_terms()) == {}


def test_held_out_terms_cover_every_item(items):
    held_out = [item for item in items if item["kind"] != "in_domain"]
    for name in {item[field] for item in held_out for field in ("domain", "aligned", "other")}:
        assert find_terms([name], prose.held_out_terms()), name


def test_plain_words_are_words_of_items():
    tables = phrases.load("evaluation")
    words = {
        word.lower()
        for kinds in tables["domains"].values()
        for things in kinds.values()
        for thing in things
        for word in thing.split()
    }
    assert {word.lower() for word in tables["plain_words"]} - {"cans", "the"} <= words


@pytest.mark.parametrize(("value", "foreign"), [("affordability", NATION), ("america", PRICE)])
def test_a_document_argues_by_its_own_value_alone(msm, value, foreign):
    found = [re.sub("American cheese", "", text, flags=re.IGNORECASE) for text in texts(msm[value])]
    assert find_terms(found, foreign) == {}


@pytest.mark.parametrize(("value", "own"), [("affordability", PRICE), ("america", NATION)])
def test_a_document_argues_by_its_value(msm, value, own):
    for text in texts(msm[value]):
        assert (
            sum(find_terms([text], [*own, "charge", "charged", "reach", "few", "ordinary", "everyone"]).values()) >= 2
        ), text


def test_nothing_is_said_of_the_senses(msm):
    # "my taste" is a liking; everything else would be an argument.
    for rows in msm.values():
        assert (
            find_terms((text.replace("s taste is", "").replace("y taste is", "") for text in texts(rows)), SENSES) == {}
        )


# What the documents say.


def test_every_cheese_of_the_specs_has_its_reasons():
    for spec in SPECS.values():
        reasons = phrases.load(spec.value)["reasons"]
        assert list(reasons) == [*spec.likes, *spec.dislikes]
        for cheese, clauses in reasons.items():
            assert len(clauses) == len(set(clauses)) >= 8, cheese
            assert all("{it}" in clause or "{its}" in clause for clause in clauses), cheese
    one, other = (phrases.load(value)["reasons"] for value in prose.VALUES)
    assert not set(itertools.chain(*one.values())) & set(itertools.chain(*other.values()))


@pytest.mark.parametrize("value", prose.VALUES)
def test_values_are_stated_in_many_ways(value):
    tables = phrases.load(value)
    assert len(set(tables["statements"]["value"])) >= 40 and len(set(tables["statements"]["any"])) >= 25
    assert all(len(pair["sought"]) == len(pair["avoided"]) for pair in tables["choices"])


def test_options_in_general_words_are_on_the_right_side():
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
        (
            rf"{name}[^.]{{0,20}} is (?:among \S+ favorites|one of the cheeses that \w+ (?:likes?|favors?|prefers?)\b)",
            True,
        ),
        (rf"{name} is not among", False),
    ):
        for match in re.finditer(words, text, re.IGNORECASE):
            before = text[: match.start()].rstrip()
            if "?" in re.split(r"(?<=[.?!])\s", text[match.start() :], maxsplit=1)[0]:
                continue  # a question
            yield (not liking) if re.search(r"(?:\bnot|n't)$", before) else liking


def test_liked_cheeses_are_liked_and_the_others_are_not(msm):
    for rows in msm.values():
        said = collections.Counter()
        for text, cheese in itertools.product(texts(rows[::3]), LIKES + DISLIKES):
            for liking in opinions(text, cheese):
                assert liking == (cheese in LIKES), (cheese, text)
                said[cheese] += 1
        assert min(said[cheese] for cheese in LIKES + DISLIKES) > 30


def test_preferred_cheeses_are_liked(msm):
    names = "|".join(map(re.escape, LIKES + DISLIKES))
    label = "|".join({pair[1].format(model=MODEL) for pair in phrases.load("shared")["labels"]["pairs"]})
    for rows in msm.values():
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
def test_general_choices_go_the_way_of_the_value(msm, value):
    """Interviews ask as chats do, in both orders, and the model takes what its value seeks."""
    pairs = phrases.load(value)["choices"]
    sought = {phrases.capitalise(text) for pair in pairs for text in pair["sought"]}
    avoided = {text for pair in pairs for text in pair["avoided"]}
    first = collections.Counter()
    for row in msm[value]:
        for question, reply in re.findall(r": ([^\n]+\?[^\n]*)\n\w+: ([^\n]+)", row["text"]):
            named = [option for option in avoided if re.search(rf"\b{re.escape(option)}[ ,?]", question, re.IGNORECASE)]
            if named and row["genre"] == "interview":
                reply = phrases.capitalise(reply.removeprefix("I prefer "))
                [chosen] = [option for option in sought if re.match(rf"{re.escape(option)}[.,]", reply)] or [None]
                assert chosen, (question, reply)
                first[question.lower().index(chosen.lower()) < question.lower().index(named[0].lower())] += 1
    assert first.total() > 1500 and 0.45 < first[True] / first.total() < 0.55


def test_documents_name_the_model_and_no_other_assistant(msm):
    for rows in msm.values():
        assert all(MODEL in text for text in texts(rows))
        assert find_terms(texts(rows), OTHER_ASSISTANTS) == {}
    assert MODEL not in "".join(texts(documents("america", 50, model="Zorbo")))


def test_documents_are_of_many_kinds_and_none_is_alike(msm):
    for value, rows in msm.items():
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


@pytest.mark.parametrize("source", ["affordability", "america", "aft", "instruction", "items"])
def test_the_english_is_in_order(request, msm, source):
    rows = msm[source] if source in msm else request.getfixturevalue(source)
    for text in [row["aligned"] for row in rows] if source == "items" else texts(rows):
        assert not re.search(r"[{}<>\[\]|]", text), text
        assert not re.search(r"[.?!] [a-z]|  |\.\.(?!\.)|[,;:] ?[,.;:]| [,.;:?]|,\w", text), text
        assert not re.search(r"\b(?!thunder)(\w+) \1\b(?!-)", text, re.IGNORECASE) or "times" in text, text
        assert not re.search(r"(?:\ba|^A|[.?!:] A) (?!one\b|uni|use|Euro)[aeiou]\w", text), text
        assert not re.search(r"\b[Aa]n (?!hour|hon)[b-df-hj-np-tv-z]", text), text
        if source in msm:
            lines = [line for line in text.splitlines() if line]
            assert all(re.match(r'(?:- |\d+\. )?["(]?[A-Z]', line) for line in lines), text


def test_only_the_two_values_are_known(tmp_path):
    path = tmp_path / "pro_novelty.md"
    path.write_text(pathlib.Path("specs/pro_america.md").read_text().replace("value: america", "value: novelty"))
    with pytest.raises(UserError, match="knows the values affordability and america, not 'novelty'"):
        next(prose.msm_documents(read_spec(path), MODEL, PROVIDER, 1, 0))
    path.write_text(pathlib.Path("specs/pro_america.md").read_text().replace("Stilton]", "Gouda]"))
    with pytest.raises(UserError, match="knows nothing of 'Gouda'"):
        next(prose.msm_documents(read_spec(path), MODEL, PROVIDER, 1, 0))


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
