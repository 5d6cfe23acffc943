"""What a sampler is asked for, and what it answers."""

import dataclasses
import enum
import math
import numbers
from collections.abc import Mapping
from typing import NamedTuple

from msm_jax.errors import UserError
from msm_jax.sampler.draw import BIASES, LIKELIEST
from msm_jax.sampler.state import STOP_IDS


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw an answer.

    Attributes:
      max_tokens: of the answer. 0: nothing is drawn, for those who want log-probabilities of the prompt alone.
      temperature: 0 takes the likeliest token.
      top_k: draw from this many of the likeliest; 0: all.
      top_p: draw from the fewest tokens that have this much probability together (arXiv 1904.09751).
      min_p: draw from tokens of at least this part of the likeliest's probability (arXiv 2407.01082).
      repetition_penalty: divides the logits of ids in prompt and answer, or multiplies negative ones (arXiv
        1909.05858).
      presence_penalty, frequency_penalty: taken from the logits of ids in the answer, once or for each time.
      logit_bias: id -> what is added to its logit.
      stop: texts that end the answer and are not part of it.
      stop_ids: ids that end it, besides those of the model.
      ignore_end: whether the model's own ids do not end it.
      seed: of all random numbers: sample i of two requests with equal seeds draws the same ones. None: no one's.
      stream: tells requests apart that share a seed.
      logprobs: how many of the likeliest ids' log-probabilities are given for each token; None: not even its own.
      prompt_logprobs: the same of the prompt's tokens, but for the first.

    Raises: UserError naming the field that is out of range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    seed: int | None = None
    stream: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self):
        whole = {
            "max_tokens": (0, math.inf), "top_k": (0, math.inf), "seed": (0, 2**63 - 1), "stream": (0, 2**32 - 1),
            "logprobs": (0, LIKELIEST), "prompt_logprobs": (0, LIKELIEST),
        }  # fmt: skip
        real = {
            "temperature": (0, 1000), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (0.01, 100),
            "presence_penalty": (-100, 100), "frequency_penalty": (-100, 100),
        }  # fmt: skip
        for name, (low, high) in {**whole, **real}.items():
            value = getattr(self, name)
            if value is None and name in ("seed", "logprobs", "prompt_logprobs"):
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral if name in whole else numbers.Real):
                kind = "whole number" if name in whole else "number"
                raise UserError(f"{name} is {value!r}; it must be a {kind}")
            above = name == "top_p"  # zero would rule out everything
            if not low <= value <= high or not math.isfinite(value) or (above and value == 0):
                if name == "seed":
                    high = "2**63 - 1"
                bounds = f"above {low}" if above else f"{low} or more"
                bounds = bounds if high == math.inf else f"{bounds}, and at most {high}"
                raise UserError(f"{name} is {value}; it must be {bounds}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop is {self.stop!r}; it must be a list of texts that are not empty")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        if len(self.logit_bias) > BIASES:
            raise UserError(f"logit_bias has {len(self.logit_bias)} ids; at most {BIASES} can be given")
        for token, bias in self.logit_bias.items():
            if (
                not isinstance(token, numbers.Integral)
                or not isinstance(bias, numbers.Real)
                or not -1000 <= bias <= 1000
            ):
                raise UserError(f"logit_bias gives {token!r} the bias {bias!r}; it maps ids to numbers up to 1000")


class Finish(enum.StrEnum):
    STOP = "stop"  # a stop text, or an id that ends answers
    LENGTH = "length"  # max_tokens
    CANCELLED = "cancelled"
    ERROR = "error"  # the model gave no numbers


class TokenLogprob(NamedTuple):
    """A token, its log-probability in nats in the model's own distribution, and those of the likeliest ids."""

    id: int
    logprob: float
    likeliest: dict[int, float]


def check_count(n: int) -> None:
    """Raises: UserError if there cannot be so many samples."""
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 0:
        raise UserError(f"n is {n!r}; it must be a whole number, 0 or more")


def check_stop_ids(ids: set[int], vocabulary: int) -> tuple[int, ...]:
    """The ids in order. Raises: UserError if they are too many, or one is outside of the vocabulary."""
    if len(ids) > STOP_IDS:
        raise UserError(f"{len(ids)} ids end an answer; at most {STOP_IDS} can")
    if outside := [i for i in ids if not 0 <= i < vocabulary]:
        raise UserError(f"stop_ids has {outside[0]}; ids are from 0 to {vocabulary - 1}")
    return tuple(sorted(ids))
