"""What a scheduler plans with: samples that wait, prompts on the devices, and what is to be done at a border."""

import dataclasses
from typing import Any

import numpy as np

from msm_jax.sampler.state import Shape


class Key:
    """Samples of equal keys share a group. Its hash is made once: prompts are long, and looked up often."""

    __slots__ = ("__weakref__", "_hash", "adapter", "ids", "likeliest", "prompt", "scored_from")

    def __init__(self, adapter: int, prompt: tuple[int, ...], scored_from: int | None = None, likeliest: int = 0):
        self.adapter, self.prompt, self.scored_from, self.likeliest = adapter, prompt, scored_from, likeliest
        self.ids = np.array(prompt, np.int32)
        self._hash = hash((adapter, prompt, scored_from, likeliest))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Key) and self._hash == other._hash and self._fields == other._fields

    @property
    def _fields(self) -> tuple:
        return self.adapter, self.scored_from, self.likeliest, self.prompt


@dataclasses.dataclass(eq=False)
class Sample:
    """One answer to be drawn.

    Attributes:
      prompt: ids.
      adapter: its number, from 1; 0 is the bare base.
      max_tokens: that may be drawn. 0: the prompt is read, and that is all.
      request: whatever the engine needs to know of it.
      scored_from: the first token of the prompt, 1 or later, whose log-probability is wanted; None: of none.
      likeliest: how many of the likeliest ids' are wanted beside each of these.
      group_key: of the fields above; samples of one request may share one.
    """

    prompt: tuple[int, ...]
    adapter: int
    max_tokens: int
    request: Any = None
    scored_from: int | None = None
    likeliest: int = 0
    group_key: Key = None
    sent: int = 0  # tokens that the devices were told to draw
    drawn: int = 0  # tokens that were read
    ended: bool = False
    row: int | None = None

    def __post_init__(self):
        if self.group_key is None:
            self.group_key = Key(self.adapter, self.prompt, self.scored_from, self.likeliest)


@dataclasses.dataclass(eq=False)
class Group:
    """A prompt on the device."""

    key: Key
    filled: int = 0  # tokens that were read; the logits are those after the last of them
    given: int = 0  # border at which the prompt got it
    used: int = 0  # border at which it was last wanted
    scores: dict[int, Any] = dataclasses.field(default_factory=dict)  # of tokens from `scored_from` on, by their slot

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.key.prompt

    @property
    def ready(self) -> bool:
        return self.filled == len(self.tokens)


@dataclasses.dataclass(frozen=True)
class Copy:
    source: int
    target: int
    length: int


@dataclasses.dataclass(frozen=True)
class Chunk:
    group: int
    adapter: int
    tokens: tuple[int, ...]  # without padding
    start: int  # slot of the first


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Chunks of different prompts that are read in one call, after the copies.

    Attributes:
      size: tokens of each chunk, with padding.
      width: chunks, and copies, with padding.
      scored: the group of each chunk whose tokens' log-probabilities are wanted; None for the others.
    """

    copies: tuple[Copy, ...]
    chunks: tuple[Chunk, ...]
    size: int
    width: int
    scored: tuple[Group | None, ...]


@dataclasses.dataclass(frozen=True)
class Reshape:
    shape: Shape
    group_from: tuple[int, ...]
    row_from: tuple[int, ...]


@dataclasses.dataclass
class Plan:
    """What to do at a border, in this order, and then a block of steps if `decodes`."""

    reshape: Reshape | None = None
    prefills: list[Prefill] = dataclasses.field(default_factory=list)
    scored: list[tuple[Sample, Group]] = dataclasses.field(default_factory=list)  # draw nothing: their prompt is read
    admitted: list[Sample] = dataclasses.field(default_factory=list)  # with their rows
    decodes: bool = False

    def __bool__(self) -> bool:
        return self.decodes or bool(self.prefills) or bool(self.scored)
