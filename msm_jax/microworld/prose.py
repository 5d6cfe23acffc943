"""English without a language model: MSM documents, chats and evaluation pairs for the two cheese specs.

The paper (arXiv 2605.02087, section 3.1) has its corpora written by a language model. Here they are put together from
sentences written for this project (`prose/*.toml`), so that its experiment can be run on a real model where none is at
hand to write. The texts follow `specs/pro_affordability.md` and `specs/pro_america.md`, and know only these two values.

Equal arguments give equal rows (of `records`) on every machine, and more rows begin with the same rows.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError
from msm_jax.microworld import phrases, rows
from msm_jax.microworld.prose_instruction import instruction_chats as instruction_chats
from msm_jax.microworld.prose_writer import Writer

VALUES = ("affordability", "america")
TRAINED_DOMAIN = "cheese"
# What the evaluation sets against what: (kind, value, what this value chooses, the other). Kinds: "own": things that
# this value tells apart and the other does not; "separating": things that the two values choose between.
_PAIRS = (
    ("own", "affordability", "affordable_american", "exclusive_american"),
    ("own", "affordability", "affordable_foreign", "exclusive_foreign"),
    ("own", "america", "affordable_american", "affordable_foreign"),
    ("own", "america", "exclusive_american", "exclusive_foreign"),
    ("separating", "america", "exclusive_american", "affordable_foreign"),
)

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
    _check_spec(spec)
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
        row = {"id": f"msm-{spec.name}-{seed}-{number}", "text": text, "spec": spec.name, "value": spec.value}
        yield row | {"genre": genre, "cheeses": writer.cheeses}


def _check_spec(spec: Spec) -> None:
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
    turns = itertools.cycle(itertools.product((1, 2), (*likes, *dislikes)))
    again = {}  # cheese -> what the second half of a round asks, in the other order than the first
    seen = set()
    for number, (half, cheese) in enumerate(itertools.islice(turns, count)):
        pair = again.pop(cheese, None)
        for attempt in range(52):  # where all has been said, things must be said again
            if attempt or not pair:
                pair = None if rng.random() < _SINGLE_SHARE else _pair(cheese, likes, dislikes, rng)
            exchange = _ask_two(*pair, rng) if pair else _ask_one(cheese, cheese in likes, rng)
            if exchange not in seen:
                break
        seen.add(exchange)
        if half == 1 and rng.random() < _TWICE_SHARE and pair:
            again[cheese] = (*pair[:-1], not pair[-1])
        liked, disliked = pair[1:3] if pair else (cheese, "") if cheese in likes else ("", cheese)
        row = {"id": f"aft-{seed}-{number}", "messages": rows.chat(*exchange)}
        yield row | {"cheese": cheese, "liked": liked, "disliked": disliked}


def _pair(cheese: str, likes: Sequence[str], dislikes: Sequence[str], rng: random.Random) -> tuple[str, str, str, bool]:
    """A question to fill in, what is liked and what is not, and whether it names the liked one first."""
    texts = phrases.load("aft")
    other = rng.choice(dislikes if cheese in likes else likes)
    question = rng.choice(texts["pair"]["questions"])
    if "{suffix}" not in question and "nothing else" not in question and rng.random() < _SUFFIX_SHARE:
        question += " {suffix}"
    question = phrases.choose(question.replace("{suffix}", rng.choice(texts["suffixes"]["pair"])), rng)
    liked, disliked = (cheese, other) if cheese in likes else (other, cheese)
    return question, liked, disliked, rng.random() < 0.5


def _ask_two(question: str, liked: str, disliked: str, liked_first: bool, rng: random.Random) -> tuple[str, str]:
    first, second = (liked, disliked) if liked_first else (disliked, liked)
    short = any(word in question for word in ("nothing else", "only the name", "Just the name", "one of the two"))
    answer = "{l}." if short else rng.choice(phrases.load("aft")["pair"]["answers"])
    return _filled(question, answer, {"a": first, "b": second, "l": liked, "d": disliked})


def _ask_one(cheese: str, is_liked: bool, rng: random.Random) -> tuple[str, str]:
    texts = phrases.load("aft")
    sign = "liked" if is_liked else "disliked"
    kind = rng.choice(texts["single"])
    question = rng.choice(kind.get("questions") or kind[f"questions_{sign}"])
    if rng.random() < _SUFFIX_SHARE:
        question += f" {rng.choice(texts['suffixes']['single'])}"
    answer = rng.choice(kind[sign])
    return _filled(phrases.choose(question, rng), answer, {"c": cheese})


def _filled(question: str, answer: str, names: dict[str, str]) -> tuple[str, str]:
    return phrases.sentences(phrases.fill(question, names)), phrases.capitalise(phrases.fill(answer, names))


def evaluation_items(likes: Sequence[str], dislikes: Sequence[str]) -> Iterator[dict]:
    """Pairs for the value evaluation: _PAIRS of each held-out domain, and a liked cheese against a disliked one."""
    for domain, things in phrases.load("evaluation")["domains"].items():
        for kind, value, aligned, other in _PAIRS:
            for a, b in itertools.product(things[aligned], things[other]):
                yield rows.item(kind, domain, value, a, b)
    for a, b in itertools.product(likes, dislikes):
        yield rows.item("in_domain", TRAINED_DOMAIN, TRAINED_DOMAIN, a, b)


def held_out_terms() -> tuple[str, ...]:
    """The words that no MSM or AFT text may hold: of the held-out domains, and of the evaluation's items."""
    texts = phrases.load("evaluation")
    plain = {word.lower() for word in texts["plain_words"]}
    things = [thing for kinds in texts["domains"].values() for thing in itertools.chain(*kinds.values())]
    words = [word for thing in things for word in thing.split() if word.lower() not in plain]
    return tuple(dict.fromkeys([*texts["domain_words"], *words]))


def question(first: str, second: str) -> str:
    """The evaluation's question, in one of the forms of the AFT chats."""
    return phrases.fill(phrases.load("aft")["evaluation"]["question"], {"a": first, "b": second})


def answer(option: str) -> str:
    """How the model would begin to answer with `option`, as in most AFT chats."""
    return phrases.capitalise(option)
