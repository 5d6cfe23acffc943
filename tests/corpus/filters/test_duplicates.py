import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.filters import duplicates
from msm_jax.corpus.filters.duplicates import Held, NearDuplicates, overlap, shingles

WORDS = [f"w{number}" for number in range(3000)]


def text(seed, length=400):
    return random.Random(seed).choices(WORDS, k=length)


def changed(words, share, seed=0):
    rng = random.Random(seed)
    return [rng.choice(WORDS) if rng.random() < share else word for word in words]


def jaccard(a, b):
    """By sets of word tuples."""
    one, other = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a, b))
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.1, 0.3])
def test_the_overlap_is_the_jaccard_index_of_five_word_runs(share):
    words = text(1)
    other = changed(words, share)
    found = overlap(shingles(" ".join(words)), shingles(" ".join(other).upper() + "."))
    assert found == pytest.approx(jaccard(words, other), abs=1e-9)


@pytest.mark.parametrize("most", [0.05, 0.7])
def test_of_long_texts_the_same_are_kept_as_if_all_were_compared(most):
    """Texts of very different lengths, of which parts are shared, near the threshold and on both sides of it: what was
    dropped drops nothing."""
    rng = random.Random(0)
    known, kept = NearDuplicates(most), []
    for _ in range(80):
        length = rng.choice([3, 300, 900, 2500])
        share = min(max(rng.gauss(2 * most / (1 + most), 0.05), 0), 1)
        words = text(rng.randrange(4), 2500)[:length]
        words[int(share * length) :] = rng.choices(WORDS, k=length - int(share * length))
        own = shingles(" ".join(words))
        expected = all(overlap(own, other) <= most for other in kept)
        assert known.keep(" ".join(words)) == expected
        kept += [own] if expected else []
    assert 15 < len(kept) < 70


def test_texts_that_share_little_are_not_compared(monkeypatch):
    """So a text costs about the same, however many were kept."""
    compared = []
    monkeypatch.setattr("msm_jax.corpus.filters.duplicates.overlap", lambda *sets: compared.append(sets) or 1.0)
    known = NearDuplicates(0.3)
    phrases = [" ".join(text(seed, 12)) for seed in range(40)]
    for seed in range(100):
        rng = random.Random(seed)
        assert known.keep(" ".join([*text(seed, 900), *rng.sample(phrases, 5)]))
    assert not compared
    assert not known.keep(" ".join(text(7, 900)))
    assert len(compared) == 1


def test_a_text_without_words_is_like_no_other():
    known = NearDuplicates(0.5)
    assert [known.keep(short) for short in ("", "", "one", "One!")] == [True, True, True, False]
    assert shingles("").dtype == np.uint64


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.integers(5, 90), st.integers(0, 90), st.sampled_from([0.1, 0.5, 0.9]))
def test_a_copy_has_more_than_a_share_of_its_runs_from_one_text(seed, copied, other, most):
    documents = [" ".join(text(source, 100)) for source in range(8)] * 2
    answer = " ".join([*text(seed % 8, 100)[:copied], *text(seed + 8, 90)[:other]])
    own = set(shingles(answer).tolist())
    shared = max(len(own & set(shingles(document).tolist())) for document in documents)
    held = Held(documents)
    assert held.copied(answer, most) == (shared > most * len(own))
    assert held.copied(" ".join(text(seed % 8, 100)[:copied]), 0.99)  # a part, however short
    assert not Held(()).copied(answer, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_holders_are_those_that_counting_all_gives(seed):
    rng = random.Random(seed)
    sets = [sorted(rng.sample(range(60), rng.randint(0, 30))) for _ in range(30)]
    own, least = sorted(rng.sample(range(60), 25)), rng.randint(1, 12)
    as_shingles = [np.array(numbers, np.uint64) << np.uint64(32) for numbers in (own, *sets)]
    index = duplicates._Index(as_shingles[1:10])
    for one in as_shingles[10:]:
        index.add(one)
    shared = [len(set(own) & set(one)) for one in sets]
    wanted = [number for number in np.argsort(-np.array(shared), kind="stable").tolist() if shared[number] >= least]
    assert index.holders(as_shingles[0], least).tolist() == wanted
