"""Attention kernels beside the plain one: that they compute the same, and how long they take.

    python -m benchmarks.attention                                       Llama 8B's heads, for a GPU
    python -m benchmarks.attention --tokens=256 --heads=4 --kv-heads=2 --head-size=32          small, for a CPU

Prints a line of JSON for each kernel: seconds of a forward and backward pass over packed rows (the median, and the
fastest), the FLOP/s of what must be computed, and the errors of the output and of the three gradients. An error is the
largest difference from the plain attention in float32, as a part of that one's largest number; `plain` has the errors
of the plain attention in the same dtype, which are rounding alone. Ends with status 1 if a kernel's error is more than
twice that, or a number is not finite. Rows have random segments, and padding behind them.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

NAMES = ("output", "q", "k", "v")
LEAST = 2e-2  # an error below this is rounding in bfloat16, whatever that of the plain attention is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"rows": 2, "tokens": 4096, "heads": 32, "kv-heads": 8, "head-size": 128, "segments": 12}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kernels", help="default: all that this device takes")
    parser.add_argument("--runs", type=int, default=20, help="timed, after two that are not")
    options = parser.parse_args()
    fine = True
    for result in compare(options):
        print(json.dumps(result), flush=True)
        fine &= result["fine"]
    sys.exit(0 if fine else 1)


def packed_ids(rng: np.random.Generator, rows: int, tokens: int, segments: int) -> np.ndarray:
    """int32[rows, tokens]: `segments` segments of random lengths, and some padding."""
    ends = [np.sort(rng.choice(np.arange(1, tokens), segments, replace=False)) for _ in range(rows)]
    places = np.arange(tokens)
    return np.stack([np.where(places < e[-1], 1 + np.searchsorted(e, places, side="right"), 0) for e in ends]).astype(
        np.int32
    )


def kernels_here() -> list[str]:
    import jax

    from msm_jax.models.kernels import takes_cudnn

    device = jax.devices()[0]
    cudnn = ["cudnn"] if takes_cudnn(getattr(device, "compute_capability", None)) else []
    return {"gpu": [*cudnn, "triton"], "tpu": ["splash"]}.get(device.platform, []) + ["blocked"]


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from msm_jax.models import Segments, attention
    from msm_jax.models.cudnn_attention import segments_for
    from msm_jax.models.kernels import flash_attention

    rng = np.random.default_rng(0)
    ids = packed_ids(rng, options.rows, options.tokens, options.segments)
    shape = (options.rows, options.tokens, options.heads, options.head_size)
    draw = lambda heads: rng.standard_normal((*shape[:2], heads, shape[3])).astype(np.float32)  # noqa: E731
    arrays = [draw(heads) for heads in (options.heads, options.kv_heads, options.kv_heads, options.heads)]
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    positions = jnp.broadcast_to(jnp.arange(options.tokens), ids.shape)

    def gradient(kernel: str) -> Callable:
        def scalar(q, k, v, cotangent, ids):
            if kernel == "plain":
                out = attention(q, k, v, Segments.of_rows(ids, positions))
            else:
                most = segments_for(options.segments + 1)  # and padding
                out = flash_attention(q, k, v, ids, kernel=kernel, segments=most)
            out = jnp.where((ids > 0)[..., None, None], out, 0)
            return (out.astype(jnp.float32) * cotangent).sum(), out

        graded = jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True)

        @jax.jit
        def run(ids, *arrays):
            (_, out), gradients = graded(*arrays, ids)
            return out, *gradients

        return functools.partial(run, jnp.asarray(ids))

    with jax.default_matmul_precision("highest"):
        expected = jax.device_get(gradient("plain")(*(x.astype(jnp.float32) for x in arrays)))
    plain = _errors(jax.device_get(gradient("plain")(*arrays)), expected)
    # Of each visible pair and head, seven products of a head's size: two forward, five backward.
    pairs = sum(n * (n + 1) / 2 for row in ids for n in np.unique(row[row > 0], return_counts=True)[1])
    flops = 7 * 2 * pairs * options.heads * options.head_size
    for kernel in options.kernels.split(",") if options.kernels else kernels_here():
        run = gradient(kernel)
        errors = _errors(jax.device_get(run(*arrays)), expected)
        seconds = _timed(lambda run=run: jax.block_until_ready(run(*arrays)), options.runs)
        yield {
            "kernel": kernel,
            "device": jax.devices()[0].device_kind,
            "shape": {"rows": shape[0], "tokens": shape[1], "heads": shape[2], "kv_heads": options.kv_heads}
            | {"head_size": shape[3], "segments": options.segments},
            "seconds": {"median": statistics.median(seconds), "best": min(seconds)},
            "tflops": round(flops / statistics.median(seconds) / 1e12, 3),
            "errors": errors,
            "plain": plain,
            "fine": all(errors[name] <= max(2 * plain[name], LEAST) for name in NAMES),
        }


def _errors(found: tuple, expected: tuple) -> dict[str, Any]:
    """NaN where a number is not finite."""
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(found, expected, strict=True)]
    return {name: round(float(abs(a - b).max() / abs(b).max()), 6) for name, (a, b) in zip(NAMES, pairs, strict=True)}


def _timed(run: Callable[[], Any], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


if __name__ == "__main__":
    main()
