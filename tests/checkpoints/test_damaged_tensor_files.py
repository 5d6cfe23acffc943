"""Safetensors files that are damaged, missing or strange, and disks that are full: one clear line each."""

import json
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from msm_jax.checkpoints.tensor_files import TensorFiles, write_tensors
from msm_jax.errors import UserError
from msm_jax.storage import folders
from tests.checkpoints.some_tensors import BF16, given, some_arrays


@pytest.mark.parametrize("index", [(slice(0, 1, 2),), (slice(0, 1), slice(0, 1)), (slice(None, None, -1),)])
def test_strange_cuts_are_refused(tmp_path, index):
    write_tensors(tmp_path, given({"a": np.zeros(3)}))
    with pytest.raises(ValueError, match="not to be cut"):
        TensorFiles(tmp_path).read("a", index)


def raw_file(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = bytes(8)
BAD_FILES = {
    "empty": (b"", "not a safetensors file .its header would have 0 bytes.; copy or download it again"),
    "a web page": (b"<!DOCTYPE html>" * 9, "not a safetensors file .its header would have [0-9,]+ bytes"),
    "header cut off": (raw_file(b"{}", length=99), "cut off within its header .10 of 107 bytes"),
    "not JSON": (raw_file(b"{nonsense"), "its header is not a JSON object"),
    "not text": (raw_file(b"\xff\xfe\xfd"), "its header is not a JSON object"),
    "a list": (raw_file([1]), "its header is not a JSON object"),
    "deep": (raw_file(b"[" * 100_000), "its header is not a JSON object"),
    "cut off": (raw_file({"a": entry()}, EIGHT[:7]), "cut off .*bytes, not .*; copy or download it again"),
    "too long": (raw_file({"a": entry()}, bytes(9)), "longer than its header says"),
    "overlap": (raw_file({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "tensor b overlaps the one before"),
    "twice": (raw_file({"a": entry(), "b": entry()}, EIGHT), "tensor b overlaps the one before"),
    "gap": (raw_file({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "tensor b comes after a gap"),
    "begins late": (raw_file({"a": entry(offsets=(4, 12))}, bytes(12)), "tensor a comes after a gap"),
    "too few bytes": (raw_file({"a": entry(shape=(3,))}, EIGHT), "tensor a has 8 bytes, but F32 .3. takes 12"),
    "backwards": (raw_file({"a": entry(offsets=(8, 0))}, EIGHT), "tensor a has -8 bytes"),
    "float8": (raw_file({"a": entry("F8_E4M3", (8,))}, EIGHT), "tensor a is stored as F8_E4M3; convert the weights"),
    "negative": (raw_file({"a": entry(shape=(-1, -2))}, EIGHT), "tensor a lacks a sound dtype, shape or place"),
    "fraction": (raw_file({"a": entry(shape=(2.0,))}, EIGHT), "tensor a lacks a sound"),
    "no place": (raw_file({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "tensor a lacks a sound"),
    "dtype": (raw_file({"a": entry(dtype=["F32"])}, EIGHT), "tensor a lacks a sound"),
    "no entry": (raw_file({"a": 5}, EIGHT), "tensor a lacks a sound"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_files(tmp_path, memory, case):
    content, wrong = BAD_FILES[case]
    for url in (str(tmp_path), memory):
        folders.Folder(url).write("model.safetensors", content)
        with pytest.raises(UserError, match=wrong) as error:
            TensorFiles(url)
        assert str(error.value).startswith(f"{url}/model.safetensors: ")
        assert "\n" not in str(error.value)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.data())
def test_no_damage_goes_unseen_or_unsaid(tmp_path_factory, data):
    """Whatever happens to a file, it is read as the library reads it or refused in one line."""
    folder = tmp_path_factory.mktemp("model")
    write_tensors(folder, given({"a": np.arange(4, dtype=np.int16), "b": np.ones((2, 1), BF16)}))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        theirs = safetensors.torch.load(bytes(content))
    except Exception:
        theirs = None
    try:
        opened = TensorFiles(folder)
        ours = {name: opened.read(name).tobytes() for name in opened.tensors}
    except UserError as error:
        assert "\n" not in str(error)
        return
    if theirs is not None:
        wanted = {k: v.reshape(-1).view(torch.uint8).numpy().tobytes() if v.numel() else b"" for k, v in theirs.items()}
        assert ours == wanted


def test_missing_and_unknown(tmp_path, memory, monkeypatch):
    def message(url, **kwargs):
        with pytest.raises(UserError) as error:
            TensorFiles(url, **kwargs)
        return str(error.value)

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, told in {
        tmp_path / "no": "no such folder",
        "memory://no/such": "no such folder",
        "nosuch://a/b": "Protocol not known: nosuch",
        "gs://bucket/model": "gs:// needs pip install -e '.[gcs]'",
        tmp_path: "no safetensors here (model.safetensors is wanted)",
    }.items():
        assert message(url) == f"{url}: {told}"
    (tmp_path / "file").write_text("")
    assert message(tmp_path / "file") == f"{tmp_path}/file: Not a directory"
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "only pickled weights (pytorch_model.bin), never read, since they can run code; " in message(tmp_path)
    write_tensors(tmp_path, given(some_arrays()), max_shard_bytes=200)
    assert "neither adapter_model.safetensors nor an index" in message(tmp_path, stem="adapter_model")
    with pytest.raises(UserError, match="no tensor lm_head; there are model.layers.0.weight, "):
        TensorFiles(tmp_path).read("lm_head")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    whole["weight_map"]["a"] = "model-00003-of-00003.safetensors"
    index.write_text(json.dumps(whole))
    assert "model-00003-of-00003.safetensors: no tensor a, but model.safetensors.index.json" in message(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "/model-00002-of-00003.safetensors: no such file, but model.safetensors.index.json" in message(tmp_path)
    for bad in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "x.bin"}}'):
        index.write_text(bad)
        assert message(tmp_path).startswith(f"{index}: ")
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    assert "of this folder" in message(tmp_path)


def test_a_file_that_shrinks_is_told(tmp_path):
    write_tensors(tmp_path, given({"a": np.arange(1000)}))
    opened = TensorFiles(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="has become shorter"):
        opened.read("a")


def test_a_full_disk_is_one_line(monkeypatch, tmp_path):
    write = folders.Part.write

    def to_full(part, content):
        part._file.close()
        part._file = open("/dev/full", "wb", buffering=0)
        write(part, content)

    monkeypatch.setattr(folders.Part, "write", to_full)
    with pytest.raises(UserError, match="model.safetensors: No space left on device"):
        write_tensors(tmp_path, given({"a": np.arange(1000)}))
    assert list(tmp_path.iterdir()) == []
