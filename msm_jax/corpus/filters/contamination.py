"""Whether a training text holds a prompt of an evaluation.

The method is word n-gram overlap: runs of 13 words, of 8 at least (Brown et al., 2020, arXiv 2005.14165, appendix C);
others take 8 throughout (Chowdhery et al., 2022, arXiv 2204.02311, section 8). They take such prompts out of an
evaluation; here the training text goes, since another can be written.
"""

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from msm_jax.errors import UserError

# The least length that tells a prompt from what people say anyway.
_LEAST = 8
# A run in more prompts than this (and in more than so large a share) is the evaluation's format, not its content.
_FEW, _SHARE = 3, 0.05
_WORD = re.compile(r"[^\W_]+")

_Words = tuple[str, ...]


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
        self._given: dict[_Words, str] = {}
        for prompt in sorted(set(prompts)):
            self._given.setdefault(tuple(map(sys.intern, _words(prompt))), prompt)
        self._given.pop((), None)
        long = [words for words in self._given if len(words) >= _LEAST]
        most = max(_FEW, _SHARE * len(self._given))

        def rare(owners: Mapping[_Words, _Words]) -> dict[_Words, _Words]:
            """Those of the runs that few enough prompts hold."""
            runs = _Runs(owners)
            holders = Counter(chain.from_iterable(set(runs.find(words)) for words in long))
            return {run: owner for run, owner in owners.items() if holders[run] <= most}

        def parts(words: _Words) -> Iterator[_Words]:
            length = min(size, len(words))
            return (words[start : start + length] for start in range(len(words) - length + 1))

        self._owners = rare({run: words for words in reversed(long) for run in parts(words)})
        wholes = [words for words in long if not any(run in self._owners for run in parts(words))]
        self._owners |= rare({words: words for words in wholes})
        self._runs = _Runs(self._owners)
        self._filling = set(self._given).difference(long).union(wholes)
        self._openings = {words[0] for words in self._filling}
        self._longest = max(map(len, self._filling), default=0)

    def find(self, text: str) -> str | None:
        """The prompt, as it was given, that `text` holds; None if it holds none. The first of several."""
        lines = [words for line in text.splitlines() if (words := _words(line))]
        run = next(self._runs.find(list(chain.from_iterable(lines))), None)
        return self._given[self._owners[run]] if run else self._filler(lines)

    def _filler(self, lines: Sequence[Sequence[str]]) -> str | None:
        for start, first in enumerate(lines):
            words: _Words = ()
            for line in lines[start : start + self._longest] if first[0] in self._openings else ():
                words += tuple(line)
                if words in self._filling:
                    return self._given[words]
                if len(words) > self._longest:
                    break
        return None


class _Runs:
    """Runs of words, of whatever lengths from eight on; finds them in one pass over a text."""

    def __init__(self, runs: Collection[_Words]):
        self._runs = runs
        self._lengths = sorted(set(map(len, runs)), reverse=True)  # the longest says most
        # Of all other texts, hardly any place is looked at twice.
        self._starts = {hash(run[:_LEAST]) for run in runs}

    def find(self, words: Sequence[str]) -> Iterator[_Words]:
        """Those that a text holds, in their order there; those of one start, the longest first."""
        starts = map(hash, zip(*(words[offset:] for offset in range(_LEAST)), strict=False))
        for place in [place for place, start in enumerate(starts) if start in self._starts]:
            for length in self._lengths:
                if (run := tuple(words[place : place + length])) in self._runs:
                    yield run


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
