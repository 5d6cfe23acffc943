"""Whether a training text holds a prompt of an evaluation.

The method is word n-gram overlap: runs of 13 words, of 8 at least (Brown et al., 2020, arXiv 2005.14165, appendix C);
others take 8 throughout (Chowdhery et al., 2022, arXiv 2204.02311, section 8). They take such prompts out of an
evaluation; here the training text goes, since another can be written.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, repeat

import numpy as np

from msm_jax.errors import UserError

# The least length that tells a prompt from what people say anyway.
_LEAST = 8
# A run in more prompts than this (and in more than so large a share) is the evaluation's format, not its content.
_FEW, _SHARE = 3, 0.05
_WORD = re.compile(r"[^\W_]+")
# Odd numbers without a pattern: one for each word of a run.
_FACTORS = np.random.default_rng(0).integers(2**62, size=_LEAST, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


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

        def rare(runs: Collection[str]) -> set[str]:
            index = _Runs(runs)
            holders = Counter(run for whole in long for run in set(index.find(words[whole])))
            return {run for run in runs if holders[run] <= most}

        runs_of = {whole: _cut(words[whole], size) for whole in long}
        kept = rare(set(chain.from_iterable(runs_of.values())))
        wholes = {whole for whole in long if kept.isdisjoint(runs_of[whole])}
        for whole in rare(wholes):
            runs_of[whole].append(whole)
            kept.add(whole)
        self._prompt_of: dict[str, str] = {}  # a run -> the prompt that it is from
        for whole in long:
            for run in runs_of[whole]:
                if run in kept:
                    self._prompt_of.setdefault(run, given[whole])
        self._runs = _Runs(self._prompt_of)
        self._filling = {whole: prompt for whole, prompt in given.items() if whole not in long or whole in wholes}
        self._openings = {words[whole][0] for whole in self._filling}
        self._longest = max((len(words[whole]) for whole in self._filling), default=0)

    def find(self, text: str) -> str | None:
        """The prompt, as it was given, that `text` holds; None if it holds none. The first of several."""
        lines = [words for line in text.splitlines() if (words := _words(line))]
        run = next(self._runs.find(list(chain.from_iterable(lines))), None)
        return self._filler(lines) if run is None else self._prompt_of[run]

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
    """Finds any of many runs of words, of whatever lengths from eight on, in one pass over a text.

    The pass looks at hashes of eight words, the first of a run; where one may be known, the words themselves decide.
    """

    def __init__(self, runs: Collection[str]):
        self._runs = runs
        lengths: dict[str, tuple[int, ...]] = {}
        for run in runs:
            start, length = " ".join(run.split(" ", _LEAST)[:_LEAST]), run.count(" ") + 1
            if length not in (others := lengths.get(start, ())):
                lengths[start] = tuple(sorted((*others, length), reverse=True))  # the longest says most
        self._lengths = lengths
        starts = list(chain.from_iterable(start.split() for start in lengths))
        self._ids = {word: number for number, word in enumerate(dict.fromkeys(starts), start=1)}
        # Of all other texts, one place in thirty or less is looked at.
        bits = max(16, (32 * len(lengths)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._known = np.zeros(2**bits, dtype=bool)
        self._known[(self._numbers(starts).reshape(-1, _LEAST) @ _FACTORS) >> self._shift] = True

    def find(self, words: Sequence[str]) -> Iterator[str]:
        """Yields the runs that `words` hold, in their order."""
        if len(words) < _LEAST:
            return
        slots = np.correlate(self._numbers(words), _FACTORS) >> self._shift  # modulo 2 ** 64
        for start in np.flatnonzero(self._known[slots]).tolist():
            for length in self._lengths.get(" ".join(words[start : start + _LEAST]), ()):
                run = " ".join(words[start : start + length])
                if run in self._runs:
                    yield run

    def _numbers(self, words: Sequence[str]) -> np.ndarray:
        """uint64 [len(words)]; 0 for words that begin no run."""
        return np.fromiter(map(self._ids.get, words, repeat(0)), dtype=np.uint64, count=len(words))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _cut(words: Sequence[str], size: int) -> list[str]:
    """All runs of `size` words; of fewer words, the whole."""
    return [" ".join(words[start : start + size]) for start in range(max(len(words) - size, 0) + 1)]
