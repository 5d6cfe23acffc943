"""Texts that are nearly the same: the share of word sequences that two texts have in common.

The measure is the Jaccard index of their sets of five-word shingles (Broder, 1997): 1 for equal texts; about .6 where
one word in twenty was changed, .4 where one in ten was; near 0 for two texts on one subject.
"""

import functools
import re
import zlib
from collections.abc import Iterable

import numpy as np

_SIZE = 5
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\w+")
_LOW = np.uint64(2**32 - 1)
# Of the shingles that two texts have in common if they are nearly the same, so many are looked up, on average, and
# half of them must be found before the texts are compared. Fewer are found of one pair in 10^8 (Chernoff's bound).
_LOOKED_UP = 128


class NearDuplicates:
    """Keeps the first of texts that are nearly the same: no two that were kept have more than `most` in common.

    Texts that share a part of their smallest shingles are compared by all. So a text costs about the same however many
    there are, and a pair is overlooked with a chance below 10^-8; pairs of short texts never.
    """

    def __init__(self, most: float):
        self.most = most
        self._kept: list[str] = []
        self._index = _Index()

    def keep(self, text: str) -> bool:
        """Whether `text` is unlike all that were kept; then it is kept."""
        if self.most >= 1:
            return True  # no two have more in common than all
        own = shingles_again(text)
        least = max(int(self.most * len(own)), 1)  # in common with any that is nearly the same
        smallest = own[: np.searchsorted(own >> np.uint64(32), min(_LOOKED_UP / least, 1.0) * 2**32)]
        for holder in self._index.holders(smallest, min(least, _LOOKED_UP // 2)):
            if overlap(own, shingles_again(self._kept[holder])) > self.most:
                return False
        self._index.add(smallest)
        self._kept.append(text)
        return True


class Held:
    """Texts, of which another may be a copy of a part."""

    def __init__(self, texts: Iterable[str]):
        self._index = _Index(map(shingles, texts))

    def copied(self, text: str, most: float) -> bool:
        """Whether one of the texts has more than this share of the text's shingles; it has all of any part of it."""
        own = shingles(text)
        return len(self._index.holders(own, int(most * len(own)) + 1)) > 0


class _Index:
    """Which sets hold a shingle: sorted arrays of (32 bits of a shingle, number of its set), 8 bytes for each pair.

    Each array is several times as long as the next, so that sets can be added, and few arrays are searched.
    """

    def __init__(self, sets: Iterable[np.ndarray] = ()):
        self._count = 0
        pairs = bytearray()  # grows in place, so that all are in memory once
        for own in sets:
            pairs += self._numbered(own).tobytes()
        self._levels = [np.frombuffer(pairs, dtype=np.uint64)]
        self._levels[0].sort()

    def _numbered(self, own: np.ndarray) -> np.ndarray:
        self._count += 1
        return own & ~_LOW | np.uint64(self._count - 1)

    def add(self, own: np.ndarray) -> None:
        levels = self._levels
        levels.append(self._numbered(own))
        while len(levels) > 1 and len(levels[-2]) <= 4 * len(levels[-1]):
            levels[-2:] = [np.concatenate(levels[-2:])]
            levels[-1].sort()

    def holders(self, own: np.ndarray, least: int) -> np.ndarray:
        """int64, the numbers of the sets that hold at least `least` of these shingles, those with the most first.

        Half of `least`, those that most sets hold, are left out at first: whoever has `least` of all has the other half
        of it among the rest.
        """
        first = own & ~_LOW
        starts = [np.searchsorted(level, first) for level in self._levels]
        ends = [np.searchsorted(level, first | _LOW, side="right") for level in self._levels]
        rest = np.ones(len(own), dtype=bool)
        rest[np.argsort(np.sum(ends, 0) - np.sum(starts, 0))[len(own) - least // 2 :]] = False
        owners = []
        for level, start, end in zip(self._levels, starts, ends, strict=True):
            start, many = start[rest], (end - start)[rest]
            owners.append(level[np.repeat(start - np.cumsum(many) + many, many) + np.arange(many.sum())] & _LOW)
        numbers, shared = np.unique(np.concatenate(owners), return_counts=True)
        enough = shared >= least - least // 2
        numbers, shared = numbers[enough], shared[enough]
        # Those that were left out are looked up for these sets alone, however many others hold them.
        sought = first[~rest] | numbers[:, None]
        for level in filter(len, self._levels):
            place = np.minimum(np.searchsorted(level, sought), len(level) - 1)
            shared = shared + (level[place] == sought).sum(axis=1)
        enough = shared >= least
        numbers, shared = numbers[enough], shared[enough]
        return numbers[np.argsort(-shared, kind="stable")].astype(np.int64)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard index of two sets, given as sorted arrays without repetition; 0 for two that are empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(len(a) + len(b) - common, 1)


def shingles(text: str) -> np.ndarray:
    """uint64 [N], sorted: hashes of all runs of five words, whatever their case; of a shorter text, of the whole."""
    words = np.fromiter(map(_number, _WORD.findall(text.lower())), dtype=np.uint64)
    if not len(words):
        return words
    runs = np.lib.stride_tricks.sliding_window_view(words, min(_SIZE, len(words)))
    mixed = np.zeros(len(runs), dtype=np.uint64)
    for column in runs.T:  # modulo 2 ** 64
        mixed = (mixed + column + np.uint64(1)) * _FACTOR
        mixed ^= mixed >> np.uint64(29)
    mixed.sort()
    return mixed[np.concatenate([[True], mixed[1:] != mixed[:-1]])]


@functools.lru_cache(2**16)
def _number(word: str) -> int:
    return zlib.crc32(word.encode())


# Texts that are compared are often like what came shortly before.
shingles_again = functools.lru_cache(1024)(shingles)
