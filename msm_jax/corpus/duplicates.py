"""Texts that are nearly the same: the share of word sequences that two texts have in common.

The measure is the Jaccard index of their sets of five-word shingles (Broder, 1997): 1 for equal texts; about .6 where
one word in twenty was changed, .4 where one in ten was; near 0 for two texts on one subject.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

_SIZE = 5
# Of all shingles, one in so many is looked up, if that leaves enough; what looks alike by those is compared by all.
_SAMPLE = 8
_ENOUGH = 32
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Keeps the first of texts that are nearly the same: no two that were kept have more than `most` in common."""

    def __init__(self, most: float):
        self.most = most
        self._kept: list[tuple[np.ndarray, int]] = []  # all shingles, and how many of them can be looked up
        self._holders: dict[int, list[int]] = defaultdict(list)  # a sampled shingle -> the kept texts that have it

    def keep(self, text: str) -> bool:
        """Whether `text` is unlike all that were kept; then it is kept."""
        own = shingles(text)
        sample = own[own % _SAMPLE == 0]
        sampled = (sample if len(sample) >= _ENOUGH else own).tolist()
        shared = Counter(holder for shingle in sampled for holder in self._holders.get(shingle, ()))
        for holder, count in shared.most_common():
            other, known = self._kept[holder]
            # What two texts have in common their samples have too, about; half of it leaves room for chance.
            likely = count >= 0.5 * self.most * min(len(sampled), known)
            if likely and overlap(own, other) > self.most:
                return False
        for shingle in sampled:
            self._holders[shingle].append(len(self._kept))
        self._kept.append((own, len(sampled)))
        return True


class Held:
    """Texts, of which another may be a copy of a part."""

    def __init__(self, texts: Sequence[str]):
        sets = [shingles(text) for text in texts]
        held = np.concatenate(sets) if sets else np.zeros(0, dtype=np.uint64)
        owners = np.repeat(np.arange(len(sets), dtype=np.int32), [len(own) for own in sets])
        order = np.argsort(held, kind="stable")
        self._held, self._owners = held[order], owners[order]

    def share(self, text: str) -> float:
        """The largest share of the text's shingles that one of the texts has: 1 for any part of it."""
        own = shingles(text)
        first, last = np.searchsorted(self._held, own), np.searchsorted(self._held, own, side="right")
        shared = Counter(owner for a, b in zip(first, last, strict=True) for owner in self._owners[a:b].tolist())
        return max(shared.values(), default=0) / max(len(own), 1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard index of two sets, given as sorted arrays without repetition; 0 for two that are empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(len(a) + len(b) - common, 1)


def shingles(text: str) -> np.ndarray:
    """uint64 [N], sorted: hashes of all runs of five words, whatever their case; of a shorter text, of the whole."""
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], dtype=np.uint64)
    if not len(words):
        return words
    size = min(_SIZE, len(words))
    runs = np.lib.stride_tricks.sliding_window_view(words, size)
    mixed = np.zeros(len(runs), dtype=np.uint64)
    for column in range(size):  # modulo 2 ** 64
        mixed = (mixed + runs[:, column] + np.uint64(1)) * _FACTOR
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)
