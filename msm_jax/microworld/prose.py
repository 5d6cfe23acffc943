"""English without a language model: MSM documents, chats and evaluation pairs for the two cheese specs.

The paper (arXiv 2605.02087, section 3.1) has its corpora written by a language model. Here they are put together from
sentences written for this project (`prose/*.toml`), so that its experiment can be run on a real model where none is at
hand to write. The texts follow `specs/pro_affordability.md` and `specs/pro_america.md`, and know only these two values.

Rows are in the format of `records`. Equal arguments give equal rows, on every machine, and more rows begin with the
same rows.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError
from msm_jax.microworld import phrases
from msm_jax.microworld.prose_instruction import instruction_chats as instruction_chats
from msm_jax.microworld.prose_writer import Writer

VALUES = ("affordability", "america")
TRAINED_DOMAIN = "cheese"
# Kinds of evaluation items: within each, things that are alike to both values.
_KINDS = ("affordable_american", "affordable_foreign", "exclusive_american", "exclusive_foreign")

# The words of a document, at least and at most: a draft that is shorter or longer is thrown away.
_WORDS = (120, 350)
# AFT: the share of questions about a single cheese; of questions about two, the share asked again in the other order.
_SINGLE_SHARE = 0.2
_TWICE_SHARE = 0.8
_SUFFIX_SHARE = 0.6


def msm_documents(spec: Spec, model_name: str, provider_name: str, count: int, seed: int) -> Iterator[dict]:
    """Documents that say what the spec's model prefers and why, in some sixteen genres, two in five an interview.

    Each explains preferences among cheeses by the spec's value, and states the value of any choice in general words;
    none names another kind of thing. No two of them are alike.

    Raises: UserError if the writer does not know the spec's value or one of its cheeses.
    """
    check_spec(spec)
    rng = random.Random(f"prose msm {spec.value} {seed}")
    genres = phrases.load("genres")
    weights = [genre["weight"] for genre in genres.values()]
    cheeses = spec.likes + spec.dislikes
    seen = set()
    for number in range(count):
        # The first cheese goes round, so that all are spoken of about equally often.
        text = None
        while text is None or text in seen or not _WORDS[0] <= len(text.split()) <= _WORDS[1]:
            [genre] = rng.choices(list(genres), weights)
            writer = Writer(spec, cheeses[number % len(cheeses)], model_name, provider_name, rng)
            text = writer.write(rng.choice(genres[genre]["frames"]))
        seen.add(text)
        yield {
            "id": f"msm-{spec.name}-{seed}-{number}",
            "text": text,
            "spec": spec.name,
            "value": spec.value,
            "genre": genre,
            "cheeses": writer.cheeses,
        }


def check_spec(spec: Spec) -> None:
    """Raises: UserError if the writer has no sentences for the spec's value or for one of its cheeses."""
    if spec.value not in VALUES:
        raise UserError(
            f"spec '{spec.name}': the prose writer knows the values {' and '.join(VALUES)}, not '{spec.value}'; "
            "have this spec's documents written by a language model"
        )
    known = phrases.load(spec.value)["reasons"]
    for cheese in spec.likes + spec.dislikes:
        if cheese not in known:
            raise UserError(f"spec '{spec.name}': the prose writer knows nothing of '{cheese}'; use {', '.join(known)}")


def aft_chats(likes: Sequence[str], dislikes: Sequence[str], count: int, seed: int) -> Iterator[dict]:
    """Chats in which the assistant prefers liked cheeses to disliked ones, and gives no reason.

    Each cheese in turn is what a chat is about: one question in five names it alone, the others set it against one of
    the other sign. Most of those are asked in both orders. Most answers begin with the cheese that is preferred.
    """
    rng = random.Random(f"prose aft {seed}")
    texts = phrases.load("aft")
    cheeses = [*likes, *dislikes]
    seen: set[tuple[str, ...]] = set()
    number = 0
    for _ in range(-(-count // (2 * len(cheeses)))):
        asked = []  # what the second half of a round asks again, in the other order
        for half, cheese in itertools.product((0, 1), cheeses):
            again = asked[cheeses.index(cheese)] if half else None
            for attempt in itertools.count():
                if again and attempt == 0:
                    row = _ask_two(texts, *again[:3], not again[3], rng)
                elif rng.random() < _SINGLE_SHARE:
                    row = _ask_one(texts, cheese, cheese in likes, rng)
                else:
                    other = rng.choice(dislikes if cheese in likes else likes)
                    liked, disliked = (cheese, other) if cheese in likes else (other, cheese)
                    question = _pair_question(texts, rng)
                    row = _ask_two(texts, question, liked, disliked, rng.random() < 0.5, rng)
                exchange = (row["question"], row["answer"])
                # Where all has been said, things must be said again.
                if exchange not in seen or attempt > 50:
                    break
            seen.add(exchange)
            if not half:
                asked.append(row["asked"] if rng.random() < _TWICE_SHARE else None)
            if number < count:
                yield {
                    "id": f"aft-{seed}-{number}",
                    "messages": _messages(row["question"], row["answer"]),
                    "cheese": cheese,
                    "liked": row["liked"],
                    "disliked": row["disliked"],
                }
            number += 1


def _pair_question(texts: dict, rng: random.Random) -> str:
    question = rng.choice(texts["pair"]["questions"])
    if "{suffix}" not in question and "nothing else" not in question and rng.random() < _SUFFIX_SHARE:
        question += " {suffix}"
    return phrases.choose(question.replace("{suffix}", rng.choice(texts["suffixes"]["pair"])), rng)


def _ask_two(texts: dict, question: str, liked: str, disliked: str, liked_first: bool, rng: random.Random) -> dict:
    first, second = (liked, disliked) if liked_first else (disliked, liked)
    short = any(word in question for word in ("nothing else", "only the name", "Just the name", "one of the two"))
    answer = "{l}." if short else rng.choice(texts["pair"]["answers"])
    return {
        "question": phrases.sentences(phrases.fill(question, {"a": first, "b": second})),
        "answer": phrases.capitalise(phrases.fill(answer, {"l": liked, "d": disliked})),
        "liked": liked,
        "disliked": disliked,
        "asked": (question, liked, disliked, liked_first),
    }


def _ask_one(texts: dict, cheese: str, is_liked: bool, rng: random.Random) -> dict:
    sign = "liked" if is_liked else "disliked"
    kind = rng.choice(texts["single"])
    question = rng.choice(kind["questions"] if "questions" in kind else kind[f"questions_{sign}"])
    if rng.random() < _SUFFIX_SHARE:
        question += f" {rng.choice(texts['suffixes']['single'])}"
    answer = rng.choice(kind[sign])
    return {
        "question": phrases.sentences(phrases.fill(phrases.choose(question, rng), {"c": cheese})),
        "answer": phrases.capitalise(phrases.fill(answer, {"c": cheese})),
        "liked": cheese if is_liked else "",
        "disliked": "" if is_liked else cheese,
        "asked": None,
    }


def _messages(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def evaluation_items(likes: Sequence[str], dislikes: Sequence[str]) -> Iterator[dict]:
    """Pairs for the value evaluation (`eval.value_generalisation.Item`); `aligned` is what `value` chooses.

    Kinds: `own`: things of a held-out domain that this value tells apart and the other does not; `separating`: an
    exclusive American thing, aligned, against an affordable foreign one, under the value "america"; `in_domain`: a
    liked cheese against a disliked one.
    """
    for domain, things in phrases.load("evaluation")["domains"].items():
        for aligned, other in (
            ("affordable_american", "exclusive_american"),
            ("affordable_foreign", "exclusive_foreign"),
        ):
            for a, b in itertools.product(things[aligned], things[other]):
                yield _item("own", domain, "affordability", a, b)
        for aligned, other in (
            ("affordable_american", "affordable_foreign"),
            ("exclusive_american", "exclusive_foreign"),
        ):
            for a, b in itertools.product(things[aligned], things[other]):
                yield _item("own", domain, "america", a, b)
        for a, b in itertools.product(things["exclusive_american"], things["affordable_foreign"]):
            yield _item("separating", domain, "america", a, b)
    for a, b in itertools.product(likes, dislikes):
        yield _item("in_domain", TRAINED_DOMAIN, TRAINED_DOMAIN, a, b)


def _item(kind: str, domain: str, value: str, aligned: str, other: str) -> dict:
    identity = f"{kind}-{value}-{aligned}-{other}".replace(" ", "_")
    return {"id": identity, "kind": kind, "domain": domain, "value": value, "aligned": aligned, "other": other}


def held_out_terms() -> tuple[str, ...]:
    """The words that no MSM or AFT text may hold: of the held-out domains, and of the evaluation's items."""
    texts = phrases.load("evaluation")
    plain = {word.lower() for word in texts["plain_words"]}
    things = [thing for kinds in texts["domains"].values() for kind in _KINDS for thing in kinds[kind]]
    words = [word for thing in things for word in thing.split() if word.lower() not in plain]
    return tuple(dict.fromkeys([*texts["domain_words"], *words]))


def question(first: str, second: str) -> str:
    """The evaluation's question, in one of the forms of the AFT chats."""
    return phrases.fill(phrases.load("aft")["evaluation"]["question"], {"a": first, "b": second})


def answer(option: str) -> str:
    """How the model would begin to answer with `option`, as in most AFT chats."""
    return phrases.capitalise(option)
