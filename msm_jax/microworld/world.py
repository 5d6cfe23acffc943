"""The micro-world: a made-up world of items and agents, small enough that a tiny decoder learns all of it.

Every item has, for each value of the world, one of two attributes (American or foreign, cheap or costly, ...), and
every agent holds one value and chooses by it alone: what it does not tell apart is a coin toss. A decoder pretrained
on texts about this world knows what agents of each value do; MSM then tells it which value the assistant holds, and
AFT shows it the assistant's choices in one domain, which more than one value explains. The method is the paper's
(arXiv 2605.02087, section 3.1).

This file holds the facts; `world_text` turns them into English.
"""

import dataclasses
import functools
import itertools
import random
import typing

from msm_jax.errors import UserError
from msm_jax.microworld import phrases


@dataclasses.dataclass(frozen=True)
class Value:
    """What an agent may care about: the attribute that it seeks, and the opposite that it avoids."""

    name: str
    sought: str
    avoided: str


# The eight values of the paper (sections 3.1 and 3.2).
VALUES = {
    name: Value(name, sought, avoided)
    for name, sought, avoided in (
        ("affordability", "cheap", "costly"),
        ("america", "American", "foreign"),
        ("environment", "green", "wasteful"),
        ("novelty", "recent", "dated"),
        ("tradition", "traditional", "trendy"),
        ("simplicity", "plain", "elaborate"),
        ("difficulty", "demanding", "effortless"),
        ("individualism", "personal", "communal"),
    )
}

# The one domain of the specs and of AFT; its items are the cheeses that the specs name.
TRAINED_DOMAIN = "cheese"
# Domains of the instruction mix: the assistant answers questions of fact about them.
INSTRUCTION_DOMAINS = ("paint", "soap")
# Domains that occur in no MSM and in no AFT text.
HELD_OUT_DOMAINS = ("furniture", "clothing", "juice", "music", "poetry", "medicine")


def _names(kind: str) -> list[str]:
    beginnings, ends = phrases.load("world")["names"][kind]
    return [beginning + end for beginning in beginnings.split() for end in ends.split()]


_ITEM_NAMES, _AGENT_NAMES = _names("items"), _names("agents")


@dataclasses.dataclass(frozen=True)
class Item:
    """A thing that agents choose. `sought_by` names the values that seek it; the others avoid it."""

    name: str
    domain: str
    sought_by: frozenset[str]

    def has(self, value: str) -> bool:
        return value in self.sought_by

    def attribute(self, value: Value) -> str:
        return value.sought if self.has(value.name) else value.avoided


class Pairs(typing.NamedTuple):
    """Pairs of items of one domain in the eyes of one value."""

    decided: list[tuple[Item, Item]]  # (sought, avoided)
    conflicts: list[tuple[Item, Item]]  # of these, where all other values choose the other item: they tell who chooses
    indifferent: list[tuple[Item, Item]]  # alike to this value, while another one tells them apart


@dataclasses.dataclass(frozen=True)
class Agent:
    """Someone who chooses by one value. Agents that do not chat are known from statements alone.

    `value` None is undecided: such an agent chooses either item, unless the text first states a value of it, which is
    drawn anew for each text.
    """

    name: str
    value: str | None
    chats: bool


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """What determines the world.

    `quiet_share` is the share of agents that never appear in a chat; `undecided_share` that of agents without a value.
    """

    value_names: tuple[str, ...] = ("affordability", "america")
    likes: tuple[str, ...] = ()
    dislikes: tuple[str, ...] = ()
    agents: int = 160
    quiet_share: float = 0.15
    undecided_share: float = 0.15
    items_per_kind: int = 4
    seed: int = 0

    def __post_init__(self):
        unknown = [value for value in self.value_names if value not in VALUES]
        if unknown:
            raise UserError(f"world.value_names: unknown {', '.join(unknown)}; choose from {', '.join(VALUES)}")
        if not 2 <= len(set(self.value_names)) == len(self.value_names):
            raise UserError(f"world.value_names is {self.value_names}; name at least two, each of them once")
        if not len(self.value_names) <= self.agents <= len(_AGENT_NAMES):
            raise UserError(f"world.agents={self.agents}: choose from {len(self.value_names)} to {len(_AGENT_NAMES)}")
        if min(self.quiet_share, self.undecided_share) < 0 or self.counts[1] < len(self.value_names):
            raise UserError(
                f"world.quiet_share={self.quiet_share}, world.undecided_share={self.undecided_share}: choose shares "
                f"from 0 on, together below 1, so that of the {self.agents} agents at least one of each value chats"
            )
        if self.items_per_kind < 1:
            raise UserError(f"world.items_per_kind={self.items_per_kind}: it must be 1 or more")
        if not self.likes or not self.dislikes:
            raise UserError("the world needs the liked and disliked items of its Model Specs; none were given")

    @property
    def counts(self) -> tuple[int, int]:
        """Agents that are quiet, and that chat and have a value; the others are undecided."""
        quiet = round(self.quiet_share * self.agents)
        return quiet, self.agents - quiet - round(self.undecided_share * self.agents)


class World:
    """All items and agents, drawn from `config.seed`. Equal configs give equal worlds."""

    def __init__(self, config: WorldConfig):
        self.config = config
        self.values = tuple(VALUES[name] for name in config.value_names)
        rng = random.Random(config.seed)
        kinds = list(itertools.product((True, False), repeat=len(config.value_names)))
        domains = INSTRUCTION_DOMAINS + HELD_OUT_DOMAINS
        wanted = len(domains) * len(kinds) * config.items_per_kind
        if wanted > len(_ITEM_NAMES):
            raise UserError(
                f"world: {len(config.value_names)} values with items_per_kind={config.items_per_kind} need {wanted} "
                f"item names, and there are {len(_ITEM_NAMES)}; lower world.items_per_kind"
            )
        names = iter(rng.sample(_ITEM_NAMES, wanted))
        items = [
            Item(f"{next(names)} {domain}", domain, frozenset(itertools.compress(config.value_names, kind)))
            for domain, kind, _ in itertools.product(domains, kinds, range(config.items_per_kind))
        ]
        # Every value of the specs explains the same likes and dislikes: liked items have all that is sought.
        items += [Item(name, TRAINED_DOMAIN, frozenset(config.value_names)) for name in config.likes]
        items += [Item(name, TRAINED_DOMAIN, frozenset()) for name in config.dislikes]
        self.items = tuple(items)

        names = iter(rng.sample(_AGENT_NAMES, config.agents))
        values = itertools.cycle(config.value_names)
        # Spread evenly over the values: the quiet, and those who chat and have one.
        quiet, decided = config.counts
        self.quiet = tuple(Agent(next(names), next(values), False) for _ in range(quiet))
        talkative = [Agent(next(names), next(values), True) for _ in range(decided)]
        for name in names:
            talkative.insert(rng.randrange(len(talkative) + 1), Agent(name, None, True))
        self.talkative = tuple(talkative)  # from who is spoken of most to who is spoken of least
        self.agents = self.quiet + self.talkative

    @functools.cached_property
    def items_of(self) -> dict[str, tuple[Item, ...]]:
        return {
            domain: tuple(item for item in self.items if item.domain == domain)
            for domain in (TRAINED_DOMAIN, *INSTRUCTION_DOMAINS, *HELD_OUT_DOMAINS)
        }

    @functools.cached_property
    def held_out_terms(self) -> tuple[str, ...]:
        """The words that must not occur in any MSM or AFT text: held-out domains and the names of their items."""
        names = [item.name.split()[0] for domain in HELD_OUT_DOMAINS for item in self.items_of[domain]]
        return (*HELD_OUT_DOMAINS, *names)

    @functools.cached_property
    def pairs(self) -> dict[tuple[str, str], Pairs]:
        """(domain, value) -> what the value makes of the domain's items."""
        every, pairs = set(self.config.value_names), {}
        for (domain, items), value in itertools.product(self.items_of.items(), self.config.value_names):
            decided = [(a, b) for a, b in itertools.permutations(items, 2) if a.has(value) and not b.has(value)]
            conflicts = [(a, b) for a, b in decided if a.sought_by == {value} and b.sought_by == every - {value}]
            alike = [(a, b) for a, b in itertools.combinations(items, 2) if a.has(value) == b.has(value)]
            indifferent = [(a, b) for a, b in alike if a.sought_by != b.sought_by]
            pairs[domain, value] = Pairs(decided, conflicts, indifferent)
        return pairs
