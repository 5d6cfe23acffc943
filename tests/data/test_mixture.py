import collections
import fractions
import math
import pickle
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from msm_jax.data.chat import Example
from msm_jax.data.mixture import Source, batches, epoch_steps
from msm_jax.data.rows import PackedRows, write_rows
from msm_jax.errors import UserError

ROW_LENGTH = 4
BASE = 1000  # row r of the source with n rows holds the token BASE * n + r


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory):
    """Number of rows -> rows that can be told apart by their second token."""
    made = {}

    def make(count, row_length=ROW_LENGTH):
        if (count, row_length) not in made:
            folder = tmp_path_factory.mktemp("rows")
            examples = (
                Example(np.array([1, BASE * count + row, *[2] * (row_length - 2)], np.int32), np.arange(row_length) > 0)
                for row in range(count)
            )
            write_rows(folder, examples, row_length, vocab_size=2**20)
            made[count, row_length] = PackedRows(folder)
        return made[count, row_length]

    return make


@pytest.fixture
def three(rows_of):
    return [Source("documents", rows_of(50), 0.7), Source("chats", rows_of(7), 0.2), Source("web", rows_of(20), 0.1)]


def ids(dataset, steps):
    return [int(token) for step in steps for token in dataset[step]["tokens"][:, 1]]


@pytest.mark.parametrize("host_count", [1, 2, 4])
def test_the_hosts_shares_make_up_the_global_batch(three, host_count):
    whole = batches(three, batch_size=8, seed=3)
    hosts = [batches(three, 8, 3, host, host_count) for host in range(host_count)]
    for step in (0, 1, 4321):
        batch, shares = whole[step], [host[step] for host in hosts]
        assert {key: (array.shape, array.dtype.name) for key, array in batch.items()} == {
            **dict.fromkeys(("tokens", "segments", "positions"), ((8, ROW_LENGTH), "int32")),
            **{"mask": ((8, ROW_LENGTH), "bool"), "source": ((8,), "int32")},
        }
        assert (batch["tokens"][:, 1] // BASE).tolist() == [(50, 7, 20)[index] for index in batch["source"]]
        assert all(len(share["source"]) == 8 // host_count for share in shares)
        for key, expected in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), expected)


def test_any_step_can_be_asked_for_at_once(three):
    in_order = [ids(batches(three, 4, 0), [step]) for step in range(12)]
    dataset = batches(three, 4, 0)
    assert [ids(dataset, [step]) for step in range(11, -1, -1)] == in_order[::-1]
    assert ids(pickle.loads(pickle.dumps(batches(three, 4, 0))), [9]) == in_order[9]
    iterator = iter(dataset.to_iter_dataset())
    iterator.set_state({"next_index": 9})
    assert next(iterator)["tokens"][:, 1].tolist() == in_order[9]
    # The order is that of rows, whatever the size of batches.
    assert ids(batches(three, 12, 0), range(4)) == sum(in_order, [])


@hypothesis.given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from([1, 0.1, 0.01]))
@hypothesis.settings(max_examples=15, deadline=None)
def test_shares_are_exact_in_every_cycle_and_close_within(rows_of, parts, unit):
    sources = [Source(str(i), rows_of(5), round(part * unit, 2)) for i, part in enumerate(parts)]
    cycle = sum(parts) // math.gcd(*parts)
    dataset = batches(sources, batch_size=cycle, seed=0)
    drawn = np.concatenate([dataset[step]["source"] for step in (0, 1, 2)])
    for start in (0, cycle, 2 * cycle):
        counts = collections.Counter(drawn[start : start + cycle].tolist())
        assert [counts[i] for i in range(len(parts))] == [part // math.gcd(*parts) for part in parts]
    for index, part in enumerate(parts):
        exact = np.arange(1, 3 * cycle + 1) * float(fractions.Fraction(part, sum(parts)))
        assert np.abs(np.cumsum(drawn == index) - exact).max() < len(parts)


def test_every_epoch_of_a_source_covers_it_in_a_new_order(three):
    drawn = ids(batches(three, 10, 0), range(30))
    for count in (50, 7, 20):
        own = [token for token in drawn if token // BASE == count]
        epochs = [own[start : start + count] for start in range(0, len(own) - count + 1, count)]
        assert epochs
        assert all(sorted(epoch) == list(range(BASE * count, BASE * count + count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
        assert sorted(epochs[0]) != epochs[0]


def test_the_seed_and_the_name_fix_a_sources_order(rows_of):
    def order(seed, *names):
        sources = [Source(name, rows_of(50), 1) for name in names]
        dataset = batches(sources, 10, seed)
        first = [dataset[step]["tokens"][dataset[step]["source"] == 0, 1] for step in range(8)]
        return np.concatenate(first)[:40].tolist()

    assert order(0, "a") == order(0, "a", "b")
    assert order(0, "a") != order(1, "a")
    assert order(0, "a") != order(0, "b")


def test_a_batch_may_be_larger_than_its_source(rows_of):
    assert sorted(ids(batches([Source("tiny", rows_of(1), 1)], 4, 0), [0])) == [BASE] * 4
    counts = collections.Counter(ids(batches([Source("small", rows_of(3), 1)], 9, 0), [5]))
    assert sorted(counts.values()) == [3, 3, 3]


@pytest.mark.parametrize(
    ("lengths_and_weights", "batch_size", "steps"),
    [
        ([(50, 1)], 10, 5),
        ([(50, 1)], 8, 7),
        ([(50, 5), (20, 2)], 7, 10),
        ([(50, 0.5), (20, 0.5)], 10, 4),
        ([(50, 0.9), (20, 0.1)], 10, 6),
    ],
)
def test_epoch_steps(rows_of, lengths_and_weights, batch_size, steps):
    sources = [Source(str(i), rows_of(n), weight) for i, (n, weight) in enumerate(lengths_and_weights)]
    assert epoch_steps(sources, batch_size) == steps
    # No row comes twice before its last step.
    drawn = ids(batches(sources, batch_size, 0), range(steps - 1))
    assert len(set(drawn)) == len(drawn)
    assert len(set(ids(batches(sources, batch_size, 0), range(steps + 1)))) < batch_size * (steps + 1)


def test_batches_are_cheap(rows_of):
    dataset = batches([Source("a", rows_of(50), 0.7), Source("b", rows_of(2), 0.3)], 64, 0)
    dataset[0]
    start = time.process_time()
    for step in range(4):
        dataset[10**9 + step]
    assert 4 * 64 / (time.process_time() - start) > 500  # several thousand, by processor time


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda s: [], {}, "no sources"),
        (lambda s: [s[0], s[0]], {}, "names must be unique"),
        (lambda s: [s[0]._replace(weight=0)], {}, "source 'documents' has weight 0; it must be above 0"),
        (lambda s: [s[0]._replace(weight=float("nan"))], {}, "has weight nan"),
        (lambda s: s, {"host_count": 4}, "batch_size 6 cannot be divided among 4 hosts; make it a multiple of 4"),
        (lambda s: s, {"batch_size": 0}, "batch_size 0"),
    ],
)
def test_errors(three, rows_of, change, arguments, message):
    with pytest.raises(UserError, match=message):
        batches(change(three), **{"batch_size": 6, "seed": 0, **arguments})
    longer = Source("b", rows_of(5, row_length=8), 1)
    with pytest.raises(UserError, match="different row lengths, {'documents': 4, 'b': 8}"):
        batches([three[0], longer], 2, 0)
