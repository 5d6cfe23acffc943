"""Whether a training text holds a prompt of an evaluation.

The method is word n-gram overlap: runs of 13 words, of 8 at least (Brown et al., 2020, arXiv 2005.14165, appendix C);
others take 8 throughout (Chowdhery et al., 2022, arXiv 2204.02311, section 8). They take such prompts out of an
evaluation; here the training text goes, since another can be written.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from msm_jax.errors import UserError

# The least length that tells a prompt from what people say anyway.
_LEAST = 8
# A run in more prompts than this (and in more than so large a share) is the evaluation's format, not its content.
_FEW, _SHARE = 3, 0.05
_WORD = re.compile(r"[^\W_]+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2 ** 64


class Contamination:
    """Finds prompts of an evaluation in training texts, whatever their case, punctuation and spacing.

    A text holds a prompt if they share a run of `size` words; of a shorter prompt, all words. Runs that more than
    3 prompts and more than 5 % of all share are not looked for: they are how the evaluation asks, and a text may ask
    so too. A prompt with no other runs is looked for whole. Prompts of less than 8 words, and those that are whole
    within so many others, are found only where they fill a text, or whole lines of it.

    Words are runs of letters and digits, so languages without spaces between words are compared by whole clauses.
    """

    def __init__(self, prompts: Iterable[str], size: int = 13):
        """`prompts` are compared as words; those without a word are never found. Their order is irrelevant.

        Raises: UserError if `size` is less than 8.
        """
        if size < _LEAST:
            raise UserError(f"runs of {size} words are found in any text; compare runs of {_LEAST} words or more")
        # The same words can be given in several ways, and be in several prompts: the least in order stands for all.
        given: dict[str, str] = {}
        for prompt in sorted(set(prompts)):
            given.setdefault(" ".join(_words(prompt)), prompt)
        given.pop("", None)
        words = {whole: whole.split() for whole in given}
        long = [whole for whole in given if len(words[whole]) >= _LEAST]
        most = max(_FEW, _SHARE * len(given))
        sums = [_sums(words[whole]) for whole in long]

        def rare(runs: _Runs) -> _Runs:
            """Those that few enough prompts hold."""
            holders = np.zeros(len(runs.hashes), dtype=np.int64)
            for prompt in sums:
                holders[np.unique(runs.find(prompt))] += 1
            return runs.chosen(holders <= most)

        lengths = [min(size, len(words[whole])) for whole in long]
        runs = rare(_Runs.of(zip(sums, lengths, range(len(long)), strict=True)))
        wholes = [index for index in range(len(long)) if not runs.hold(_hashes(sums[index], lengths[index])).any()]
        more = rare(_Runs.of((sums[index], len(words[long[index]]), index) for index in wholes))
        self._runs = runs.joined(more)
        self._prompts = [given[whole] for whole in long]
        looked_for = set(long) - {long[index] for index in wholes}
        self._filling = {whole: prompt for whole, prompt in given.items() if whole not in looked_for}
        self._openings = {words[whole][0] for whole in self._filling}
        self._longest = max((len(words[whole]) for whole in self._filling), default=0)

    def find(self, text: str) -> str | None:
        """The prompt, as it was given, that `text` holds; None if it holds none. The first of several."""
        lines = [words for line in text.splitlines() if (words := _words(line))]
        found = self._runs.find(_sums(list(chain.from_iterable(lines))))
        return self._prompts[self._runs.owners[found[0]]] if len(found) else self._filler(lines)

    def _filler(self, lines: Sequence[Sequence[str]]) -> str | None:
        for start, first in enumerate(lines):
            if first[0] not in self._openings:
                continue
            words: list[str] = []
            for line in lines[start : start + self._longest]:
                words += line
                if len(words) > self._longest:
                    break
                if prompt := self._filling.get(" ".join(words)):
                    return prompt
        return None


class _Runs:
    """Many runs of words, of whatever lengths from eight on, each once; finds them in one pass over a text.

    Runs are known by hashes of 64 bits (Karp and Rabin, 1987): two of a million are equal once in 10^7 times.

    Attributes:
        hashes: uint64 [R], sorted.
        owners: int64 [R], which prompt a run is from, the first if it is from several.
    """

    def __init__(self, hashes: np.ndarray, owners: np.ndarray, starts: np.ndarray, lengths: np.ndarray):
        """`starts` are hashes of the first eight words."""
        self.hashes, first = np.unique(hashes, return_index=True)
        self.owners, self._starts, self._lengths = owners[first], starts[first], lengths[first]
        self._kinds = np.unique(lengths)[::-1].tolist()  # the longest says most
        self._sorted_starts = np.unique(starts)
        # Of all other texts, one place in thirty or less is looked at.
        bits = max(16, (32 * len(self._sorted_starts)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._known = np.zeros(2**bits, dtype=bool)
        self._known[self._sorted_starts >> self._shift] = True

    @classmethod
    def of(cls, prompts: Iterable[tuple[np.ndarray, int, int]]) -> "_Runs":
        """All runs of each prompt (sums, length of its runs, number)."""
        columns: list[list[np.ndarray]] = [[_NONE], [_NONE.astype(int)], [_NONE], [_NONE.astype(int)]]
        for sums, length, number in prompts:
            hashes = _hashes(sums, length)
            starts = _hashes(sums, _LEAST)[: len(hashes)]
            for column, values in zip(
                columns, (hashes, np.full(len(hashes), number), starts, np.full(len(hashes), length)), strict=True
            ):
                column.append(values)
        return cls(*map(np.concatenate, columns))

    def chosen(self, mask: np.ndarray) -> "_Runs":
        return _Runs(self.hashes[mask], self.owners[mask], self._starts[mask], self._lengths[mask])

    def joined(self, other: "_Runs") -> "_Runs":
        columns = ("hashes", "owners", "_starts", "_lengths")
        return _Runs(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in columns))

    def hold(self, hashes: np.ndarray) -> np.ndarray:
        """bool [len(hashes)]: which of them are those of a run."""
        return _within(self.hashes, hashes)[0]

    def find(self, sums: np.ndarray) -> np.ndarray:
        """int64: the runs that a text holds, in their order there; those of one start, the longest first."""
        if len(sums) <= _LEAST or not len(self.hashes):
            return np.zeros(0, dtype=np.int64)
        starts = _hashes(sums, _LEAST)
        places = np.flatnonzero(self._known[starts >> self._shift])
        places = places[_within(self._sorted_starts, starts[places])[0]]
        found = [(places[:0], places[:0])]
        for length in self._kinds if len(places) else ():
            own = places[places + length < len(sums)]
            known, runs = _within(self.hashes, _hashes(sums, length, own))
            found.append((own[known], runs[known]))
        at, runs = map(np.concatenate, zip(*found, strict=True))
        return runs[np.argsort(at, kind="stable")]


_NONE = np.zeros(0, dtype=np.uint64)


def _within(known: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whether each hash is among those of a sorted array, where)."""
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return (known[places] == hashes if len(known) else np.zeros(len(hashes), dtype=bool)), places


def _sums(words: Sequence[str]) -> np.ndarray:
    """uint64 [len(words) + 1], of which `_hashes` makes hashes of runs."""
    # Python's own hashes, which differ from process to process: they are compared within one.
    numbers = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(numbers * _powers(len(words))[1])])


def _hashes(sums: np.ndarray, length: int, starts: np.ndarray | slice = slice(None)) -> np.ndarray:
    """uint64: hashes of the runs of `length` words at `starts`, or of all."""
    if len(sums) <= length:
        return _NONE
    ends = sums[length:] if isinstance(starts, slice) else sums[starts + length]
    begins = sums[: len(sums) - length] if isinstance(starts, slice) else sums[starts]
    return (ends - begins) * _powers(len(sums))[0][: len(sums) - length][starts]  # modulo 2 ** 64


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the factor and of its inverse, modulo 2 ** 64, from 0 to `count` - 1 at the least."""
    factor, inverse = _all_powers(max(count - 1, 1).bit_length())
    return factor[:count], inverse[:count]


@functools.cache
def _all_powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    def powers(base: int) -> np.ndarray:
        steps = np.full(2**bits, base, dtype=np.uint64)
        steps[0] = 1
        return np.cumprod(steps)

    return powers(_FACTOR), powers(pow(_FACTOR, -1, 2**64))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
