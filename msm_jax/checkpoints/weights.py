"""Models as they lie on disk -> parameters on devices.

Three kinds of folder are known:

    ours           model.json (`write_description` says what is in it), and the weights in final/. An adapter names
                   the folder of its base; where "source" is set, the weights are those of that folder.
    Hugging Face   config.json, *.safetensors, and the tokenizer
    PEFT adapter   adapter_config.json, adapter_model.safetensors
"""

import atexit
import dataclasses
import fnmatch
import functools
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from msm_jax.checkpoints import huggingface
from msm_jax.checkpoints.families import decoder_of
from msm_jax.checkpoints.orbax import load_params, open_params
from msm_jax.checkpoints.peft import lora_of
from msm_jax.checkpoints.sources import copy_small_files, file_names, is_hub_id, read_file, resolve, split_revision
from msm_jax.checkpoints.tensor_files import TensorFiles
from msm_jax.data.huggingface import read_chat_template
from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.parallel import param_shardings
from msm_jax.storage import files
from msm_jax.storage.folders import Folder, is_url

PyTree = Any
_log = logging.getLogger(__name__)

MODEL_FILE = "model.json"
_OTHERS = ("vocab_size", "max_length", "tied_head", "dtype")  # may differ under an adapter
KEPT_FOLDER = "huggingface"  # of a checkpoint of ours: the files beside the weights of the folder that it came from


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model on disk."""

    folder: str  # where the weights are: local, or a URL
    ours: bool  # whether it is Orbax's `final/` that holds them; else safetensors
    decoder: DecoderConfig
    lora: LoraConfig | None = None  # the shape of the adapter that the folder holds; None if it holds a base
    base: str | None = None  # folder or id of an adapter's base, as far as it is told
    tokenizer: str | None = None  # folder of the tokenizer and its chat template
    origin: str | None = None  # the id or folder that the base came from; None for one that was pretrained here
    revision: str | None = None  # the commit, if that is an id
    # The template that it was trained on, as `make_template` takes it, and "name", who speaks; None: its own.
    chat: Mapping[str, Any] | None = None
    arrays: str | None = None  # folder or URL of `final/`, if it lies elsewhere than the rest

    @property
    def final(self) -> str:
        """Where the weights of a folder of ours lie."""
        return f"{self.arrays or self.folder}/final"

    @property
    def model(self) -> Model:
        return Model(self.decoder, self.lora)


def open_model(path: str | os.PathLike, revision: str | None = None, **numerics: Any) -> Stored:
    """What lies at `path`: a folder of ours, a Hugging Face folder, a URL of either, or a Hugging Face id. `numerics`:
    the dtype, in the place of the one that a folder of ours names.

    Raises: UserError if nothing is there, or nothing that can be read, and for an adapter whose base is not told.
    """
    folder = resolve(os.fspath(path), revision)
    names = file_names(folder)
    if MODEL_FILE in names:
        return _open_ours(folder, _json(folder, MODEL_FILE), numerics)
    if "adapter_config.json" in names:
        if any(name.startswith("model") and name.endswith(".safetensors") for name in names):
            raise UserError(f"{folder}: holds a whole model and an adapter; give the adapter a folder of its own")
        described = _json(folder, "adapter_config.json")
        base = _named_base(described, folder)
        if not base:
            raise UserError(f"{folder}/adapter_config.json: names no base; open the base, and this as its adapter")
        revision = _named(described, "revision", "name or a commit", folder)
        return open_adapter(folder, open_base(base, f"{folder}/adapter_config.json", revision, **numerics))
    if "config.json" not in names:
        raise _nothing(folder, "model", "config.json (Hugging Face)")
    decoder = decoder_of(_json(folder, "config.json"), f"{folder}/config.json", **numerics)
    tokenizer = _own_tokenizer(folder)
    origin, commit = (os.fspath(path), pathlib.Path(folder).name) if is_hub_id(path) else (folder, None)
    return Stored(folder, ours=False, decoder=decoder, tokenizer=tokenizer, origin=origin, revision=commit)


def open_base(path: str, named_by: str, revision: str | None = None, **numerics: Any) -> Stored:
    """The base that an adapter names. Raises: UserError, which says who named it."""
    try:
        return open_model(path, revision if is_hub_id(path) else None, **numerics)
    except UserError as error:
        raise UserError(
            f"{error} ({named_by} names it as the base; name another as the model, and this its adapter)"
        ) from None


def locate(path: str, revision: str | None = None, **numerics: Any) -> tuple[dict[str, Any], Stored]:
    """`open_model` without fetching weights, and where they are, as "source" in model.json: with what tells later
    whether they are still the same."""
    folder = resolve(path, revision, weights=False)
    stored = open_model(folder, **numerics)
    if is_hub_id(path):  # its commit tells what it is
        return {"path": path, "revision": pathlib.Path(folder).name, "fingerprint": None}, stored
    return {"path": folder, "revision": None, "fingerprint": None if stored.lora else fingerprint_of(stored)}, stored


def open_adapter(path: str | os.PathLike, base: Stored) -> Stored:
    """The adapter at `path`, of ours or of `peft`, over `base`; from the hub also as ORG/NAME@REVISION.

    Raises: UserError if it is none, or does not fit.
    """
    folder = resolve(*split_revision(path))
    described = _json(folder, MODEL_FILE)
    if described is not None:
        stored = _open_ours(folder, described, {})
        if stored.lora is None:
            raise UserError(f"{folder}: holds a whole model, not an adapter")
        theirs = dataclasses.asdict(base.decoder)
        for field, found in dataclasses.asdict(stored.decoder).items():
            if field not in _OTHERS and found != theirs[field]:
                raise UserError(
                    f"{folder}: an adapter for another model: its {field} is {found}, the base's is {theirs[field]}"
                )
        return dataclasses.replace(
            stored,
            decoder=base.decoder,
            base=_name_of(base),
            tokenizer=_own_tokenizer(f"{folder}/{KEPT_FOLDER}") or base.tokenizer,
            origin=base.origin,
            revision=base.revision,
        )
    config = _json(folder, "adapter_config.json")
    if config is None:
        raise _nothing(folder, "adapter", "adapter_config.json (peft)")
    tensors = TensorFiles(folder, "adapter_model").tensors
    lora = lora_of(config, tensors, base.decoder.num_layers, folder)
    # Some lay the template beside the adapter that they trained with it.
    template = read_chat_template(local_tokenizer(folder))
    chat = {"template": template, "thinking": "default"} if template else None
    # Shapes cannot tell two models of one architecture apart; their names may.
    named = _named_base(config, folder)
    names = {pathlib.PurePath(path).name for path in (base.folder, base.origin) if path}
    if named and pathlib.PurePath(named).name not in names:
        _log.warning("%s: was trained on %s, and is opened over %s", folder, named, base.origin or base.folder)
    tokenizer = _own_tokenizer(folder) or base.tokenizer
    return Stored(folder, False, base.decoder, lora, _name_of(base), tokenizer, base.origin, base.revision, chat)


def _nothing(folder: str, what: str, theirs: str) -> UserError:
    return UserError(f"{folder}: holds no {what}; there is neither {MODEL_FILE} (ours) nor {theirs}")


def _own_tokenizer(folder: str) -> str | None:
    """`folder` if a tokenizer lies in it."""
    return folder if {"tokenizer.json", "tokenizer.model"} & file_names(folder) else None


def _name_of(base: Stored) -> str:
    """How an adapter names its base: an id is the same model on every machine, the folder of its cache is not."""
    return base.origin if not base.ours and base.origin and is_hub_id(base.origin) else base.folder


def _named(config: Mapping[str, Any], field: str, what: str, folder: str) -> str | None:
    if not isinstance(config.get(field), str | None):
        raise UserError(f"{folder}/adapter_config.json: {field} is {config[field]!r}; it must be a {what}")
    return config.get(field) or None


def _named_base(config: Mapping[str, Any], folder: str) -> str | None:
    return _named(config, "base_model_name_or_path", "path or id", folder)


def load(stored: Stored, mesh: Mesh, dtype: str | None = "float32") -> PyTree:
    """The weights of `stored` on the mesh: those of the adapter, if it is one.

    Args:
      dtype: of matrices, biases and the embedding; norms and adapters are float32. None: all as they are stored.

    Raises: UserError if they are missing, damaged, or of another shape than the folder says.
    """
    like = abstract_params(stored.model, mesh, dtype or "float32")
    if stored.ours:
        return load_params(stored.final, like, keep_dtypes=dtype is None)
    shapes, read = huggingface.open_params(*_tensors(stored, like), like, keep_dtypes=dtype is None)
    return jax.tree_util.tree_map_with_path(lambda path, _: read(tuple(key.key for key in path)), shapes)


def _tensors(stored: Stored, like: PyTree) -> tuple[TensorFiles, dict[str, huggingface.Place]]:
    tensors = TensorFiles(stored.folder, "adapter_model" if stored.lora else "model")
    table = huggingface.base_table(stored.decoder)
    if stored.lora:
        table = huggingface.adapter_table(stored.decoder, stored.lora)
    huggingface.check_tensors(tensors, table, like)
    return tensors, table


def load_lazily(stored: Stored, mesh: Mesh) -> tuple[PyTree, Callable[[tuple[str, ...]], jax.Array]]:
    """The weights as they are stored, one array after the other: a tree of shapes and dtypes, and what reads the array
    at a path. Raises: UserError as `load` does, and so does the reading."""
    like = abstract_params(stored.model, mesh, "float32")
    if not stored.ours:
        return huggingface.open_params(*_tensors(stored, like), like, keep_dtypes=True)
    shapes, read_part = open_params(stored.final, like)

    def read(path: tuple[str, ...]) -> jax.Array:
        part = functools.reduce(lambda tree, key: tree[key], path, shapes)
        part = functools.reduce(lambda tree, key: {key: tree}, reversed(path), part)
        [array] = jax.tree.leaves(read_part(part))
        return array

    return shapes, read


def abstract_params(model: Model, mesh: Mesh, dtype: str) -> PyTree:
    """ShapeDtypeStructs with shardings: of the adapter if `model` has one, else of the base."""
    axes, shapes = (model.lora_axes, model.lora_shapes) if model.lora else (model.axes, model.shapes)

    def abstract(path, leaf, sharding):
        matrix = model.lora is None and path[-1].key not in ("scale", "kernel_scale") and leaf.dtype != jnp.int8
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype) if matrix else leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(abstract, shapes, param_shardings(axes, shapes, mesh))


def write_description(
    folder: pathlib.Path,
    model: Model,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    origin: str | None = None,
    revision: str | None = None,
    source: Mapping[str, Any] | None = None,
    chat: Mapping[str, Any] | None = None,
    arrays: str | None = None,
) -> None:
    """Writes model.json. Other folders are named relative to `folder` where they lie in its parent, so that a workdir
    can be moved as a whole."""

    def relative(other: str | None) -> str | None:
        if not other or is_url(other) or is_hub_id(other):
            return other
        inside = pathlib.Path(other).absolute().parent == folder.absolute().parent
        return os.path.relpath(other, folder) if inside else other

    described = {
        "decoder": dataclasses.asdict(model.config),
        "lora": dataclasses.asdict(model.lora) if model.lora else None,
        "int8_base": model.int8_base,
        **{"base": relative(base), "tokenizer": relative(tokenizer), "origin": origin, "revision": revision},
        **{"source": source, "chat": chat, "arrays": arrays},
    }
    files.write_json(folder / MODEL_FILE, described)


def read_description(folder: pathlib.Path) -> Model:
    """What `write_description` described. Raises: UserError if there is no description."""
    described = files.read_object(pathlib.Path(folder, MODEL_FILE), files.anew(folder))
    return Model(*_shapes(described, folder), int8_base=described.get("int8_base", False))


@functools.cache
def local_tokenizer(folder: str) -> str:
    """`folder` of a tokenizer itself, or a copy of it if it is a URL, which lasts as long as the process."""
    if not is_url(folder):
        return folder
    copy = tempfile.TemporaryDirectory(prefix="msm_jax-")
    atexit.register(copy.cleanup)
    copy_small_files(folder, copy.name)
    return copy.name


def beside(stored: Stored) -> str | None:
    """The local folder of what lay beside the weights (config, tokenizer, template); None if nothing did."""
    folder = f"{stored.folder}/{KEPT_FOLDER}" if stored.ours else stored.folder
    return local_tokenizer(folder) if file_names(folder) else None


def tokenizer_folder(folder: str | os.PathLike) -> str:
    """Where in a folder of ours a tokenizer lies: it is kept in a folder of its own if it came from Hugging Face."""
    kept = f"{os.fspath(folder)}/{KEPT_FOLDER}"
    return kept if file_names(kept) else os.fspath(folder)


def _open_ours(folder: str, described: Mapping[str, Any], numerics: Mapping[str, Any]) -> Stored:
    decoder, lora = _shapes(described, folder)
    decoder = dataclasses.replace(decoder, **numerics)
    if lora and not lora.targets:
        raise UserError(f"{folder}/{MODEL_FILE}: lora.targets is empty, so it would be the base alone; make it anew")

    def place(other: str | None) -> str | None:  # beside the folder itself, not beside a link to it
        is_path = other and (other.startswith(".") or os.path.isabs(other))  # else a URL, or an id
        if is_path and is_url(folder):
            scheme, _, there = folder.partition("://")
            return f"{scheme}://{os.path.normpath(os.path.join(there, other))}"
        return os.path.normpath(os.path.join(os.path.realpath(folder), other)) if is_path else other

    tokenizer = place(described.get("tokenizer"))
    tokenizer = tokenizer_folder(tokenizer) if tokenizer else None
    if source := described.get("source"):
        there = open_model(source["path"], source["revision"])
        if source["fingerprint"] not in (None, fingerprint_of(there)):
            raise UserError(
                f"{source['path']}: the weights changed since {folder} was made from them; choose another --workdir"
            )
        return dataclasses.replace(there, decoder=decoder, tokenizer=tokenizer)
    # In a store, and where a folder of one was copied to, the weights lie beside their description.
    beside = is_url(folder) or os.path.isdir(os.path.join(folder, "final"))
    told = {name: described.get(name) for name in ("origin", "revision", "chat")}
    arrays = None if beside else described.get("arrays")
    return Stored(folder, True, decoder, lora, place(described.get("base")), tokenizer, **told, arrays=arrays)


def fingerprint_of(stored: Stored) -> str:
    """Tells weights apart, wherever they lie: those of the adapter, if it is one.

    Of an adapter each byte of its files counts; an adapter of ours that is trained or imported anew is another one,
    since Orbax names its files at random. A base may be large, so little of it is read: of safetensors some samples
    (`TensorFiles.fingerprint`), of ours the checksums that were saved with the arrays, which are linear in the bits.
    What differs in few numbers, or by a factor of a power of 2, can then be taken for the same.

    Before December 2026 adapters were looked at as bases are. What they wrote under those names is asked for anew.

    Raises: UserError if the files cannot be read.
    """
    if stored.lora:
        folder = Folder(stored.final if stored.ours else stored.folder)
        # Below a folder of `peft` there may be whole states of its training.
        of_peft = "adapter_model*.safetensors"
        names = folder.all_files() if stored.ours else fnmatch.filter(folder.sizes() or (), of_peft)
        return files.fingerprint({name: folder.digest(name) for name in names})
    if not stored.ours:
        return TensorFiles(stored.folder).fingerprint
    return files.fingerprint_of_bytes(read_file(f"{stored.final}/meta", "metadata") or b"")


def _shapes(described: Mapping[str, Any], folder: str | os.PathLike) -> tuple[DecoderConfig, LoraConfig | None]:
    try:
        # Folders of before name two fields that have moved to `Execution`.
        moved = ("remat", "scan_unroll")
        decoder = {name: value for name, value in described["decoder"].items() if name not in moved}
        return DecoderConfig(**decoder), LoraConfig(**described["lora"]) if described["lora"] else None
    except (KeyError, TypeError, AttributeError, UserError):
        raise UserError(f"{folder}/{MODEL_FILE}: not the description of a model; {files.anew(folder)}") from None


def _json(folder: str, name: str) -> dict[str, Any] | None:
    """A file of a folder as a JSON object, or None. Raises: UserError if it is none."""
    text = read_file(folder, name)
    cure = "delete the folder" if name == MODEL_FILE else "fetch the file anew"
    return None if text is None else files.parse_object(text, f"{folder}/{name}", cure)
