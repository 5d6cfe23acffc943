"""Our LoRA step against that of transformers + peft: same shapes, machine and dtype, alternating.

    python -m benchmarks.train                     SmolLM2's shape on a CPU, float32 and bfloat16, 4 rows of 512
    python -m benchmarks.train --shape=llama8b --rows=2 --length=4096 --dtype=bfloat16 \\
        --remat=save_qkv --loss-chunk=512 --checkpoint-peft                                  Llama 8B on a GPU of 80 GB

Prints a line of JSON for each dtype: tokens/s of both (median of the steps), the ratio, the part of the machine's
measured matrix product that ours reaches (mfu: of the data sheet, where it is known), and peak memory in GB (of the
process on a CPU, of the device on a GPU). Weights are random: what is computed does not depend on them. Each side runs
in a process of its own, and one waits while the other works.
"""

import argparse
import json
import os
import statistics
import sys
from typing import Any

from benchmarks import turns
from msm_jax import cli

SHAPES = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "llama8b": "meta-llama/Llama-3.1-8B",
}
RANK, ALPHA = 64, 128.0
SIDES = ("ours", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32,bfloat16", help="of the products; one of them, or both in turn")
    parser.add_argument("--steps", type=int, default=11, help="measured, after two that are not")
    parser.add_argument("--remat", default="save_projections", help="of ours")
    parser.add_argument("--checkpoint-peft", action="store_true", help="peft computes its layers twice, to save memory")
    parser.add_argument("--loss-chunk", type=int, default=128, help="of ours: tokens of each row")
    parser.add_argument("--sides", default="ours,peft", help="one of them alone is measured without a ratio")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not set(options.dtype.split(",")) <= {"float32", "bfloat16"}:
        parser.error(f"--dtype={options.dtype}: choose of float32, bfloat16")
    if not set(options.sides.split(",")) <= set(SIDES):
        parser.error(f"--sides={options.sides}: choose of {', '.join(SIDES)}")
    if options.worker:
        side = {"ours": _ours, "peft": _peft}[options.worker]
        sys.exit(cli.status_of(lambda: turns.serve(*side(options))))
    for dtype in options.dtype.split(","):
        options.dtype = dtype
        print(json.dumps(compare(options)), flush=True)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    workers = {side: _start(side, options.dtype) for side in options.sides.split(",")}
    # The first run compiles, and the second may still allocate.
    seconds, about = turns.in_turns(workers, options.steps, uncounted=2)
    tokens = options.rows * options.length
    rates = {side: tokens / statistics.median(times) for side, times in seconds.items()}
    result: dict[str, Any] = {
        "shape": options.shape,
        "rows": options.rows,
        "length": options.length,
        "dtype": options.dtype,
        "remat": options.remat,
        "tokens_per_second": {side: round(rate, 1) for side, rate in rates.items()},
        "slowest_and_fastest": {
            side: [round(tokens / max(t), 1), round(tokens / min(t), 1)] for side, t in seconds.items()
        },
        "peak_memory_gb": {side: round(facts["memory"] / 1e9, 2) for side, facts in about.items()},
    }
    if len(rates) == 2:
        result["ratio"] = round(rates["ours"] / rates["peft"], 3)
    if "ours" in rates:
        facts = about["ours"]
        flops = rates["ours"] * facts["flops_per_token"]
        result["part_of_peak"] = round(flops / facts["measured"], 3)
        if facts["peak"] != facts["measured"]:
            result["mfu"] = round(flops / facts["peak"], 3)
    return result


def _start(side: str, dtype: str) -> turns.Worker:
    environment = dict(os.environ)
    if side == "ours":
        environment.setdefault("JAX_NUM_CPU_DEVICES", "1")
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # of a GPU that both sides are on
    command = [sys.executable, "-m", "benchmarks.train", *sys.argv[1:], f"--dtype={dtype}", f"--worker={side}"]
    return turns.start(command, environment)


def _ours(options: argparse.Namespace):
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.weights import random_params
    from msm_jax.checkpoints.presets import preset
    from msm_jax.models import Execution, LoraConfig, Model
    from msm_jax.parallel import batch_sharding, make_mesh, measured_flops, peak_flops
    from msm_jax.train.optimizer import OptimizerConfig
    from msm_jax.train.step import flops_per_token, init_state, make_train_step

    device = jax.devices()[0]
    platform = device.platform
    decoder = dataclasses.replace(preset(SHAPES[options.shape]), dtype=options.dtype)
    unroll = decoder.num_layers if platform == "cpu" else 1
    execution = Execution("auto", remat=options.remat, scan_unroll=unroll, loss_chunk=options.loss_chunk)
    execution = execution.on(platform, getattr(device, "compute_capability", None))
    execution, _ = execution.for_rows(1, options.dtype, decoder.head_size)
    model = Model(decoder, LoraConfig(RANK, ALPHA), execution)
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    frozen = random_params(dataclasses.replace(model, lora=None), mesh, options.dtype)
    state = init_state(model, mesh, 0)
    shape = (1, options.rows, options.length)
    rows = {
        "tokens": np.random.default_rng(0).integers(0, decoder.vocab_size, shape).astype(np.int32),
        "segments": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(options.length, dtype=np.int32), shape),
        "mask": np.ones(shape, bool),
    }
    batch = {name: jax.device_put(x, batch_sharding(mesh, leading=1)) for name, x in rows.items()}
    batch["source"] = jax.device_put(jnp.zeros(shape[:2], jnp.int32), batch_sharding(mesh, leading=1))
    run = make_train_step(model, OptimizerConfig(), 1000, mesh)
    facts = {
        "flops_per_token": flops_per_token(model, options.length),
        "measured": measured_flops(options.dtype),
        "peak": peak_flops(options.dtype),
    }

    def step() -> None:
        nonlocal state
        state, metrics = run(state, frozen, batch)
        jax.block_until_ready(metrics)

    def memory() -> float:
        stats = jax.devices()[0].memory_stats()
        return float(stats["peak_bytes_in_use"]) if stats else turns.process_memory()

    return step, lambda: {"memory": memory(), **facts}


def _peft(options: argparse.Namespace):
    import peft
    import torch
    import transformers

    from msm_jax.checkpoints.families import config_of
    from msm_jax.checkpoints.presets import preset

    decoder = preset(SHAPES[options.shape])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype)
    config = transformers.AutoConfig.for_model(**config_of(decoder))
    flash = device == "cuda" and transformers.utils.is_flash_attn_2_available()
    config._attn_implementation = "flash_attention_2" if flash else "sdpa"
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    if options.checkpoint_peft:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    tokens = torch.randint(0, decoder.vocab_size, (options.rows, options.length), device=device)

    def step() -> None:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    def memory() -> float:
        return float(torch.cuda.max_memory_allocated()) if device == "cuda" else turns.process_memory()

    return step, lambda: {"memory": memory()}


if __name__ == "__main__":
    main()
