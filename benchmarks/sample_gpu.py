"""Many samples of one long prompt on one GPU, and how near a step comes to what its memory and its products allow.

    python -m benchmarks.sample_gpu                   Llama 3.1 8B's shape: 300 samples, 3,000 tokens of prompt, 256 new
    python -m benchmarks.sample_gpu --shape=toy --samples=8 --prompt=100 --new=32       on a CPU, in seconds

Weights are random, in bfloat16. Prints a line of JSON for two sides. `shared` is our sampler, which holds the prompt's
keys and values once. `replicated` is the same sampler with a copy of them for each row, as without a shared prompt:
prompts that differ in their last token, and as many rows as memory has room for; --sides=shared leaves it out.

`decode_tokens_per_second` counts the blocks of steps in which all rows were at work, but the first; `tokens_per_second`
all tokens, over all of the time; `prefill_seconds` is the time until the first block began. `step_bytes` is what a step
must read: the weights without the embedding, the prompt, and what each row has drawn by then. `roofline_seconds` is how
long that takes with the bandwidth of the chip's data sheet, and its products at their peak; `part_of_roofline` is the
longer of the two as a part of a step's time. Both are null where the chip is not known (msm_jax/parallel/chips.py).
Times are the median of the runs after two that are not counted, each with a new prompt. `peak_memory_gb` of the second
side is of both.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks import turns

SHAPES = {"llama8b": "meta-llama/Llama-3.1-8B", "toy": None}
SIDES = ("shared", "replicated")
TOY = {"vocab_size": 256, "num_layers": 2, "width": 64, "mlp_width": 128, "num_heads": 4, "num_kv_heads": 2}
ROOM = 0.8  # of the memory, for what is held: programs need some beside it
TEMPERATURE = 0.7
UNCOUNTED = 2  # runs: the first compiles, and the second may once more


@dataclasses.dataclass(frozen=True)
class Case:
    samples: int
    prompt: int  # tokens
    new: int  # tokens of each sample
    steps: int  # of a block
    chunk: int  # tokens of the prompt that are read at once


class Times(NamedTuple):
    """Seconds: until rows began, of a step with all rows at work, and of all."""

    prefill: float
    step: float
    whole: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama8b")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--prompt", type=int, default=3000, help="tokens")
    parser.add_argument("--new", type=int, default=256, help="tokens of each sample")
    parser.add_argument("--steps", type=int, default=16, help="tokens of a block")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of the prompt that are read at once")
    parser.add_argument("--runs", type=int, default=3, help="counted, of each side")
    parser.add_argument("--sides", default="shared,replicated")
    options = parser.parse_args()
    if not set(options.sides.split(",")) <= set(SIDES):
        parser.error(f"--sides={options.sides}: choose of {', '.join(SIDES)}")
    if options.new <= options.steps:
        parser.error(f"--new={options.new}: give more than --steps={options.steps}, the tokens of the first block")
    print(json.dumps(measure(options)), flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import jax

    device, (model, params) = jax.devices()[0], _model(options.shape)
    case = Case(options.samples, options.prompt, options.new, options.steps, options.chunk)
    result: dict[str, Any] = {
        "device": device.device_kind,
        "shape": options.shape,
        "case": dataclasses.asdict(case) | {"temperature": TEMPERATURE},
    }
    for side in options.sides.split(","):
        copies = side == "replicated"
        rows = _rows_with_copies(model, params, case, device) if copies else case.samples
        at_once = dataclasses.replace(case, samples=rows)
        runs = list(_runs(model, params, at_once, copies, options.runs))
        result[side] = _told(model, params, at_once, copies, runs, device)
    if {"shared", "replicated"} <= result.keys():
        rates = [result[side]["decode_tokens_per_second"] for side in SIDES]
        result["ratio"] = round(rates[0] / rates[1], 3)
    return result


def _model(shape: str) -> tuple[Any, Any]:
    import jax

    from benchmarks.weights import random_params
    from msm_jax.checkpoints.presets import preset
    from msm_jax.models import DecoderConfig, Model
    from msm_jax.parallel import make_mesh
    from msm_jax.sampler.adapters import for_sampling

    config = preset(SHAPES[shape]) if SHAPES[shape] else DecoderConfig(**TOY, head_size=16)
    model = Model(dataclasses.replace(config, dtype="bfloat16"))
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return for_sampling(model, random_params(model, mesh, "bfloat16"), [])[:2]


def _runs(model: Any, params: Any, case: Case, copies: bool, runs: int) -> Iterator[Times]:
    from msm_jax.sampler import Sampling
    from msm_jax.sampler.engine import Engine

    vocabulary = model.config.vocab_size
    sizes = {"rows": case.samples, "steps": case.steps, "chunk": case.chunk}
    engine = Engine(model, params, None, vocabulary=vocabulary, **sizes)
    asked = Sampling(max_tokens=case.new, temperature=TEMPERATURE)
    rng, drawn = np.random.default_rng(0), []
    hear = lambda index, tokens, finish: drawn.append(len(tokens))  # noqa: E731
    for run in range(UNCOUNTED + runs):
        prompt = rng.integers(0, vocabulary, case.prompt)
        start = time.perf_counter()
        if copies:
            for number in range(case.samples):
                engine.submit([*prompt[:-1], number % vocabulary], asked, 1, hear)
        else:
            engine.submit(prompt, asked, case.samples, hear)
        blocks = []  # when each had been drawn, and its tokens
        while not engine.idle:
            drawn.clear()
            if not engine.step() and not engine.idle:
                raise RuntimeError("the sampler has samples that wait, and nothing to do")
            if drawn:
                blocks.append((time.perf_counter() - start, sum(drawn)))
        if run >= UNCOUNTED:
            yield times_of(blocks, case)


def times_of(blocks: list[tuple[float, int]], case: Case) -> Times:
    """From when each block had been drawn, and how many tokens it had: steps are those between the first and the last
    block in which all rows were at work."""
    if (drawn := sum(tokens for _, tokens in blocks)) != case.samples * case.new:
        raise SystemExit(f"{drawn} tokens were drawn of {case.samples * case.new}")
    full = [seconds for seconds, tokens in blocks if tokens == case.samples * case.steps]
    if len(full) < 2:
        raise SystemExit("all rows were never at work for two blocks; give a larger --new, or fewer --samples")
    step = (full[-1] - full[0]) / ((len(full) - 1) * case.steps)
    return Times(blocks[0][0] - case.steps * step, step, blocks[-1][0])


def _told(model: Any, params: Any, case: Case, copies: bool, runs: list[Times], device: Any) -> dict[str, Any]:
    prefill, step, whole = (statistics.median(times) for times in zip(*runs, strict=True))
    rows = case.samples
    parts, flops = step_work(model, params, case, copies)
    needed = _roofline(parts["all"], flops, device)
    stats = device.memory_stats()
    return {
        "rows": rows,
        "decode_tokens_per_second": round(rows / step, 1),
        "tokens_per_second": round(rows * case.new / whole, 1),
        "prefill_seconds": round(prefill, 4),
        "step_seconds": round(step, 6),
        "peak_memory_gb": round((stats["peak_bytes_in_use"] if stats else turns.process_memory()) / 1e9, 2),
        "step_bytes": parts,
        "step_flops": flops,
        "roofline_seconds": needed,
        "part_of_roofline": round(max(needed.values()) / step, 3) if needed else None,
    }


def step_work(model: Any, params: Any, case: Case, copies: bool) -> tuple[dict[str, int], int]:
    """Bytes that a step must read, and its FLOPs, in the mean of those after the first block."""
    import jax

    c, rows = model.config, case.samples
    read = {name: part for name, part in params.items() if c.tied_head or name != "embedding"}
    leaves = jax.tree.leaves(read)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    matrices = sum(leaf.size for leaf in leaves if leaf.ndim > 1)
    token = 2 * c.num_layers * c.num_kv_heads * c.head_size * 2  # keys and values, in bfloat16
    own = (case.steps + case.new + 1) / 2  # tokens that a row has drawn, in the mean of the steps that are timed
    prompts = rows if copies else 1
    parts = {"weights": weights, "prompt": token * case.prompt * prompts, "rows": int(token * rows * own)}
    attention = 4 * c.num_layers * c.num_heads * c.head_size * (case.prompt + own)
    return parts | {"all": sum(parts.values())}, int(rows * (2 * matrices + attention))


def _roofline(step_bytes: int, flops: int, device) -> dict[str, float] | None:
    from msm_jax.parallel.chips import chip_of

    chip = chip_of(device.device_kind)
    if chip is None or chip.bandwidth is None:
        return None
    return {"memory": round(step_bytes / chip.bandwidth, 6), "products": round(flops / chip.peak, 6)}


def _rows_with_copies(model: Any, params: Any, case: Case, device) -> int:
    """As many as the device holds with a prompt each."""
    import jax

    from msm_jax.sampler.shapes import bucket

    stats, c = device.memory_stats(), model.config
    if not stats:
        return case.samples
    free = ROOM * stats["bytes_limit"] - sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    row = 4 * c.num_layers * c.num_kv_heads * c.head_size * (max(bucket(case.prompt), case.chunk) + bucket(case.new))
    if free < row:
        raise SystemExit("the memory holds no row beside the weights; leave the copies out: --sides=shared")
    return min(case.samples, int(free // row))


if __name__ == "__main__":
    main()
