"""Hugging Face folder <-> our checkpoint: what `python -m msm_jax.convert` does."""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.exports import write_beside, write_texts
from msm_jax.checkpoints.huggingface import adapter_table, base_table, merged, tensors_of
from msm_jax.checkpoints.orbax import save_params
from msm_jax.checkpoints.peft import peft_config
from msm_jax.checkpoints.sources import copy_small_files, is_hub_id, resolve
from msm_jax.checkpoints.tensor_files import TensorFiles, write_tensors
from msm_jax.checkpoints.weights import Stored
from msm_jax.errors import UserError
from msm_jax.models import Execution, Model, count_parameters
from msm_jax.parallel import make_mesh, platform
from msm_jax.storage import files
from msm_jax.storage.folders import first_line, is_url

PyTree = Any

# Largest KL divergence, in nats, that `--verify` passes: float32 on both sides differs by less than a hundredth of it.
KL_BAR = 1e-4


def import_model(path: str, out: str, base: str | None = None, verify: bool = False) -> Stored:
    """Reads a Hugging Face folder or id, or a PEFT adapter, and writes it as a checkpoint of ours to `out`.

    Every array keeps its dtype. At any time the host holds the shards of its devices and, twice, one tensor. `base` is
    that of an adapter, if not the one that its adapter_config.json names. With `verify` it is asked first whether all
    is there that `verify` needs.

    Raises: UserError if `path` cannot be read, or `out` holds something or has no room.
    """
    with new_folder(out) as folder:
        if verify:
            _check_libraries()
        stored = weights.open_adapter(path, weights.open_model(base)) if base else weights.open_model(path)
        if stored.ours:
            raise UserError(f"{path}: is a checkpoint of ours already")
        mesh = _mesh()
        shapes, _ = weights.load_lazily(stored, mesh)
        files.check_room(folder, sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes)))
        if verify:
            _check_local(stored)
        params = weights.load(stored, mesh, dtype=None)
        copy_small_files(stored.folder, folder / weights.KEPT_FOLDER)
        save_params(folder / "final", params)
        kept = {name: getattr(stored, name) for name in ("base", "tokenizer", "origin", "revision", "chat")}
        if stored.tokenizer == stored.folder:
            kept["tokenizer"] = str(folder)
        weights.write_description(folder, stored.model, **kept)  # last, for it makes the folder a checkpoint
    return weights.open_model(folder)


def export_model(
    path: str, out: str, base: str | None = None, merge: bool = False, verify: bool = False
) -> tuple[Stored, Stored]:
    """Writes a checkpoint of ours to `out` as Hugging Face has it: a base as a whole model; an adapter as `peft` has
    it, or with `merge` as a whole model with the adapter's products added to the matrices.

    A model is read and written array by array; an adapter that is merged is held as a whole. In all, a host holds no
    more than the shards of its devices and, twice, the largest tensor. `base` and `verify` are as in `import_model`,
    and `write_beside` says what else is written.

    Returns: what was exported, and what was written.
    Raises: UserError if the checkpoint cannot be read, or `out` holds something or has no room.
    """
    with new_folder(out) as folder:
        if verify:
            _check_libraries()
        stored = whole = weights.open_model(path)
        if stored.lora is not None:
            if not (base or stored.base):
                raise UserError(f"{path}: an adapter whose base is not told; give --base")
            whole = weights.open_model(base) if base else weights.open_base(stored.base, path, stored.revision)
            stored = weights.open_adapter(path, whole)
        elif merge or base:
            raise UserError(f"{path}: is no adapter; there is nothing to merge, and no base but itself")
        alone = stored.lora is not None and not merge
        params, read = weights.load_lazily(stored if alone else whole, _mesh())
        if verify and alone:  # what is merged, or whole, is read where it is written
            _check_local(whole)
        if alone:
            write_texts(stored, whole, folder)
            write_tensors(folder, tensors_of(params, adapter_table(stored.decoder, stored.lora), read), "adapter_model")
            described = peft_config(stored.lora, whole.origin or "", whole.revision)
            files.write_json(folder / "adapter_config.json", described)
            return stored, weights.open_adapter(folder, whole)
        table = base_table(stored.decoder)
        write_beside(stored, whole, folder, params["embedding"].dtype.name)
        tensors = tensors_of(params, table, read)
        if merge:
            tensors = merged(params, weights.load(stored, _mesh(), dtype=None), stored.lora, table, read)
        write_tensors(folder, tensors)
    return stored, weights.open_model(folder)


def verify(ours: Stored, theirs: Stored) -> None:
    """Prints the largest absolute difference of logits, and the largest KL divergence, between a model that we run and
    one that transformers (with `peft`, for an adapter) runs: both in float32, on rows of random tokens. These libraries
    are there: who made the model with `verify` was told otherwise.

    Raises: UserError if the two differ.
    """
    tokens = np.random.default_rng(0).integers(0, ours.decoder.vocab_size, (2, 64), dtype=np.int32)
    with jax.default_matmul_precision("highest"):  # a TPU multiplies float32 in bfloat16 otherwise
        a = _our_logits(ours, tokens)
    b = jnp.asarray(_their_logits(theirs, tokens))
    log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    difference, kl = jnp.abs(a - b).max(), jnp.sum(jnp.exp(log_b) * (log_b - log_a), axis=-1).max()
    print(f"against transformers, float32: max difference of logits {difference:.2e}, max KL {kl:.2e} nats")
    if not kl <= KL_BAR:
        raise UserError(f"the two differ by more than {KL_BAR:g} nats; what was written is not the same model")


def verify_merge(adapter: Stored, made: Stored) -> None:
    """Prints how far the matrices of a merged export lie from base plus adapter, as the largest share of what rounding
    to their dtype may take. A tensor that the adapter leaves alone must be the base's.

    Computed in NumPy from the tensors as `peft` names them: the adapter is held as a whole, the base one array after
    the other.

    Raises: UserError if it is more than rounding.
    """
    base, lora = base_of(adapter), adapter.lora
    params, read = weights.load_lazily(base, _mesh())
    factors = weights.load(adapter, _mesh())
    factors = {name: fetch() for name, _, _, fetch in tensors_of(factors, adapter_table(adapter.decoder, lora))}
    written, worst = TensorFiles(made.folder), 0.0
    for name, _, _, fetch in tensors_of(params, base_table(base.decoder), read):
        found, matrix = written.read(name), fetch()
        a, b = (factors.get(f"base_model.model.{name.removesuffix('weight')}lora_{x}.weight") for x in "AB")
        if a is None:
            worst = max(worst, 0.0 if np.array_equal(found, matrix) else np.inf)
            continue
        wanted = np.float32(matrix) + lora.alpha / lora.rank * (b @ a)
        size = np.abs(wanted)
        # Half a unit in the last place, and what sums in float32 may differ by.
        allowed = jnp.finfo(found.dtype).eps / 2 * size + 1e-5 * size.max() + 1e-30
        worst = max(worst, float((np.abs(np.float32(found) - wanted) / allowed).max()))
    print(f"against base plus adapter: max error of a weight {worst:.2f} of what rounding may take")
    if not worst <= 1:
        raise UserError("the merged matrices are not base plus adapter; what was written is not the same model")


def _our_logits(stored: Stored, tokens: np.ndarray) -> jax.Array:
    base = base_of(stored)
    base = dataclasses.replace(base, decoder=dataclasses.replace(base.decoder, dtype="float32"))
    model = Model(base.decoder, stored.lora, Execution("blocked").on(platform()))
    params, lora = weights.load(base, _mesh()), weights.load(stored, _mesh()) if stored.lora else None
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return jax.jit(model.apply)(params, lora, tokens, np.ones_like(tokens), positions)


def base_of(stored: Stored) -> Stored:
    return weights.open_base(stored.base, stored.folder, stored.revision) if stored.lora else stored


def _check_libraries() -> None:
    try:
        import torch, transformers, peft  # noqa: E401, F401, I001 (the others need torch, and the error names it)
    except ImportError as error:
        raise UserError(
            f"--verify compares with transformers and peft, and {error.name} is missing: pip install -e '.[hf]'"
        ) from None


def _check_local(stored: Stored) -> None:
    """Raises: UserError if transformers and `peft` cannot read the model `stored` where it lies."""
    whole = base_of(stored)
    if whole.origin is None or is_url(whole.origin):
        raise UserError(f"{whole.folder}: --verify needs the base in a local folder of Hugging Face; export it first")
    if stored.lora and is_url(stored.folder):
        raise UserError(f"{stored.folder}: --verify needs the adapter in a local folder; copy it first")
    resolve(whole.origin, whole.revision if is_hub_id(whole.origin) else None, weights=False)  # raises if it is gone


def _their_logits(stored: Stored, tokens: np.ndarray) -> np.ndarray:
    import peft
    import torch
    import transformers

    whole = base_of(stored)
    transformers.utils.logging.disable_progress_bar()
    # What these libraries have to say to each other is nothing to the user.
    with warnings.catch_warnings(action="ignore", category=FutureWarning), torch.no_grad():
        opened = whole.origin
        try:
            folder = resolve(whole.origin, whole.revision if is_hub_id(whole.origin) else None)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            if stored.lora is not None:
                opened = stored.folder
                model = peft.PeftModel.from_pretrained(model, stored.folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"--verify: transformers cannot open {opened} ({first_line(error)})") from None
        return model.eval()(torch.tensor(tokens)).logits.float().numpy()


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[pathlib.Path]:
    """An empty folder, which is removed again if something goes wrong."""
    if not path or is_url(path):
        raise UserError(f"--out={path}: must be a local folder; copy what is written from there")
    folder = pathlib.Path(path).expanduser()
    if (there := folder.is_dir()) and any(folder.iterdir()):
        raise UserError(f"--out={path}: is not empty; choose another folder, or delete this one")
    files.make_folder(folder, "choose another --out")
    try:
        yield folder
    except BaseException:
        for child in folder.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        if not there:
            folder.rmdir()
        raise


def _mesh() -> Mesh:
    return make_mesh({"data": 1, "fsdp": -1, "tensor": 1})


def describe(made: Stored, out: str) -> str:
    if made.lora:
        shape = f"an adapter of rank {made.lora.rank}, alpha {made.lora.alpha:g}, on {', '.join(made.lora.targets)}"
        return f"{out}: {shape}; {count_parameters(made.model.lora_shapes):,} parameters"
    return f"{out}: a model of {count_parameters(made.model.shapes):,} parameters"
