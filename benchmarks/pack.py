"""Packing: prepared documents into rows on disk, beside Grain's own packer on the same documents.

    python -m benchmarks.pack                     40 M tokens, rows of 8,192, three rounds: about three minutes

Documents are token ids of the lengths of the paper's philosophy set (mean 3,150, a few longer than a row). Ours writes
the rows and their digest to disk; Grain's best-fit packer only makes them, since it packs while it trains. Prints one
line of JSON: tokens/s of both (medians), their ratio, and how full the rows are.
"""

import argparse
import json
import statistics
import tempfile
import time

import grain
import numpy as np

from msm_jax.data.chat import Example
from msm_jax.data.rows import write_rows

VOCABULARY = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=40e6)
    parser.add_argument("--row-length", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    documents = make_documents(int(options.tokens), np.random.default_rng(0))
    tokens = sum(map(len, documents))
    seconds, fill = {"ours": [], "grain": []}, {}
    for _ in range(options.rounds):
        for side, pack in (("ours", pack_ours), ("grain", pack_with_grain)):
            start = time.perf_counter()
            fill[side] = pack(documents, options.row_length)
            seconds[side].append(time.perf_counter() - start)
    pace = {side: tokens / statistics.median(times) for side, times in seconds.items()}
    print(
        json.dumps(
            {
                "tokens": tokens,
                "documents": len(documents),
                "row_length": options.row_length,
                "tokens_per_second": {side: round(value) for side, value in pace.items()},
                "slowest": {side: round(tokens / max(times)) for side, times in seconds.items()},
                "ratio": round(pace["ours"] / pace["grain"], 2),
                "fill": {side: round(value, 4) for side, value in fill.items()},
            }
        )
    )


def make_documents(tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    lengths = np.maximum(rng.lognormal(np.log(3000), 0.3, 2 * tokens // 3000).astype(int), 2)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
    return [rng.integers(0, VOCABULARY, length, dtype=np.int32) for length in lengths]


def pack_ours(documents: list[np.ndarray], row_length: int) -> float:
    examples = (Example(document, np.ones(len(document), bool)) for document in documents)
    with tempfile.TemporaryDirectory() as folder:
        return write_rows(folder, examples, row_length, VOCABULARY)["fill"]


def pack_with_grain(documents: list[np.ndarray], row_length: int) -> float:
    pieces = [
        {"tokens": document[start : start + row_length]}
        for document in documents
        for start in range(0, len(document), row_length)
    ]
    rows = grain.experimental.BestFitPackIterDataset(
        grain.MapDataset.source(pieces).to_iter_dataset(grain.ReadOptions(num_threads=0)),
        length_struct={"tokens": row_length},
        num_packing_bins=64,
    )
    held = [int((row["tokens_segment_ids"] > 0).sum()) for row in rows]
    return sum(held) / (len(held) * row_length)


if __name__ == "__main__":
    main()
