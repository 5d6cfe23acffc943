import collections
import pickle
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from msm_jax.data.chat import Example
from msm_jax.data.rows import PackedRows, pack, write_rows
from msm_jax.errors import UserError

VOCAB_SIZE = 500


def example_of(tokens, mask=None):
    tokens = np.array(tokens, np.int32)
    mask = np.arange(len(tokens)) > 0 if mask is None else np.array(mask, np.bool_)
    return Example(tokens, mask)


@st.composite
def examples(draw):
    tokens = draw(st.lists(st.integers(1, VOCAB_SIZE - 1), min_size=2, max_size=30))
    mask = [False, *draw(st.lists(st.booleans(), min_size=len(tokens) - 1, max_size=len(tokens) - 1))]
    return example_of(tokens, mask)


def targets(tokens, mask, segments=None):
    """How often each (context token, target token) occurs, by the rule that the trainer follows."""
    trained = mask[1:] if segments is None else mask[1:] & (segments[1:] == segments[:-1])
    return collections.Counter(zip(tokens[:-1][trained].tolist(), tokens[1:][trained].tolist(), strict=True))


@hypothesis.given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=80))))
@hypothesis.settings(max_examples=50, deadline=None)
def test_pack_places_every_example_once_and_overfills_no_row(case):
    row_length, lengths = case
    rows = pack(lengths, row_length)
    used = [sum(lengths[index] for index in row) for row in rows]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < space <= row_length for space in used)
    # At most one row is half empty, or two of them would have been one.
    assert sum(2 * space <= row_length for space in used) <= 1
    assert rows == pack(np.array(lengths, int), row_length)


def test_pack_takes_the_tightest_row():
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert pack([7, 8, 2, 3], 10) == [[1, 2], [0, 3]]
    for lengths in ([3, 0], [3, 11]):
        with pytest.raises(ValueError, match="lengths must be in"):
            pack(lengths, 10)


def test_pack_fills_rows_and_is_fast():
    lengths = np.random.default_rng(0).geometric(1 / 500, 50_000).clip(1, 4096)
    start = time.process_time()
    rows = pack(lengths, 4096)
    assert time.process_time() - start < 1.5
    assert lengths.sum() / (len(rows) * 4096) > 0.99


@hypothesis.given(st.lists(examples(), min_size=1, max_size=12), st.integers(2, 12))
@hypothesis.settings(max_examples=25, deadline=None)
def test_rows_hold_every_target_once(tmp_path_factory, written, row_length):
    hypothesis.assume(any(example.mask.any() for example in written))
    folder = tmp_path_factory.mktemp("rows")
    stats = write_rows(folder, iter(written), row_length, VOCAB_SIZE)
    rows = PackedRows(folder)
    read = [rows[index] for index in range(len(rows))]

    expected = sum((targets(example.tokens, example.mask) for example in written), collections.Counter())
    found = sum((targets(r["tokens"], r["mask"], r["segments"]) for r in read), collections.Counter())
    assert found == expected
    assert stats["trained_tokens"] == expected.total() == sum(int(row["mask"].sum()) for row in read)
    assert stats["tokens"] == sum(int((row["segments"] > 0).sum()) for row in read)
    assert stats["fill"] == stats["tokens"] / (len(rows) * row_length)
    assert stats["rows"] == len(rows) and stats["examples"] == len(written)
    assert stats["split"] == sum(len(example.tokens) > row_length for example in written)
    for row in read:
        assert [row[key].dtype.name for key in ("tokens", "segments", "positions", "mask")] == ["int32"] * 3 + ["bool"]
        assert all(type(array) is np.ndarray and array.flags.writeable for array in row.values())
        padding = row["segments"] == 0
        assert not row["mask"][padding].any() and not row["tokens"][padding].any()
        assert not row["mask"][row["positions"] == 0].any()
        assert row["mask"].any()


@hypothesis.given(st.lists(examples(), min_size=1, max_size=12))
@hypothesis.settings(max_examples=20, deadline=None)
def test_what_fits_comes_back_as_it_was(tmp_path_factory, written):
    written = [example for example in written if example.mask.any()]
    hypothesis.assume(written)
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, written, 32, VOCAB_SIZE)
    read = []
    for row in map(PackedRows(folder).__getitem__, range(len(PackedRows(folder)))):
        for segment in range(1, row["segments"].max() + 1):
            places = row["segments"] == segment
            assert row["positions"][places].tolist() == list(range(places.sum()))
            read.append((row["tokens"][places].tolist(), row["mask"][places].tolist()))
    assert sorted(read) == sorted((example.tokens.tolist(), example.mask.tolist()) for example in written)


def test_a_long_example_is_split_with_one_token_of_context(tmp_path):
    stats = write_rows(tmp_path, [example_of(range(1, 11))], 4, VOCAB_SIZE)
    rows = PackedRows(tmp_path)
    assert [rows[i]["tokens"].tolist() for i in range(3)] == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10]]
    assert [rows[i]["mask"].tolist() for i in range(3)] == [[False, True, True, True]] * 3
    assert (stats["split"], stats["dropped_pieces"], stats["trained_tokens"]) == (1, 0, 9)

    # Only token 4 is a target. As the first token of the second piece it is context, not a second target.
    chat = example_of(range(1, 11), [token == 4 for token in range(1, 11)])
    stats = write_rows(tmp_path, [chat], 4, VOCAB_SIZE)
    assert (stats["rows"], stats["dropped_pieces"], stats["trained_tokens"]) == (1, 2, 1)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_largest_token_fits(tmp_path, vocab_size, dtype):
    write_rows(tmp_path, [example_of([1, vocab_size - 1])], 4, vocab_size)
    assert np.load(tmp_path / "tokens.npy", mmap_mode="r").dtype == dtype
    assert PackedRows(tmp_path)[0]["tokens"].tolist() == [1, vocab_size - 1, 0, 0]


def test_segments_of_rows_count_padding(tmp_path):
    write_rows(tmp_path, [example_of([1] * length) for length in (6, 4, 3, 3, 2)], 10, VOCAB_SIZE)  # 6 + 4, 3 + 3 + 2
    assert sorted(PackedRows(tmp_path).segments_of_rows().tolist()) == [2, 4]


def test_repr_names_the_content_and_pickle_opens_it_again(tmp_path):
    for folder, token in (("here", 2), ("there", 2), ("other", 3)):
        write_rows(tmp_path / folder, [example_of([1, token])], 4, VOCAB_SIZE)
    here, there, other = (PackedRows(tmp_path / folder) for folder in ("here", "there", "other"))
    assert repr(here) == repr(there) != repr(other)
    assert str(tmp_path) not in repr(here)
    copy = pickle.loads(pickle.dumps(here))
    assert len(copy) == 1 and copy[0]["tokens"].tolist() == here[0]["tokens"].tolist()


@pytest.mark.parametrize(
    ("written", "row_length", "message"),
    [
        ([], 8, "no examples to pack"),
        ([example_of([1, 2], [False, False])], 8, "none of the 1 examples has a token to train on"),
        ([example_of([1, VOCAB_SIZE])], 8, f"token {VOCAB_SIZE} is outside the vocabulary of {VOCAB_SIZE}"),
        ([example_of([1, 2])], 1, "row_length is 1"),
    ],
)
def test_writing_errors(tmp_path, written, row_length, message):
    with pytest.raises(UserError, match=message):
        write_rows(tmp_path, written, row_length, VOCAB_SIZE)


def test_reading_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        PackedRows(tmp_path)
    write_rows(tmp_path, [example_of([1, 2])], 4, VOCAB_SIZE)
    (tmp_path / "mask.npy").unlink()
    with pytest.raises(UserError, match="damaged"):
        PackedRows(tmp_path)
