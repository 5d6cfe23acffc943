"""Examples of any length, packed into rows of one length on disk.

Packing once, offline, makes a training batch a pure function of its index: the trainer resumes at any step, on any
number of hosts, by asking for that step.

The trainer predicts `tokens[t + 1]` at place t of a row if both belong to one segment and `mask[t + 1]` is set. So
the first token of a segment is context only, and its mask is False.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from msm_jax.data.chat import Example
from msm_jax.errors import UserError
from msm_jax.storage import files

_STATS_FILE = "rows.json"


def pack(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing: for each row the indices of its examples, every index exactly once.

    From the longest example to the shortest (ties in order), each goes to the row with the least space that still
    holds it. `lengths` are from 1 to `row_length`. Deterministic; about a microsecond per example.
    """
    lengths = np.asarray(lengths)
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= row_length:
        raise ValueError(f"lengths must be in [1, {row_length}], got [{lengths.min()}, {lengths.max()}]")
    rows: list[list[int]] = []
    rows_by_space: list[list[int]] = [[] for _ in range(row_length + 1)]
    spaces = 0  # bit s is set while some row has space s: finds the tightest one without a search
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = row_length, len(rows)
            rows.append([])
        rows[row].append(index)
        if space > length:
            rows_by_space[space - length].append(row)
            spaces |= 1 << (space - length)
    return rows


def write_rows(
    folder: str | os.PathLike, examples: Iterable[Example], row_length: int, vocab_size: int
) -> dict[str, Any]:
    """Packs `examples` into `folder`, to be read by `PackedRows`. All examples are held in memory meanwhile.

    An example longer than a row becomes several pieces, each a segment of its own. Each piece after the first
    starts with the last token of the piece before it, as context that is not trained, so that every target of the
    example is still a target once. A piece without a target is left out.

    Returns: `PackedRows.stats`: counts of `examples`, `truncated`, `split` (examples in several pieces),
        `dropped_pieces`, `tokens` and `trained_tokens` (targets) in the rows, `rows`; `fill`, the share of the rows'
        places that hold a token; `fingerprint` of the rows' content.

    Raises: UserError if there are no examples, nothing is trained, or a token is not in the vocabulary.
    """
    if row_length < 2:
        raise UserError(f"rows: row_length is {row_length}; a row needs at least 2 places, a token and its target")
    token_dtype, segment_dtype = np.min_scalar_type(vocab_size - 1), np.min_scalar_type(row_length)
    stats = dict.fromkeys(("examples", "truncated", "split", "dropped_pieces", "tokens", "trained_tokens"), 0)
    pieces = []
    for example in examples:
        if example.tokens.min() < 0 or example.tokens.max() >= vocab_size:
            raise UserError(
                f"rows: token {example.tokens.max()} is outside the vocabulary of {vocab_size}; "
                "the tokenizer is not the one that the model was made for"
            )
        stats["examples"] += 1
        stats["truncated"] += example.truncated
        stats["split"] += len(example.tokens) > row_length
        for piece in _split(example.tokens.astype(token_dtype), example.mask, row_length):
            if piece[1].any():
                pieces.append(piece)
            else:
                stats["dropped_pieces"] += 1
    if not stats["examples"]:
        raise UserError("rows: no examples to pack; the documents or chats that they come from are empty")
    if not pieces:
        raise UserError(f"rows: none of the {stats['examples']} examples has a token to train on")

    stats["tokens"] = sum(len(tokens) for tokens, _ in pieces)
    stats["trained_tokens"] = sum(int(mask.sum()) for _, mask in pieces)
    plan = pack([len(tokens) for tokens, _ in pieces], row_length)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(plan), row_length)
    arrays = {
        key: np.lib.format.open_memmap(folder / f"{key}.npy", mode="w+", dtype=dtype, shape=shape)
        for key, dtype in (("tokens", token_dtype), ("segments", segment_dtype), ("mask", np.bool_))
    }
    for key, array in arrays.items() if hasattr(os, "posix_fallocate") else ():
        with open(folder / f"{key}.npy", "rb+") as file:
            # Else a full disk would be known by a signal that ends the process, when memory is written back.
            os.posix_fallocate(file.fileno(), array.offset, array.nbytes)
    for row, members in enumerate(plan):
        end = 0
        for segment, index in enumerate(members, start=1):
            tokens, mask = pieces[index]
            start, end = end, end + len(tokens)
            for key, values in (("tokens", tokens), ("segments", segment), ("mask", mask)):
                arrays[key][row, start:end] = values
    digest = hashlib.sha256(repr(shape).encode())
    for array in arrays.values():
        array.flush()
        digest.update(array)
    stats |= {"rows": len(plan), "fill": stats["tokens"] / (len(plan) * row_length)}
    stats["fingerprint"] = digest.hexdigest()[:12]
    files.write_json(folder / _STATS_FILE, stats)
    return stats


class PackedRows:
    """Random access to the rows in `folder`, memory-mapped: opening is instant, and copies share the memory.

    `rows[i]` is a dict of arrays [T], T = `row_length`: "tokens" int32 (0 in padding), "segments" int32 (1, 2, ... in
    each row, 0 = padding), "positions" int32 (from 0 in each segment), "mask" bool (as in `Example`; False in
    padding). Can be pickled. `repr` is the same on every machine. Raises: UserError if they cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self.stats = files.read_object(self.folder / _STATS_FILE, files.anew(self.folder), fingerprint=str)
        try:
            self._tokens, self._segments, self._mask = (
                # As plain arrays over the mapped memory: indexing the memmap class is several times slower.
                np.asarray(np.load(self.folder / f"{key}.npy", mmap_mode="r"))
                for key in ("tokens", "segments", "mask")
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: the packed rows are damaged ({error}); delete the folder") from None
        self.row_length = self._tokens.shape[1]
        self._places = np.arange(self.row_length, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._tokens)

    def segments_of_rows(self) -> np.ndarray:
        """How many segments each row has, padding's counted: int64[rows]."""
        return self._segments.max(axis=1).astype(np.int64) + (self._segments[:, -1] == 0)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        segments = self._segments[index].astype(np.int32)
        starts = np.zeros(self.row_length, np.int32)
        starts[1:] = np.where(segments[1:] != segments[:-1], self._places[1:], 0)
        return {
            "tokens": self._tokens[index].astype(np.int32),
            "segments": segments,
            "positions": self._places - np.maximum.accumulate(starts),
            "mask": np.array(self._mask[index]),
        }

    def __repr__(self) -> str:
        return f"PackedRows({self.stats['fingerprint']}, rows={len(self)}, row_length={self.row_length})"

    def __reduce__(self) -> tuple[type, tuple[pathlib.Path]]:
        return PackedRows, (self.folder,)


def _split(tokens: np.ndarray, mask: np.ndarray, row_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of at most `row_length` tokens, each overlapping the one before by one token, which is not trained."""
    for start in range(0, max(len(tokens) - 1, 1), row_length - 1):
        piece_mask = mask[start : start + row_length].copy()
        piece_mask[0] = False
        yield tokens[start : start + row_length], piece_mask
