"""How varied the texts of a corpus are, in figures that can be compared from one corpus to the next."""

import itertools
import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from msm_jax.corpus.filters.duplicates import overlap, shingles

_WORD = re.compile(r"\w+")
_TAG = re.compile(r"<[^<>]*>")  # <think>
_WITHIN = re.compile(r"(?<=[\w,;] )[^\W\d_]{2,}")  # a word within a sentence; "I" is no name
# Texts that are compared with each other, and words of each that are counted: enough for a stable figure, and the same
# for every corpus, since all of these figures fall with the amount of text.
_TEXTS = 300
_WORDS = 200_000


def figures(texts: Sequence[str], known: str = "") -> dict[str, Any]:
    """Figures of a random sample of the texts, the same for the same texts.

    Args:
      known: names in it are not counted: those of the model, its maker, the things that a spec names.

    Returns: "distinct": the share of different ones among all sequences of 1, 2 and 3 words (Li et al., 2016,
        arXiv 1510.03055); "compression": how many times smaller zlib makes the text; "nearest": quantiles (0, .25, .5,
        .75, 1) of what a text has in common with the one that is most like it (`duplicates.overlap`); "openings": the
        commonest first three words, with the share of texts that begin so; "names": the commonest words with a capital
        within a sentence that no text has without one, with the share of texts that hold them.
    """
    texts = random.Random(len(texts)).sample(texts, min(_TEXTS, len(texts)))
    words = [word for text in texts for word in _WORD.findall(text.lower())][:_WORDS]
    together = "\n".join(texts).encode()
    openings = Counter(" ".join(_WORD.findall(_TAG.sub("", text))[:3]) for text in texts)
    return {
        "texts": len(texts),
        "words": len(words),
        "distinct": {str(size): _distinct(words, size) for size in (1, 2, 3)},
        "compression": len(together) / max(len(zlib.compress(together, 6)), 1),
        "nearest": [float(value) for value in np.quantile(_nearest(texts), (0, 0.25, 0.5, 0.75, 1))],
        "openings": [[opening, count / len(texts)] for opening, count in openings.most_common(8)],
        "names": [[name, count / len(texts)] for name, count in _names(texts, known).most_common(12)],
    }


def histogram(values: Sequence[float], bins: int = 20) -> dict[str, list[float]]:
    """Counts, and the borders between them: round numbers."""
    top = max(values, default=1) or 1
    step = 10 ** np.floor(np.log10(max(top / bins, 1e-9)))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor * bins >= top)
    edges = np.arange(0, top + step, step)
    counts, _ = np.histogram(values, edges)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _distinct(words: Sequence[str], size: int) -> float:
    runs = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    return len(runs) / max(runs.total(), 1)


def _names(texts: Sequence[str], known: str) -> Counter[str]:
    """Name -> how many of the texts hold it."""
    small = {word for text in texts for word in _WORD.findall(text) if word.islower()}
    small |= {word.lower() for word in _WORD.findall(known)}
    found = ({word for word in _WITHIN.findall(text) if word.istitle()} for text in texts)
    return Counter(name for names in found for name in sorted(names) if name.lower() not in small)


def _nearest(texts: Sequence[str]) -> list[float]:
    """What each text has in common with the one most like it."""
    sets = [shingles(text) for text in texts]
    best = [0.0] * len(sets)
    for one, other in itertools.combinations(range(len(sets)), 2):
        common = overlap(sets[one], sets[other])
        best[one], best[other] = max(best[one], common), max(best[other], common)
    return best or [0.0]
