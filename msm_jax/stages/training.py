"""The stages that train: pretraining, MSM and AFT; and the weights that they leave.

As in `stages`, a function sees nothing of the configuration but `context.params`, and imports jax when it is called.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from msm_jax.errors import UserError
from msm_jax.stages import artifacts
from msm_jax.stages.graph import StageContext
from msm_jax.storage import files

PyTree = Any
_MOST_ROWS = 0.99  # that cuDNN's attention is to take; a batch with another one is slower


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How to compute, which changes nothing of a result but rounding."""

    mesh: Mapping[str, int]
    execution: Mapping[str, Any]
    checkpoint_every: int = 1
    checkpoint_minutes: float = 1.0
    keep_checkpoints: int = 1
    log_every: int = 1
    rows: int = 64  # answers that are drawn at once


def train(context: StageContext, *, runtime: Runtime, label: str) -> dict[str, Any]:
    """Pretraining, MSM or AFT: they differ in their inputs alone.

    Inputs: `rows` of each source of the mixture; `tokenizer`; `base`, the model under the adapter (or to
    go on with, if there is no adapter); `adapter`, the stage whose trained weights are continued.
    """
    import jax

    from msm_jax.checkpoints.orbax import exists, remove
    from msm_jax.checkpoints.weights import read_description
    from msm_jax.models import count_parameters

    p = context.params
    sources = sources_of(p, context.inputs)
    steps = steps_of(p, sources)
    # Orbax makes `final` appear at once and whole, so a run that was killed after it needs no training again.
    if not exists(f"{context.arrays or context.folder}/final"):
        _train(context, runtime, label, sources, steps)
    if jax.process_index() > 0:
        return {}
    remove(f"{context.arrays or context.folder}/checkpoints")
    curves = context.folder / "metrics.jsonl"
    lines = curves.read_bytes().splitlines() if curves.is_file() else []
    last = files.parse_object(b"".join(lines[-1:]), curves, files.anew(context.folder), tokens=int, loss=float)
    return {
        "steps": steps,
        "tokens": last["tokens"],
        "loss": last["loss"],
        "parameters": count_parameters(read_description(context.folder).shapes),
    }


def sources_of(params: Mapping[str, Any], inputs: Mapping[str, pathlib.Path]) -> list:
    """The mixture of a training stage, in an order that does not depend on how the config lists it."""
    from msm_jax.data.mixture import Source
    from msm_jax.data.rows import PackedRows

    sources = [
        Source(name, PackedRows(inputs["rows"][name]), share) for name, share in sorted(params["mixture"].items())
    ]
    # An epoch takes each row once, so its shares are those of the rows.
    return sources if params["steps"] else [source._replace(weight=len(source.rows)) for source in sources]


def steps_of(params: Mapping[str, Any], sources: list) -> int:
    from msm_jax.data.mixture import epoch_steps

    return params["steps"] or epoch_steps(sources, params["batch_size"])


def execution_for(runtime: Runtime, device: Any, sources: list, decoder: Any) -> Any:
    """The `Execution` of this `DecoderConfig` on a mesh of devices like this one, for these rows."""
    import jax

    from msm_jax.models import Execution

    execution = Execution(**runtime.execution).on(device.platform, getattr(device, "compute_capability", None))
    counts = np.concatenate([source.rows.segments_of_rows() for source in sources])
    # Few rows have many short segments, since those that are left are packed last.
    most = int(np.quantile(counts, _MOST_ROWS, method="higher"))
    execution, lacks = execution.for_rows(most, decoder.dtype, decoder.head_size)
    if lacks and jax.process_index() == 0:
        print(f"attention is not by cuDNN, and slower: {lacks}", flush=True)
    return execution


def _train(context: StageContext, runtime: Runtime, label: str, sources: list, steps: int) -> None:
    import jax

    from msm_jax.checkpoints import orbax
    from msm_jax.checkpoints.weights import read_description, write_description
    from msm_jax.data.mixture import batches
    from msm_jax.models import DecoderConfig, LoraConfig, Model
    from msm_jax.parallel import batch_sharding, check_heads, make_mesh, peak_flops
    from msm_jax.parallel.hosts import row_share
    from msm_jax.train import loop
    from msm_jax.train.optimizer import OptimizerConfig
    from msm_jax.train.step import flops_per_token, init_state, make_train_step

    p = context.params
    mesh = make_mesh(runtime.mesh)
    tokenizer = artifacts.load_tokenizer(context.inputs["tokenizer"])
    if "base" in context.inputs:
        decoder = read_description(context.inputs["base"]).config
    else:
        decoder = DecoderConfig(vocab_size=padded(tokenizer.vocab_size), **p["model"])
    check_heads(mesh, decoder.num_kv_heads)
    lora = LoraConfig(**p["lora"]) if p["lora"] else None
    execution = execution_for(runtime, mesh.devices.flat[0], sources, decoder)
    model = Model(decoder, lora, execution, p["int8_base"])

    inputs = context.inputs
    trained = load_weights(inputs["adapter"], model, runtime) if "adapter" in inputs else None
    needs_base = "base" in inputs and (lora or trained is None)
    # A frozen base is read in the dtype of the products; what is trained is float32.
    base = (
        load_weights(inputs["base"], dataclasses.replace(model, lora=None), runtime, decoder.dtype if lora else None)
        if needs_base
        else None
    )
    frozen, start = (base, trained) if lora else (None, trained or base)
    state = init_state(model, mesh, p["seed"], start)

    state = loop.train(
        config=loop.LoopConfig(
            steps=steps,
            batch_size=p["batch_size"],
            accumulation=p["accumulation"],
            log_every=runtime.log_every,
            checkpoint_every=runtime.checkpoint_every,
            checkpoint_minutes=runtime.checkpoint_minutes,
            keep_checkpoints=runtime.keep_checkpoints,
        ),
        step_fn=make_train_step(model, OptimizerConfig(**p["optim"]), steps, mesh),
        state=state,
        frozen=frozen,
        dataset=batches(sources, p["batch_size"], p["seed"], *row_share(mesh)),
        source_names=[source.name for source in sources],
        batch_sharding=batch_sharding(mesh, leading=1),
        folder=context.folder,
        arrays=context.arrays or context.folder,
        saved=context.send,
        identity=context.stage.hash,
        run_config={"params": p, "inputs": {role: source.key for role, source in context.stage.all_inputs.items()}},
        flops_per_token=flops_per_token(model, sources[0].rows.row_length),
        peak_flops=peak_flops(decoder.dtype),
        describe=functools.partial(describe_batch, tokenizer),
        label=label,
    )
    first = next(iter(context.stage.inputs["rows"].values()))
    if jax.process_index() == 0:
        write_description(
            context.folder,
            model,
            base=str(inputs["base"]) if lora else None,
            tokenizer=str(inputs["tokenizer"]),
            # Asked in another format than it was trained in, a model is another model.
            chat=first.params["chat"] | {"name": first.params["model_name"]},
            arrays=context.arrays,
        )
    context.send()  # before `final`: another machine that finds that trains no more, and needs these files
    orbax.save_params(f"{context.arrays or context.folder}/final", state.params)


def describe_batch(tokenizer: Any, batch: Mapping[str, Any]) -> str:
    """The first row of each source in a batch as text, what is trained between « and »."""
    from msm_jax.data.chat import show

    _, rows = np.unique(batch["source"], return_index=True)
    return "\n\n".join(show(tokenizer, *(batch[name][row] for name in ("tokens", "mask", "segments"))) for row in rows)


def load_weights(folder: pathlib.Path, model: Any, runtime: Runtime, dtype: str | None = None) -> PyTree:
    """Weights of a training stage, or of a base, on the mesh: the base's, or the adapter's if `model` has one.

    Args:
      dtype: of matrices; None: float32.
    """
    from msm_jax.models import Execution
    from msm_jax.parallel import make_mesh

    model = dataclasses.replace(model, execution=Execution())
    layout = tuple(make_mesh(runtime.mesh).shape.items())
    if _layout[:] != [layout]:  # two copies of a base, laid out in two ways, may be too much
        _load_weights.cache_clear()
        _layout[:] = [layout]
    return _load_weights(folder, model, layout, dtype or "float32")


_layout: list[tuple[tuple[str, int], ...]] = []  # of what is kept


@functools.lru_cache(maxsize=2)  # the base, which every arm shares, and an adapter
def _load_weights(folder: pathlib.Path, model: Any, mesh_shape: tuple[tuple[str, int], ...], dtype: str) -> PyTree:
    from msm_jax.checkpoints import weights
    from msm_jax.models import quantize
    from msm_jax.parallel import make_mesh

    stored = weights.open_model(folder)
    place = stored.arrays or folder  # what is deleted from a copy of a workdir comes back
    if (stored.decoder, stored.lora) != (model.config, model.lora):
        raise UserError(f"{place}: holds another model than the stage that asks for it; delete the folder")
    try:
        params = weights.load(stored, make_mesh(dict(mesh_shape)), dtype)
        return quantize(params) if model.int8_base and not model.lora else params
    except UserError as error:
        if not stored.ours:
            raise
        raise UserError(f"{error}; delete {place}, and the same command makes it anew") from None


def padded(vocab_size: int) -> int:
    """Rows of the embedding: a multiple of 128 divides among chips and fills their tiles."""
    return -(-vocab_size // 128) * 128
