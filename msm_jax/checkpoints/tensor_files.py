"""A folder of safetensors, local or on any fsspec URL: read by byte ranges, and written as a stream.

Ours rather than the `safetensors` library, which cannot read parts of gs:// objects and wants all tensors of a file in
memory to write it, in NumPy moreover without bfloat16 in some of its versions. The format is a header's length (8
bytes), the header (JSON) and the data: https://huggingface.co/docs/safetensors. Several files are held together by an
index of names, as `transformers` writes it.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from msm_jax.errors import UserError
from msm_jax.storage import files
from msm_jax.storage.folders import CHUNK_BYTES, Folder, Part, is_part

_DTYPES = {
    **{"BOOL": np.dtype(bool), "BF16": np.dtype(ml_dtypes.bfloat16)},
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "UI" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as in the library
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Of files on this machine, less: what is cut out of a chunk is then still in the processor's cache.
_LOCAL_CHUNK_BYTES = 8 * 2**20
_AGAIN = "copy or download it again"
# An index may name a head that is tied, though no file holds it; the reader knows whether it is.
_TIED = {"lm_head.weight"}
# Parts of the data that the fingerprint looks at, in each file: two fine-tunes of one model differ in these alone.
_SAMPLES, _SAMPLE_BYTES = 8, 4096


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: `offset` in bytes from the beginning of `file`, a name in the folder."""

    dtype: np.dtype
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of `STEM.safetensors`, or of the files that `STEM.safetensors.index.json` names.

    Opening reads headers only. `tensors`: name -> `TensorInfo`, in the order of the files. Threads may read at once.

    Raises: UserError if the folder, its index or a file is missing, damaged or cut off, or holds what NumPy cannot.
    """

    def __init__(self, folder: str | os.PathLike, stem: str = "model"):
        self._folder = Folder(folder)
        self.url = self._folder.url
        sizes = self._folder.sizes()
        if sizes is None:
            raise UserError(f"{self.url}: no such folder")
        single, index = stem + _SUFFIX, stem + _INDEX_SUFFIX
        if single in sizes:  # it comes first, as in transformers
            owners, names = None, [single]
        elif index in sizes:
            owners = self._read_index(index)
            names = sorted(set(owners.values()))
        else:
            raise UserError(_nothing_there(self.url, single, sizes))
        self.tensors: dict[str, TensorInfo] = {}
        self._headers: dict[str, _Header] = {}
        for name in names:
            if name not in sizes and owners and {key for key in owners if owners[key] == name} <= _TIED:
                continue
            if name not in sizes:
                raise UserError(f"{self._folder.path(name)}: no such file, but {index} names it; {_AGAIN}")
            self._headers[name] = _read_header(self._folder, name, sizes[name])
            found = self._headers[name].tensors.items()
            self.tensors |= {key: info for key, info in found if owners is None or owners.get(key) == name}
        for key, name in (owners or {}).items():
            if key not in self.tensors and key not in _TIED:
                raise UserError(f"{self._folder.path(name)}: no tensor {key}, but {index} names it; {_AGAIN}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the headers, the sizes and eight samples of each file's data.

        Equal wherever they lie. A change of a small part of the weights can go unseen.
        """
        seen = {}
        for name, header in sorted(self._headers.items()):
            room = max(header.file_bytes - header.data_start - _SAMPLE_BYTES, 0)
            starts = sorted({header.data_start + room * i // (_SAMPLES - 1) for i in range(_SAMPLES)})
            samples = b"".join(self._folder.read(name, start, start + _SAMPLE_BYTES) for start in starts)
            seen[name] = [header.file_bytes, header.digest, hashlib.sha256(samples).hexdigest()]
        return files.fingerprint(seen)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` cuts out (slices without steps, the last axes may be left out).

        Reads the bytes of the leading rows that are wanted, and holds no more than the result and a chunk (64 MiB).

        Raises: UserError if there is no such tensor, or if its file has become shorter.
        """
        if name not in self.tensors:
            raise UserError(f"{self.url}: no tensor {name}; there are {_some(self.tensors)}")
        info = self.tensors[name]
        index = index or ()
        if len(index) > len(info.shape) or any(part.step not in (None, 1) for part in index):
            raise ValueError(f"{name} has shape {info.shape}; not to be cut by {index}")
        index += (slice(None),) * (len(info.shape) - len(index))
        bounds = [part.indices(size)[:2] for part, size in zip(index, info.shape, strict=True)]
        result = np.empty([max(stop - start, 0) for start, stop in bounds], info.dtype)
        if not result.size:
            return result
        row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        start, stop = bounds[0] if bounds else (0, 1)
        if result.shape[1:] == info.shape[1:]:
            self._folder.read_into(info.file, info.offset + start * row_bytes, _bytes(result))
            return result
        # Whole rows, though only a part of each is wanted: one long read takes less time than many short ones.
        most = min(CHUNK_BYTES, _LOCAL_CHUNK_BYTES) if self._folder.is_local else CHUNK_BYTES
        step = max(most // row_bytes, 1)
        cut = (slice(None), *(slice(*bound) for bound in bounds[1:]))
        buffer = np.empty((min(step, stop - start), *info.shape[1:]), info.dtype)
        for row in range(start, stop, step):
            chunk = buffer[: stop - row]
            self._folder.read_into(info.file, info.offset + row * row_bytes, _bytes(chunk))
            result[row - start : row - start + len(chunk)] = chunk[cut]
        return result

    def _read_index(self, name: str) -> dict[str, str]:
        path = self._folder.path(name)
        try:
            owners = json.loads(self._folder.read(name))["weight_map"]
            whole = all(isinstance(file, str) and file.endswith(_SUFFIX) for file in owners.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: not an index of safetensors (JSON with a weight_map); {_AGAIN}") from None
        if not whole or any("/" in file or "\\" in file for file in owners.values()):
            raise UserError(f"{path}: its weight_map names other than .safetensors files of this folder")
        return owners


class NewTensor(NamedTuple):
    """A tensor to write; `read` gives the array."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]


def write_tensors(
    folder: str | os.PathLike,
    tensors: Iterable[tuple[str, tuple[int, ...], Any, Callable[[], np.ndarray]]],  # of NewTensor, in their order
    stem: str = "model",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes `STEM.safetensors`, or as many files of at most `max_shard_bytes` as it takes and their index.

    Each array is asked for just before it is written, and dropped after. All is written under other names first, so
    that what is interrupted leaves nothing that looks whole; files of an earlier writing are replaced.

    Raises: UserError if the folder cannot be written to, or if its disk has no room for all of it.
    """
    tensors = [NewTensor(name, tuple(shape), np.dtype(dtype), read) for name, shape, dtype, read in tensors]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors of one name")
    shards = _shards(tensors, max_shard_bytes)
    names = [f"{stem}-{i:05}-of-{len(shards):05}{_SUFFIX}" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [f"{stem}{_SUFFIX}"]
    target = Folder(folder)
    before = target.sizes() or {}
    for name in before:
        if is_part(name) and name.startswith(f".{stem}"):  # left by a writing that was killed
            target.remove(name)
    total = sum(map(_size, tensors))
    if target.is_local:
        files.check_room(target.url, total)
    try:
        for name, shard in zip(names, shards, strict=True):
            with target.begin(name) as file:
                file.write(_header_of(shard))
                for tensor in shard:
                    _write_array(file, tensor)
    except BaseException:
        for name in names:
            target.abandon(name)
        raise
    # Old files under a new index, or new ones under an old index, would look whole: so there is none meanwhile.
    target.remove(f"{stem}{_INDEX_SUFFIX}")
    for name in names:
        target.finish(name)
    for name in before:
        ours = name == f"{stem}{_SUFFIX}" or (name.startswith(f"{stem}-") and "-of-" in name and name.endswith(_SUFFIX))
        if ours and name not in names:
            target.remove(name)
    if len(shards) > 1:
        owners = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}
        target.write(f"{stem}{_INDEX_SUFFIX}", (json.dumps(index, indent=2) + "\n").encode())


class _Header(NamedTuple):
    tensors: dict[str, TensorInfo]
    digest: str
    data_start: int
    file_bytes: int


def _read_header(folder: Folder, name: str, file_bytes: int) -> _Header:
    def refused(what: str, cure: str = _AGAIN) -> UserError:
        return UserError(f"{folder.path(name)}: {what}; {cure}")

    length = int.from_bytes(folder.read(name, 0, _LENGTH_BYTES), "little")
    if file_bytes < _LENGTH_BYTES or length > _MAX_HEADER_BYTES:
        raise refused(f"not a safetensors file (its header would have {length:,} bytes)")
    start = _LENGTH_BYTES + length
    if start > file_bytes:
        raise refused(f"cut off within its header ({file_bytes:,} of {start:,} bytes and the data)")
    raw = folder.read(name, _LENGTH_BYTES, start)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise refused("not a safetensors file (its header is not a JSON object)") from None
    tensors = {}
    for key, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sound = isinstance(dtype, str) and all(type(size) is int and size >= 0 for size in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise refused(f"damaged header, tensor {key} lacks a sound dtype, shape or place")
        if dtype not in _DTYPES:
            raise refused(f"tensor {key} is stored as {dtype}", "convert the weights to BF16, F16 or F32")
        tensors[key] = info = TensorInfo(_DTYPES[dtype], tuple(shape), name, start + begin)
        if info.size_bytes != end - begin:
            takes = f"but {dtype} {shape} takes {info.size_bytes:,}"
            raise refused(f"damaged header, tensor {key} has {end - begin:,} bytes, {takes}")
    reached = start
    for begin, size, key in sorted((info.offset, info.size_bytes, key) for key, info in tensors.items()):
        if begin != reached:
            what = "overlaps the one before" if begin < reached else "comes after a gap"
            raise refused(f"damaged header, tensor {key} {what} (at byte {begin:,}, not {reached:,})")
        reached += size
    if reached != file_bytes:
        what = "cut off" if reached > file_bytes else "longer than its header says"
        raise refused(f"{what} ({file_bytes:,} bytes, not {reached:,})")
    return _Header(tensors, hashlib.sha256(raw).hexdigest(), start, file_bytes)


def _nothing_there(url: str, single: str, sizes: dict[str, int]) -> str:
    pickles = sorted(name for name in sizes if name.endswith(_PICKLES) and name != "training_args.bin")
    others = sorted(name for name in sizes if name.endswith(_SUFFIX))
    if others:
        return f"{url}: neither {single} nor an index of it; there are {_some(others)}"
    if pickles:
        return (
            f"{url}: no safetensors, only pickled weights ({pickles[0]}), never read, since they can run code;"
            " take the repository's safetensors, or load it in transformers if you trust it and call save_pretrained"
        )
    return f"{url}: no safetensors here ({single} is wanted)"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def _shards(tensors: list[NewTensor], max_bytes: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    room = max_bytes
    for tensor in tensors:
        if _size(tensor) > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= _size(tensor)
    # Wide types first, as in the library, so that each tensor begins at a multiple of its item's size.
    return [sorted(shard, key=lambda tensor: -tensor.dtype.itemsize) for shard in shards]


def _size(tensor: NewTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _header_of(shard: list[NewTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # which transformers wants
    offset = 0
    for tensor in shard:
        place = [offset, offset + _size(tensor)]
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        offset = place[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_array(file: Part, tensor: NewTensor) -> None:
    array = np.asarray(tensor.read())
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(f"{tensor.name}: {array.dtype} {array.shape}, announced as {tensor.dtype} {tensor.shape}")
    # In chunks, since a transposed array is copied into order, and storages hold what they are given.
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(CHUNK_BYTES * len(rows) // max(array.nbytes, 1), 1)
    for start in range(0, len(rows), step):
        file.write(_bytes(np.ascontiguousarray(rows[start : start + step])))


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))
