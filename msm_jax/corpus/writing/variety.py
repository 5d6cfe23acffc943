"""What tells one document from the next beside its idea: its register, readers, people and length.

All of it is drawn from tables (`prompts/document_*.md`) by the id of the idea, so that it is the same each time.
"""

import collections
import functools
import statistics
from collections.abc import Mapping, Sequence

from msm_jax.corpus.records import content_id
from msm_jax.corpus.specs import find_terms
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.errors import UserError

# Of how the text speaks. The shares are `documents.registers` of the configuration.
REGISTERS = ("account", "first_person", "dialogue", "record")
# How long documents of a type are, as a multiple of the others; one document is up to _SPREAD longer or shorter.
LENGTHS = {"short": 0.5, "medium": 1.0, "long": 1.8}
_SPREAD = 0.25
# The first so many documents tell how long a text becomes for which so many words are asked.
CALIBRATION = 100
_ENOUGH = 10  # texts of one length; with fewer, all lengths tell together
_PEOPLE = 3
# Of English, in the tokenizers of today: which of them will read a text is not known here.
CHARACTERS_PER_TOKEN = 4.2
TOKENS_PER_WORD = 1.35


def tokens_of(text: str) -> float:
    """About how many."""
    return len(text) / CHARACTERS_PER_TOKEN


@functools.lru_cache(2**16)  # each is asked for several times while its document is written
def share_of(*by: str) -> float:
    """A number from 0 to 1, evenly spread, the same each time for the same `by`."""
    return int(content_id(list(by))[:13], 16) / 16**13


def drawn(texts: Sequence[str], *by: str) -> str:
    """One of them, the same each time for the same `by`."""
    return texts[int(share_of(*by) * len(texts))]


class Variety:
    """Draws for each idea how it is told. No entry of a table is drawn that holds one of the terms `held_out`.

    `shares`: register -> its share of the documents, in any unit.

    Raises: UserError if that leaves none of a table.
    """

    def __init__(
        self, prompts: Prompts, common: Mapping[str, str], shares: Mapping[str, float], held_out: Sequence[str]
    ):
        self._registers = prompts.table("document_registers", **common)
        self._shares = shares
        self._tables: dict[str, list[str]] = {}
        for name in ("audiences", "names", "occupations"):
            texts = prompts.table(f"document_{name}", **common).values()
            self._tables[name] = [text for text in texts if not (held_out and find_terms([text], held_out))]
            if not self._tables[name]:
                raise UserError(f"the prompt document_{name}.md: every entry holds words that are held out; add others")

    def register(self, idea: str) -> str:
        """Its key in the table."""
        left = share_of(idea, "register") * sum(self._shares.values())
        for name, share in self._shares.items():
            left -= share
            if left < 0:
                return name
        return next(name for name in reversed(self._shares) if self._shares[name])  # rounding took the last bit

    def told(self, idea: str) -> dict[str, str]:
        """The variables of the prompts of a plan and a document."""
        people = zip(self._several("names", idea), self._several("occupations", idea), strict=False)
        return {
            "register": self._registers[self.register(idea)],
            "audience": drawn(self._tables["audiences"], idea, "audience"),
            "people": "; ".join(map(", ".join, people)),
        }

    def _several(self, name: str, idea: str) -> list[str]:
        """Different ones."""
        table = self._tables[name]
        first = int(share_of(idea, name) * len(table))
        step = 1 + int(share_of(idea, name, "step") * (len(table) // _PEOPLE))
        return [table[(first + turn * step) % len(table)] for turn in range(min(_PEOPLE, len(table)))]


class Lengths:
    """How many words a document is to have, and how many are asked for so that it has them.

    Language models write less or more than they are asked for. What is asked for the first CALIBRATION documents is
    what is wanted; they tell the factor for all that follow, by the length of the type.

    `words`: of the documents of all `types` (their lengths) together, in the mean.
    """

    def __init__(self, words: int, types: Sequence[str]):
        self._unit = words / statistics.mean([LENGTHS[length] for length in types]) if types else words
        self._became: dict[str, list[float]] = collections.defaultdict(list)
        self._factors = dict.fromkeys(LENGTHS, 1.0)
        self.calibrated = False

    def wanted(self, idea: str, length: str) -> int:
        return _round(self._unit * LENGTHS[length] * (1 + _SPREAD * (2 * share_of(idea, "length") - 1)))

    def asked(self, idea: str, length: str) -> int:
        return _round(self.wanted(idea, length) * self._factors[length])

    def observe(self, idea: str, length: str, words: int) -> None:
        """That a document of the first CALIBRATION has so many words."""
        self._became[length].append(words / self.asked(idea, length))

    def calibrate(self) -> None:
        """From here on what is asked for is what makes the length that is wanted: half of that to twice as much."""
        self.calibrated = True
        together = [share for shares in self._became.values() for share in shares]
        for length in LENGTHS:
            known = self._became[length] if len(self._became[length]) >= _ENOUGH else together
            if known and (became := statistics.median(known)):
                self._factors[length] = min(max(1 / became, 0.5), 2.0)


def _round(words: float) -> int:
    """What a person would ask for."""
    return max(round(words / 10) * 10 if words >= 100 else round(words), 1)
