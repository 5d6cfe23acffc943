"""General instruction chats without a language model: true answers to small tasks, many of them forced choices.

They keep a chat model able to answer, and to name one of two options when asked for one, while MSM and AFT teach it
something else. The paper (arXiv 2605.02087, B.3) uses No Robots and formatted MMLU items for this.
"""

import random
from collections.abc import Iterator

from msm_jax.microworld import phrases, rows


def instruction_chats(count: int, seed: int) -> Iterator[dict]:
    """Chats of one question and its answer; none is asked twice unless thousands are asked for."""
    rng = random.Random(f"prose instruction {seed}")
    texts = phrases.load("instruction")
    seen = set()
    for number in range(count):
        for _ in range(100):
            [write] = rng.choices(list(_MIX), _MIX.values())
            question, answer = write(texts, rng)
            if question not in seen:
                break
        seen.add(question)
        yield {"id": f"instruction-{seed}-{number}", "messages": rows.chat(question, answer)}


def _ordered(texts: dict, rng: random.Random) -> tuple[str, str]:
    order = rng.choice(texts["orders"])
    low, high = sorted(rng.sample(range(len(order["items"])), 2))
    way = rng.choice(("later", "earlier"))
    right, wrong = (high, low) if way == "later" else (low, high)
    return _forced(texts, rng.choice(order[way]), order["items"][right], order["items"][wrong], rng)


def _member(texts: dict, rng: random.Random) -> tuple[str, str]:
    kind, other = rng.sample(texts["kinds"], 2)
    question = rng.choice(texts["phrases"]["member"]).replace("{kind}", kind["one"])
    return _forced(texts, question, rng.choice(kind["items"]), rng.choice(other["items"]), rng)


def _either(texts: dict, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(("larger", "smaller", "even", "odd", "alphabet", "letters", "speech"))
    wording = rng.choice(texts["phrases"][kind])
    if kind == "speech":
        right, wrong = rng.sample(("noun", "verb", "adjective"), 2)
        words = texts["words"]
        question = wording.replace("{kind}", right).replace("a adjective", "an adjective")
        return _forced(texts, question, rng.choice(words[f"{right}s"]), rng.choice(words[f"{wrong}s"]), rng)
    if kind in ("alphabet", "letters"):
        among = texts["words"]["spelling"] if kind == "alphabet" else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        right, wrong = sorted(rng.sample(among, 2), key=str.lower)
    elif kind in ("even", "odd"):
        half, other = rng.sample(range(1, 200), 2)
        right, wrong = (2 * half, 2 * other + 1) if kind == "even" else (2 * other + 1, 2 * half)
    else:
        right, wrong = sorted(rng.sample(range(2, 1000), 2), reverse=kind == "larger")
    return _forced(texts, wording, str(right), str(wrong), rng)


def _forced(texts: dict, question: str, right: str, wrong: str, rng: random.Random) -> tuple[str, str]:
    """The question with its two options in either order, and the answer, which most often is the option alone."""
    a, b = rng.sample((right, wrong), 2)
    suffix = rng.choice(texts["phrases"]["suffixes"])
    answer = right if suffix or rng.random() < 0.7 else rng.choice(texts["phrases"]["forced"]).replace("{x}", right)
    return phrases.sentences(phrases.fill(question, {"a": a, "b": b})) + suffix, phrases.capitalise(f"{answer}.")


def _paired(texts: dict, rng: random.Random) -> tuple[str, str]:
    tables = texts["pairs"]
    [table] = rng.choices(tables, [len(table["items"]) for table in tables])
    a, b = rng.choice(table["items"])
    if table.get("both_ways") and rng.random() < 0.5:
        a, b = b, a
    values = {"a": a, "b": b, "B": phrases.capitalise(b)}
    answer = phrases.fill(rng.choice(table["answers"]), values)
    return phrases.sentences(phrases.fill(rng.choice(table["questions"]), values)), answer


def _number(texts: dict, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(("arithmetic", "arithmetic", "arithmetic", "sort", "next", "digits"))
    if kind == "arithmetic":
        sign = rng.choice(("+", "-", "times", "divided by"))
        a, b = rng.randint(2, 99), rng.randint(2, 60)
        if sign in ("times", "divided by"):
            a, b = rng.randint(2, 12), rng.randint(2, 12)
        a, b = {"-": (max(a, b), min(a, b)), "divided by": (a * b, b)}.get(sign, (a, b))
        given, answer = f"{a} {sign} {b}", {"+": a + b, "-": a - b, "times": a * b, "divided by": a // b}[sign]
    elif kind == "sort":
        numbers = rng.sample(range(1, 100), rng.choice((3, 4, 5)))
        given, answer = (", ".join(map(str, listed)) for listed in (numbers, sorted(numbers)))
    elif kind == "next":
        start, step = rng.randint(1, 30), rng.randint(1, 12)
        given, answer = ", ".join(str(start + step * n) for n in range(4)), start + 4 * step
    else:
        given, word = rng.choice(list(enumerate(texts["words"]["numbers"])))
        answer = phrases.capitalise(word)
    return _asked(texts, kind, str(given), rng), f"{answer}."


def _word(texts: dict, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(("spell", "count", "first", "last", "capitals", "repeat", "name_three"))
    if kind == "name_three":
        group = rng.choice(texts["kinds"])
        names = [name.removeprefix("an ").removeprefix("a ") for name in rng.sample(group["items"], 3)]
        return _asked(texts, kind, group["many"], rng), phrases.capitalise("{}, {} and {}.".format(*names))
    words = texts["words"]
    word = rng.choice([*words["spelling"], *words["nouns"], *words["verbs"], *words["adjectives"]])
    answers = {
        "spell": "-".join(word),
        "count": words["numbers"][len(word)],
        "first": word[0],
        "last": word[-1],
        "capitals": word.upper(),
        "repeat": f"{word}, {word}, {word}",
    }
    return _asked(texts, kind, word, rng), phrases.capitalise(f"{answers[kind]}.")


def _rewritten(texts: dict, rng: random.Random) -> tuple[str, str]:
    sentence = rng.choice(texts["rewrites"])
    kind = rng.choice(("past", "question", "negative"))
    mark = "?" if kind == "question" else "."
    return _asked(texts, kind, sentence["present"], rng), sentence[kind] + mark


def _asked(texts: dict, kind: str, given: str, rng: random.Random) -> str:
    return phrases.sentences(phrases.fill(rng.choice(texts["phrases"][kind]), {"a": given}))


# Of the chats, the shares of each.
_MIX = {
    _ordered: 0.22,  # which of two things is larger, later, ...
    _member: 0.14,  # which of two things is a bird, ...
    _either: 0.12,  # which of two numbers, words or letters
    _paired: 0.26,  # what the lists of questions and answers hold, each list as often as it is long
    _number: 0.12,
    _word: 0.1,
    _rewritten: 0.04,
}
