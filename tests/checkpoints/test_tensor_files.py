"""Safetensors read by ranges and written as a stream, held against the safetensors library."""

import concurrent.futures
import json
import pathlib

import fsspec
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from msm_jax.checkpoints import tensor_files
from msm_jax.checkpoints.tensor_files import TensorFiles, write_tensors
from msm_jax.errors import UserError
from msm_jax.storage import folders
from tests.checkpoints.some_tensors import BF16, FLOATS, given, same, some_arrays

DTYPES = list(tensor_files._NAMES)


@st.composite
def array_and_index(draw):
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    raw = raw if dtype == np.bool_ else raw * 119
    bound = st.none() | st.integers(-8, 8)
    index = draw(st.none() | st.lists(st.builds(slice, bound, bound), max_size=len(shape)).map(tuple))
    return raw.view(dtype).reshape(shape), index


@hypothesis.given(
    st.lists(array_and_index(), max_size=4), st.sampled_from([1, 100, 10**9]), st.sampled_from([1, 8, 40, 10**9])
)
@hypothesis.settings(max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, cases, max_shard_bytes, chunk):
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "CHUNK_BYTES", chunk)
        patch.setattr(folders, "CHUNK_BYTES", chunk)
        write_tensors(
            folder, given({str(i): array for i, (array, _) in enumerate(cases)}), max_shard_bytes=max_shard_bytes
        )
        opened = TensorFiles(folder)
        assert set(opened.tensors) == {str(i) for i in range(len(cases))}
        for i, (array, index) in enumerate(cases):
            info = opened.tensors[str(i)]
            assert (info.dtype, info.shape, info.size_bytes) == (array.dtype, array.shape, array.nbytes)
            assert same(opened.read(str(i), index), array[index or ()])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path, dtype):
    arrays = some_arrays([dtype] * 3) | {"step": np.array(7), "true": np.array(True)}
    write_tensors(tmp_path, given(arrays))
    theirs = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == arrays.keys()
    for name, array in arrays.items():
        bits = theirs[name].view(torch.int16) if array.dtype == BF16 else theirs[name]
        np.testing.assert_array_equal(bits.numpy(), array.view(np.int16) if array.dtype == BF16 else array, strict=True)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    safetensors.torch.save_file(theirs, tmp_path / "adapter_model.safetensors", metadata={"format": "pt", "r": "8"})
    opened = TensorFiles(tmp_path, stem="adapter_model")
    assert opened.tensors.keys() == arrays.keys()
    assert all(same(opened.read(name), array) for name, array in arrays.items())


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_shards_are_as_transformers_has_them(tmp_path, memory, where):
    url = memory if where == "memory" else str(tmp_path)
    arrays = some_arrays()
    write_tensors(url, given(arrays), max_shard_bytes=200)
    files, _ = fsspec.core.url_to_fs(url)
    names = sorted(pathlib.PurePath(path).name for path in files.ls(url, detail=False))
    assert names == [*(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), "model.safetensors.index.json"]
    index = json.loads(files.cat_file(f"{url}/model.safetensors.index.json"))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert sorted(index["weight_map"]) == sorted(arrays)
    for file in set(index["weight_map"].values()):
        theirs = safetensors.torch.load(files.cat_file(f"{url}/{file}"))
        assert set(theirs) == {name for name in arrays if index["weight_map"][name] == file}
    opened = TensorFiles(url)
    assert all(same(opened.read(name), array) for name, array in arrays.items())


def test_the_index_decides(tmp_path):
    """A shard may hold more than the index says, as one that another shard has in a newer version."""
    write_tensors(tmp_path, given({"a": np.zeros(2), "b": np.ones(2)}), max_shard_bytes=16)
    safetensors.numpy.save_file({"a": np.full(2, 5.0), "b": np.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    opened = TensorFiles(tmp_path)
    assert {name: info.file[:11] for name, info in opened.tensors.items()} == {"a": "model-00001", "b": "model-00002"}
    assert same(opened.read("a"), np.zeros(2))


def test_tensors_begin_at_multiples_of_their_items(tmp_path):
    arrays = {str(i): np.zeros(3, dtype) for i, dtype in enumerate(["u1", BF16, "f4", "i8", "u1", "f8"])}
    write_tensors(tmp_path, given(arrays))
    assert not any(info.offset % info.dtype.itemsize for info in TensorFiles(tmp_path).tensors.values())


def test_new_files_replace_old_ones(tmp_path):
    old, new = some_arrays(), {name: array + array for name, array in some_arrays().items()}
    (tmp_path / "config.json").write_text("{}")
    for before, after in ((200, 10**9), (10**9, 200), (300, 200), (200, 300)):
        write_tensors(tmp_path, given(old), max_shard_bytes=before)
        write_tensors(tmp_path, given(new), max_shard_bytes=after)
        opened = TensorFiles(tmp_path)
        assert all(same(opened.read(name), array) for name, array in new.items())
        kept = {path.name for path in tmp_path.iterdir()} - {"model.safetensors.index.json"}
        assert kept == {info.file for info in opened.tensors.values()} | {"config.json"}


@pytest.mark.parametrize("where", ["folder", "memory"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "again"])
def test_what_is_interrupted_leaves_nothing_that_looks_whole(tmp_path, memory, where, first):
    url = memory if where == "memory" else str(tmp_path)
    arrays = some_arrays()
    if not first:
        write_tensors(url, given(arrays), max_shard_bytes=200)

    def interrupted():
        raise KeyboardInterrupt

    tensors = given({name: array + array for name, array in arrays.items()})
    tensors[-1] = (*tensors[-1][:3], interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(url, tensors, max_shard_bytes=200)
    if first:
        assert not folders.Folder(url).sizes()
    else:
        opened = TensorFiles(url)
        assert all(same(opened.read(name), array) for name, array in arrays.items())
        assert len(folders.Folder(url).sizes()) == 4


def test_a_kill_while_files_are_named_leaves_no_mixture(tmp_path, monkeypatch):
    arrays = some_arrays()
    write_tensors(tmp_path, given(arrays), max_shard_bytes=200)
    finish, finished = folders.Folder.finish, []

    def killed(folder, name):
        if finished:
            raise KeyboardInterrupt
        finished.append(name)
        finish(folder, name)

    monkeypatch.setattr(folders.Folder, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path, given(arrays), max_shard_bytes=200)
    with pytest.raises(UserError, match="neither model.safetensors nor an index"):
        TensorFiles(tmp_path)
    monkeypatch.setattr(folders.Folder, "finish", finish)
    write_tensors(tmp_path, given(arrays))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_arrays_are_asked_for_in_turn_and_dropped(tmp_path):
    alive = []

    class Array(np.ndarray):
        def __del__(self):
            if self.base is None:
                alive.remove(1)

    def make():
        assert not alive
        alive.append(1)
        return np.zeros((3, 4), np.float32).copy().view(Array).copy()

    write_tensors(tmp_path, [(str(i), (3, 4), np.float32, make) for i in range(4)], max_shard_bytes=100)


def test_what_was_announced_must_come(tmp_path):
    for shape, dtype in (((2, 3), np.float16), ((3, 2), np.float32)):
        with pytest.raises(ValueError, match="announced"):
            write_tensors(tmp_path, [("a", shape, dtype, lambda: np.zeros((2, 3), np.float32))])
    with pytest.raises(ValueError, match="of one name"):
        write_tensors(tmp_path, given({"a": np.zeros(1)}) * 2)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_caller_stays_what_it_is(memory):
    """On URLs, storage libraries raise what they like; but not what the caller's function raises."""

    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_tensors(memory, [("a", (1,), np.float32, broken)])


def test_the_fingerprint_tells_weights_apart(tmp_path, memory):
    """Also a merged adapter, which leaves the embedding, the largest tensor, and the norms as they were."""
    draw = np.random.default_rng(0)
    sizes = {"embed": (3000, 64)} | {f"{i}.{kind}": (64, 64) for i in range(10) for kind in ("norm", "q", "k", "up")}
    arrays = {name: draw.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    merged = {name: v if name == "embed" or "norm" in name else v * 1.01 for name, v in arrays.items()}

    def fingerprint(url, arrays):
        write_tensors(url, given(arrays))
        return TensorFiles(url).fingerprint

    assert fingerprint(memory, arrays) == fingerprint(tmp_path, arrays)
    others = (arrays, merged, {f"{name}.bias": array for name, array in arrays.items()}, {"a": np.zeros(1)})
    assert len({fingerprint(tmp_path, other) for other in others}) == 4


def test_only_wanted_bytes_are_read(tmp_path, monkeypatch):
    array = np.arange(1000 * 50, dtype=np.int32).reshape(1000, 50)
    write_tensors(tmp_path, given({"before": array, "a": array}))
    opened = TensorFiles(tmp_path)
    read, asked = folders.Folder.read_into, []

    def noted(folder, name, start, buffer):
        asked.append(len(buffer))
        read(folder, name, start, buffer)

    monkeypatch.setattr(folders.Folder, "read_into", noted)
    assert same(opened.read("a", (slice(10, 30),)), array[10:30])
    assert asked == [20 * 50 * 4]
    asked.clear()
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", 4000)
    assert same(opened.read("a", (slice(10, 100), slice(7, 9))), array[10:100, 7:9])
    assert sum(asked) == 90 * 50 * 4
    assert max(asked) <= 4000


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_threads_read_at_once(tmp_path, memory, where):
    url = memory if where == "memory" else tmp_path
    arrays = {str(i): np.full((50, 1000), i) for i in range(16)}
    write_tensors(url, given(arrays), max_shard_bytes=2_000_000)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(map(same, pool.map(TensorFiles(url).read, arrays), arrays.values()))


def test_links_are_files(tmp_path):
    """As in the hub's cache."""
    write_tensors(tmp_path / "blobs", given({"a": np.arange(3)}))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/model.safetensors").symlink_to("../blobs/model.safetensors")
    assert same(TensorFiles(tmp_path / "snapshot").read("a"), np.arange(3))
