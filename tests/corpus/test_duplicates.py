import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.corpus.duplicates import Held, NearDuplicates, overlap, shingles

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


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(0, 2**16), st.sampled_from([0.2, 0.5, 0.8]))
def test_no_two_that_are_kept_have_more_in_common(sources, seed, most):
    rng = random.Random(seed)
    texts = [
        " ".join(changed(text(source % 4, 160), rng.choice([0, 0.03, 0.1, 0.5]), rng.random())) for source in sources
    ]
    known = NearDuplicates(most)
    kept = [shingles(one) for one in texts if known.keep(one)]
    for index, one in enumerate(kept):
        assert all(overlap(one, other) <= most for other in kept[:index])
    assert bool(kept) == bool(texts)


def test_near_duplicates_go_and_others_stay():
    known = NearDuplicates(0.3)
    assert all(known.keep(" ".join(text(seed))) for seed in range(200))
    near = [known.keep(" ".join(changed(text(seed), 0.05, seed))) for seed in range(200)]
    assert sum(near) <= 2  # a sample may hide one
    assert all(known.keep(" ".join(changed(text(seed), 0.4, seed))) for seed in range(200))


def test_what_was_dropped_drops_nothing():
    a = text(1)
    b, c = changed(a, 0.06, 1), changed(changed(a, 0.06, 1), 0.06, 2)
    first, second, third = (" ".join(words) for words in (a, b, c))
    most = (overlap(shingles(first), shingles(second)) + overlap(shingles(first), shingles(third))) / 2
    known = NearDuplicates(most)
    assert [known.keep(one) for one in (first, second, third)] == [True, False, True]


@pytest.mark.parametrize("short", ["", "one", "one two three four"])
def test_short_texts(short):
    known = NearDuplicates(0.5)
    assert known.keep(short)
    assert known.keep(short) == (short == "")
    assert shingles(short).dtype == np.uint64


def test_a_copied_part_is_found_however_short():
    rng = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    documents = [" ".join(rng.choices(words, k=300)) for _ in range(50)]
    held = Held(documents)
    for _ in range(200):
        parts = rng.choice(documents).split()
        first, count = rng.randrange(200), rng.randint(5, 60)
        assert held.share(" ".join(parts[first : first + count])) == 1.0
    assert held.share(" ".join(rng.choices(words, k=40))) < 0.1
    assert Held(()).share("one two three four five six") == 0.0
