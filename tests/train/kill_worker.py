"""A tiny training run to be killed: `python tests/train/kill_worker.py FOLDER [STEPS]`.

The same command resumes it. It leaves `weights.npz` when it is done. All devices there are take part.
"""

import pathlib
import sys

import jax
import numpy as np

from msm_jax.data.chat import Example
from msm_jax.data.mixture import Source, batches
from msm_jax.data.rows import PackedRows, write_rows
from msm_jax.errors import Interrupted
from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.parallel import batch_sharding, make_mesh
from msm_jax.train.loop import LoopConfig, train
from msm_jax.train.optimizer import OptimizerConfig
from msm_jax.train.step import init_state, make_train_step

STEPS, BATCH, TOKENS, VOCABULARY = 40, 4, 16, 32


def make_sources(folder: pathlib.Path) -> list[Source]:
    sources = []
    for name, seed, weight in (("msm", 0, 3.0), ("replay", 1, 1.0)):
        draw = np.random.default_rng(seed)
        examples = [
            Example(draw.integers(3, VOCABULARY, n).astype(np.int32), np.arange(n) > 0, False)
            for n in draw.integers(4, TOKENS, 40)
        ]
        if not (folder / name).exists():
            write_rows(folder / name, examples, TOKENS, VOCABULARY)
        sources.append(Source(name, PackedRows(folder / name), weight))
    return sources


def main(folder: pathlib.Path, steps: int) -> int:
    decoder = DecoderConfig(
        vocab_size=VOCABULARY, num_layers=1, width=16, mlp_width=32, num_heads=2, num_kv_heads=2, head_size=8,
        dtype="float32",
    )  # fmt: skip
    model = Model(decoder, LoraConfig(rank=4, alpha=8.0, targets=("q", "up")))
    optimizer = OptimizerConfig(learning_rate=1e-2)
    mesh = make_mesh({"data": -1, "fsdp": min(2, len(jax.devices())), "tensor": 1})
    sources = make_sources(folder.parent)
    try:
        state = train(
            config=LoopConfig(steps=steps, batch_size=BATCH, log_every=5, checkpoint_every=3),
            step_fn=make_train_step(model, optimizer, STEPS, mesh),
            state=init_state(model, mesh, seed=0),
            frozen=jax.jit(Model(decoder).init)(jax.random.key(1)),
            dataset=batches(sources, BATCH, seed=0),
            source_names=[source.name for source in sources],
            batch_sharding=batch_sharding(mesh, leading=1),
            folder=folder,
            arrays=folder,
            saved=lambda: None,
            identity="kill test",
            run_config={},
            flops_per_token=1.0,
            peak_flops=None,
            describe=None,
            label="kill test",
        )
    except Interrupted as interrupted:
        print(interrupted)
        return interrupted.status
    leaves = jax.tree.leaves_with_path(jax.device_get(state))
    np.savez(folder / "weights.npz", **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS))
