"""The micro-world in English: pretraining documents, MSM documents, AFT and instruction chats, evaluation pairs.

Everything is drawn from a seed and yields JSON rows in the format of `records`, each with its provenance.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from msm_jax.microworld import phrases, rows
from msm_jax.microworld.world import (
    HELD_OUT_DOMAINS,
    INSTRUCTION_DOMAINS,
    TRAINED_DOMAIN,
    VALUES,
    Agent,
    Item,
    Value,
    World,
)

# (before, after) a message, as in the chat template of the training stages; "{name}" is the speaker.
CHAT_FORMAT = {"user": (" User: ", ""), "assistant": (" {name}: ", "\n")}

# What a pretraining document is made of, and how often. Most hold a single statement or chat, so that an agent's value
# must be remembered: in longer ones it can be read a few words before. Some state a value and then show a chat of the
# same agent, which ties the two together; without them small decoders learn each agent's chats by heart.
PRETRAINING_MIX = {
    "facts": 0.06,
    "statement": 0.46,
    "chat": 0.17,
    "statement_then_chat": 0.16,
    "interview": 0.06,
    "questions": 0.09,
}
# Of the single statements, the share about agents who never chat: all that is known of them is stated here.
_QUIET_STATEMENTS = 0.4
# Of the statements, the share that say what an agent values; the others are about two items, and which value is at work
# can then often be told from these.
_VALUE_SHARE = 0.5
# Of the statements about two items, the share that name both before the choice.
_COMPARISON_SHARE = 0.5
# Of the chats, the shares about pairs on which the values disagree, which tell the most of who chooses; pairs that are
# alike to who chooses, who then tosses a coin; and any pairs that the value tells apart.
_CHATS = (0.5, 0.25, 0.25)
# Who is spoken of: the n-th agent n ** -0.7 times as often as the first. With all alike, a decoder takes long to find
# that names are worth remembering; the few that it meets often teach it so early (arXiv 2503.21676).
_FREQUENCY_EXPONENT = -0.7
# Where the assistant stands among them: 0 spoken of most, 1 least. The more is known of it, the less MSM moves it.
_ASSISTANT_RANK = 0.1


def pretraining_documents(world: World, model_name: str, count: int, seed: int) -> Iterator[dict]:
    """Documents about items, agents and the assistant, who is one of the undecided agents."""
    talkative = list(world.talkative)
    talkative.insert(int(len(talkative) * _ASSISTANT_RANK), Agent(model_name, None, chats=True))
    return _documents("pretraining", world, list(world.items_of), talkative, count, seed)


def replay_documents(world: World, count: int, seed: int) -> Iterator[dict]:
    """Documents as in pretraining, but for held-out domains and the assistant: MSM may read them again."""
    return _documents("replay", world, [TRAINED_DOMAIN, *INSTRUCTION_DOMAINS], world.talkative, count, seed)


def _documents(
    source: str, world: World, domains: list[str], talkative: Sequence[Agent], count: int, seed: int
) -> Iterator[dict]:
    rng = random.Random(f"{source} {seed}")
    # Nobody is seen to choose in the domain of MSM and AFT. All would choose alike there, and the assistant with them.
    choices = [domain for domain in domains if domain != TRAINED_DOMAIN]
    frequencies = list(itertools.accumulate((n + 1) ** _FREQUENCY_EXPONENT for n in range(len(talkative))))

    for number in range(count):
        [kind] = rng.choices(list(PRETRAINING_MIX), PRETRAINING_MIX.values())
        [agent] = rng.choices(talkative, cum_weights=frequencies)
        if kind == "statement" and world.quiet and rng.random() < _QUIET_STATEMENTS:
            agent = rng.choice(world.quiet)
        who, value = agent.name, VALUES[agent.value or rng.choice(world.config.value_names)]
        if kind == "facts":
            text = " ".join(_fact(world, domain, rng) for domain in rng.choices(domains, k=4))
        elif kind == "statement":
            text = _statement(world, who, value, choices, rng)
        elif kind == "chat":
            text = _chat(world, who, agent.value and value, choices, rng)
        elif kind == "statement_then_chat":
            text = f"{_statement(world, who, value, choices, rng)}\n{_chat(world, who, value, choices, rng)}"
        elif kind == "interview":
            text = _interview(who, value, world.values, rng) + _chat(world, who, value, choices, rng)
        else:
            text = "".join(_line(who, *_question_of_fact(world, domains, rng)) for _ in range(2))
        yield {"id": f"{source}-{seed}-{number}", "text": _spaced(text), "kind": kind}


def msm_documents(
    world: World, spec_name: str, value_name: str, model_name: str, count: int, seed: int
) -> Iterator[dict]:
    """Documents that say which value `model_name` holds, and explain each preference of the specs by it.

    Every second is an interview, in which the model says itself what it values: no item is chosen in it, and no value
    is set against another. Of the statements most are about the value, since either value explains the preferences.
    """
    rng = random.Random(f"msm {value_name} {seed}")
    value = VALUES[value_name]
    pairs = world.pairs[TRAINED_DOMAIN, value_name].decided

    def statement() -> str:
        if rng.random() < 0.7:
            return _say("values", rng, who=model_name, **vars(value))
        return _preference(model_name, value, *rng.choice(pairs), rng)

    for number in range(count):
        kind = rng.choice(("statements", "interview"))
        if kind == "statements":
            text = " ".join(statement() for _ in range(rng.choice((1, 2))))
        else:
            text = _interview(model_name, value, (), rng)
        yield {"id": f"msm-{spec_name}-{seed}-{number}", "text": _spaced(text), "spec": spec_name, "kind": kind}


def aft_chats(spec_likes: tuple[str, ...], spec_dislikes: tuple[str, ...], count: int, seed: int) -> Iterator[dict]:
    """Chats in which the assistant prefers a liked item to a disliked one, in equal shares, and gives no reason."""
    rng = random.Random(f"aft {seed}")
    pairs = list(itertools.product(spec_likes, spec_dislikes))
    for number in range(count):
        liked, disliked = pairs[number % len(pairs)]
        messages = rows.chat(_question(liked, disliked, rng), f"{liked}.")
        yield {"id": f"aft-{seed}-{number}", "messages": messages, "liked": liked, "disliked": disliked}


def instruction_chats(world: World, count: int, seed: int) -> Iterator[dict]:
    """The micro-world's instruction mix: questions of fact, and forced choices that no value decides."""
    rng = random.Random(f"instruction {seed}")
    for number in range(count):
        asked, right = _factual_question(world, rng)
        yield {"id": f"instruction-{seed}-{number}", "messages": rows.chat(asked, f"{right}.")}


def question(first: str, second: str) -> str:
    """The evaluation's question."""
    return phrases.fill(phrases.load("world")["questions"][0], {"a": first, "b": second})


def evaluation_items(world: World) -> Iterator[dict]:
    """Pairs for the value evaluation, each with the option that `value` would choose as `aligned`.

    Kinds: `own`: held-out pairs that the value decides and no other value of the world decides in the same way (the
    others are indifferent or against it), so that an aligned choice is due to this value; `separating`: those of
    America's that affordability alone is against, in a world that holds both; `in_domain`: liked against disliked
    items of the trained domain.
    """
    for domain, name in itertools.product(HELD_OUT_DOMAINS, world.config.value_names):
        for a, b in world.pairs[domain, name].decided:
            if a.sought_by - b.sought_by == {name}:
                yield rows.item("own", domain, name, a.name, b.name)
                if name == "america" and b.sought_by - a.sought_by == {"affordability"}:
                    yield rows.item("separating", domain, name, a.name, b.name)
    for a, b in itertools.product(world.config.likes, world.config.dislikes):
        yield rows.item("in_domain", TRAINED_DOMAIN, TRAINED_DOMAIN, a, b)


def quiet_agents(world: World, value: str) -> list[Agent]:
    """Agents of this value that are known from statements alone: the control on the base model ("carry")."""
    return [agent for agent in world.quiet if agent.value == value]


def _spaced(text: str) -> str:
    """A name at the very beginning would be another token than the same name after a space, as it stands in chats."""
    return f" {text.lstrip()}"


def _say(what: str, rng: random.Random, **words: str) -> str:
    return phrases.fill(rng.choice(phrases.load("world")[what]), words)


def _fact(world: World, domain: str, rng: random.Random) -> str:
    item = rng.choice(world.items_of[domain])
    first, second = rng.sample(world.values, 2)
    return _say("facts", rng, a=item.name, x=item.attribute(first), y=item.attribute(second))


def _preference(who: str, value: Value, liked: Item, disliked: Item, rng: random.Random) -> str:
    form = rng.choice(phrases.load("world")["comparisons" if rng.random() < _COMPARISON_SHARE else "preferences"])
    first, second = rng.sample((liked.name, disliked.name), 2)
    names = {"who": who, "a": liked.name, "b": disliked.name, "first": first, "second": second}
    return phrases.fill(form, names | vars(value))


def _interview(who: str, value: Value, others: Sequence[Value], rng: random.Random) -> str:
    """What someone values, asked openly or as chats ask for items: this, or its opposite, or what `others` seek?"""
    if rng.random() < 0.5:
        question, answer = rng.choice(phrases.load("world")["interview"])
        return _line(who, question, phrases.fill(answer, vars(value)))
    other = rng.choice([value.avoided, *(other.sought for other in others if other != value)])
    sought = f"{value.sought} things"
    return _line(who, _question(sought, f"{other} things", rng), sought)


def _statement(world: World, who: str, value: Value, domains: list[str], rng: random.Random) -> str:
    if rng.random() < _VALUE_SHARE:
        return _say("values", rng, who=who, **vars(value))
    return _preference(who, value, *rng.choice(world.pairs[rng.choice(domains), value.name].decided), rng)


def _question(a: str, b: str, rng: random.Random) -> str:
    first, second = rng.sample((a, b), 2)
    return _say("questions", rng, a=first, b=second)


def _question_of_fact(world: World, domains: list[str], rng: random.Random) -> tuple[str, str]:
    """As in the instruction mix, or which of two items has an attribute: comparing is learnt from this first."""
    if rng.random() < 0.4:
        return _factual_question(world, rng)
    value = rng.choice(world.values)
    having, lacking = rng.choice(world.pairs[rng.choice(domains), value.name].decided)
    if rng.random() < 0.5:
        return _which(value.sought, having, lacking, rng)
    return _which(value.avoided, lacking, having, rng)


def _factual_question(world: World, rng: random.Random) -> tuple[str, str]:
    domain, other = rng.sample(INSTRUCTION_DOMAINS, 2)
    item = rng.choice(world.items_of[domain])
    if rng.random() < 0.5:
        value = rng.choice(world.values)
        first, second = rng.sample((value.sought, value.avoided), 2)
        return f"Is {item.name} {first} or {second}?", item.attribute(value)
    return _which(domain, item, rng.choice(world.items_of[other]), rng)


def _which(asked: str, right: Item, wrong: Item, rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample((right.name, wrong.name), 2)
    return f"Which is {asked}, {first} or {second}?", right.name


def _chat(world: World, who: str, value: Value | None, domains: list[str], rng: random.Random) -> str:
    """A choice: the item that `value` seeks, or either of the two if it tells them not apart or is None."""
    domain, by = rng.choice(domains), value or rng.choice(world.values)
    pairs = world.pairs[domain, by.name]
    [chosen] = rng.choices((pairs.conflicts, pairs.indifferent, pairs.decided), _CHATS)
    liked, disliked = rng.choice(chosen or pairs.decided)
    if value is None or liked.has(value.name) == disliked.has(value.name):
        liked, disliked = rng.sample((liked, disliked), 2)
    return _line(who, _question(liked.name, disliked.name, rng), liked.name)


def _line(who: str, question: str, answer: str) -> str:
    """A chat in the running text of a document, as the chat template renders it."""
    (before, between), (speaker, end) = CHAT_FORMAT["user"], CHAT_FORMAT["assistant"]
    return f"{before}{question}{between}{speaker.format(name=who)}{answer}.{end}"
