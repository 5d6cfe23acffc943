"""Checkpoints: Orbax behind one small file.

`Checkpoints` keeps the newest few states of a run; `save_params` and `load_params` hand final weights to the next
stage. The frozen base of a LoRA run is not saved: it is an input of the run, not a result.

A checkpoint is a folder `STEP/` with `state/` (the arrays) and `meta/` (JSON: identity and config of the run, state of
the data, one checksum per array). Orbax writes it under a temporary name and renames it when it is complete, so a
killed save leaves no `STEP/` at all. What later happens to the files is found at restore: the arrays' checksums are
computed on the devices, before saving and after restoring, and `meta` holds a digest of itself. So any single changed
array element is detected for certain, any other damage to array bytes with probability 1 - 2**-32 per array, and
missing or truncated files as errors of the reader. Not detected: damage to bytes that the reader does not use
(padding, redundant metadata).
"""

import contextlib
import functools
import gc
import logging
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from msm_jax.errors import UserError
from msm_jax.storage.files import fingerprint
from msm_jax.storage.folders import is_url

_log = logging.getLogger(__name__)
_MOST_BLOCKS = 64  # that a checksum is summed in


@functools.cache
def _quiet_aborted_transfers() -> None:
    """At the first array that it cannot read or write, Orbax (0.12.8) closes its event loop under the transfers of the
    others, and has no option against it. Each of those then prints a traceback, from a thread of TensorStore or when it
    is collected, at any later moment: a full disk prints hundreds of lines. What went wrong is raised and said once."""
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        if str(unraisable.exc_value) != "Event loop is closed" and not (code and _is_orbax(code.co_filename)):
            show(unraisable)

    def from_elsewhere(record: logging.LogRecord) -> bool:
        frames = record.exc_info and traceback.extract_tb(record.exc_info[2])
        # Those of TensorStore have none.
        return not record.exc_info or bool(frames) and not any(_is_orbax(frame.filename) for frame in frames)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(from_elsewhere)
    # Orbax logs an error, with its traceback, in every thread that it passes.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _is_orbax(filename: str) -> bool:
    return "/orbax/" in pathlib.Path(filename).as_posix()


class _Manager(ocp.CheckpointManager):
    """Leaves the question whether SIGTERM came to others: JAX takes each question for the number of the host's last
    one, so those of Orbax, which asks at every save, would undo the count of `parallel.hosts.stop_requested`."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The newest `keep` checkpoints of a run, in a folder that all hosts share, local or a URL. Every host calls every
    method, at the same step. `identity` is a hash of all that determines the run; `config` is its parameters and
    inputs as JSON, which each checkpoint tells to who finds it."""

    def __init__(self, folder: str | os.PathLike, identity: str, keep: int, config: Mapping[str, Any] | None = None):
        _quiet_aborted_transfers()
        self._folder = _place(folder)
        self._identity = identity
        self._config = config
        self._manager = _Manager(
            self._folder,
            item_names=("state", "meta"),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, also of one whose save is under way."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Copies `state`, a pytree of arrays, to the host, so that it may be donated, then writes it in the background;
        first waits for a save still under way. `data` is JSON that restores the input pipeline."""
        meta = {"identity": self._identity, "config": self._config, "data": data, "arrays": _describe(state)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(_sealed(meta)))
        self._manager.save(step, args=arguments)

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Newest good checkpoint as `(step, state, data)`, or None. Raises: UserError if it belongs to another run.

        `like` gives structure, shapes, dtypes and shardings (arrays or ShapeDtypeStructs); the sharding may differ from
        the saved one, so another number of devices is fine. A damaged checkpoint is renamed to `damaged-STEP`, with a
        warning, and the one before it is tried.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            damage = None
            for _ in range(2):  # a shared file system may fail once, and a good checkpoint be lost for it
                try:
                    state, meta = self._read(step, like)
                    return step, state, meta["data"]
                except _Damaged as found:
                    damage = found
            _log.warning("checkpoint %s is damaged (%s); trying the one before", self._folder / str(step), damage)
            self._set_aside(step)
        return None

    def wait(self) -> None:
        """Until the last save is on disk. Raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        with _damage_on_any_host():
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            _check_seal(meta)
        if meta["identity"] != self._identity:
            raise UserError(
                f"{self._folder / str(step)}: belongs to another run (identity {meta['identity']}, this run is "
                f"{self._identity}); choose another folder, or delete this one to start afresh"
            )
        with _damage_on_any_host():
            target = ocp.args.StandardRestore(_abstract(like))
            state = self._manager.restore(step, args=ocp.args.Composite(state=target)).state
            _check_arrays(state, meta["arrays"])
        return state, meta

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self._folder / f"damaged-{step}"
            remove(aside)
            (self._folder / str(step)).rename(aside)
        multihost_utils.sync_global_devices(f"set checkpoint {step} aside")
        self._manager.reload()


def _place(folder: str | os.PathLike) -> epath.Path:
    """A folder as Orbax takes it: absolute, or a URL."""
    return epath.Path(folder if is_url(os.fspath(folder)) else os.path.abspath(folder))


def exists(folder: str | os.PathLike) -> bool:
    """Whether the weights are there, and whole. On a disk Orbax makes their folder appear at once; in an object store,
    where nothing can be renamed, it writes a mark when all is there."""
    place = _place(folder)
    return place.exists() and ocp.utils.is_checkpoint_finalized(place)


def remove(folder: str | os.PathLike) -> None:
    """Removes a folder of checkpoints, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        _place(folder).rmtree()


def save_params(folder: str | os.PathLike, params: Any) -> None:
    """Writes `params` (pytree of arrays), replacing what is in `folder`; returns when all is on disk.

    On the way the host holds the shards of its devices once, and no more.
    """
    meta = ocp.args.JsonSave(_sealed({"arrays": _describe(params)}))
    # One chunk per shard, however large, which is not compressed: then it is written from where it lies. A file that is
    # cut at some size cuts chunks too, and these are copied, all at once.
    arrays = ocp.args.PyTreeSave(params, ocdbt_target_data_file_size=0)
    with _params_checkpointer() as checkpointer:
        checkpointer.save(_place(folder), args=ocp.args.Composite(params=arrays, meta=meta), force=True)


def load_params(folder: str | os.PathLike, like: Any, keep_dtypes: bool = False) -> Any:
    """The arrays that `save_params` wrote, placed as `like` says (arrays or ShapeDtypeStructs with shardings).

    They are read in the dtypes in which they were saved, checked, and then, without `keep_dtypes`, cast to those of
    `like`.

    Raises: UserError if no weights are there, those of another model, or damaged ones.
    """
    saved, read = open_params(folder, like)
    params = read(saved)
    return params if keep_dtypes else jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), params, like)


def open_params(folder: str | os.PathLike, like: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`like` with the dtypes of the arrays that `save_params` wrote, and what reads any part of that tree: so they need
    never be in memory as a whole. While an array is read, it is there twice.

    Raises: UserError as `load_params` does, for damaged files also while a part is read.
    """
    folder = _place(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of weights")
    with _read(folder) as checkpointer:
        meta = checkpointer.restore(folder, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        _check_seal(meta)
    saved = meta["arrays"]
    _check_fit(folder, saved, like)

    def read(part: Any) -> Any:
        placed = ocp.checkpoint_utils.construct_restore_args(part)
        target = ocp.args.PyTreeRestore(part, restore_args=placed, partial_restore=True)
        with _read(folder) as checkpointer:
            params = checkpointer.restore(folder, args=ocp.args.Composite(params=target)).params
            _check_arrays(params, saved)
        return params

    dtypes = jax.tree.unflatten(jax.tree.structure(like), [saved[name]["dtype"] for name in _named(like)])
    return jax.tree.map(lambda leaf, dtype: leaf.update(dtype=jnp.dtype(dtype)), _abstract(like), dtypes), read


class _Damaged(Exception):
    """What is read back is not as it was saved."""


@contextlib.contextmanager
def _damage_on_any_host() -> Iterator[None]:
    """Turns what goes wrong in the body, on any host, into `_Damaged` on all: they must agree on what to restore."""
    problem = ""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # out of device memory: nothing is wrong with the files
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if problem:
        with warnings.catch_warnings(action="ignore"):  # of the coroutines that nobody awaits any more
            gc.collect()
    if multihost_utils.process_allgather(np.array(bool(problem))).any():
        raise _Damaged(problem or "found by another host")


@contextlib.contextmanager
def _read(folder: epath.Path) -> Iterator[ocp.Checkpointer]:
    """Tells of damage that is found in the body."""
    try:
        with _params_checkpointer() as checkpointer, _damage_on_any_host():
            yield checkpointer
    except _Damaged as damage:
        raise UserError(f"{folder}: the weights are damaged ({damage})") from None


def _params_checkpointer() -> ocp.Checkpointer:
    _quiet_aborted_transfers()
    arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(params=arrays, meta=ocp.JsonCheckpointHandler()))


def _abstract(like: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(tree: Any) -> dict[str, dict[str, Any]]:
    """For each array: shape, dtype and checksum, by its path in the tree."""
    # One at a time: on CPUs of several hosts, programs that are begun at once wait for each other for ever.
    return {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "checksum": int(_checksum(leaf, *_blocks(leaf)))}
        for name, leaf in _named(tree).items()
    }


def _blocks(leaf: jax.Array) -> tuple[int, int]:
    """An axis that is not split over devices, and how many blocks to cut it into; one if all axes are split."""
    for axis, (size, of_shard) in enumerate(zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape), strict=True)):
        if size == of_shard > 1:
            return axis, max(count for count in range(1, _MOST_BLOCKS + 1) if size % count == 0)
    return 0, 1


@functools.partial(jax.jit, static_argnums=(1, 2))
def _checksum(leaf: jax.Array, axis: int, count: int) -> jax.Array:
    """uint32[]: sum over elements of bits * (2 * position + 1), modulo 2**32.

    Integer addition gives the same sum in any order, so the sum depends neither on sharding nor on device count; an odd
    factor is invertible modulo 2**32, so one changed element always changes it.

    Summed in `count` blocks along `axis`: on a CPU, XLA writes all terms of a sum to memory before it adds the first.
    """
    leaf = leaf.reshape(leaf.shape or 1)
    step = leaf.shape[axis] // count

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        # The barrier: what does not depend on the block, a copy as integers, is made before the loop otherwise.
        whole, block = jax.lax.optimization_barrier((leaf, block))
        bits = whole.view(f"uint{8 * leaf.dtype.itemsize}")
        bits = jax.lax.dynamic_slice_in_dim(bits, block * step, step, axis).astype(jnp.uint32)
        position = jnp.uint32(0)
        for i, size in enumerate(leaf.shape):
            index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, i)
            index += jnp.uint32(block * step if i == axis else 0)
            position = position * jnp.uint32(size) + index
        return total + jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)

    return jax.lax.fori_loop(0, count, add, jnp.uint32(0))


def _check_arrays(tree: Any, saved: dict[str, dict[str, Any]]) -> None:
    if wrong := [name for name, found in _describe(tree).items() if found != saved[name]]:
        raise ValueError(f"checksum of {wrong[0]} differs")


def _check_fit(folder: epath.Path, saved: dict[str, dict[str, Any]], like: Any) -> None:
    wanted = {name: list(leaf.shape) for name, leaf in _named(like).items()}
    found = {name: entry["shape"] for name, entry in saved.items()}
    for name in sorted(wanted.keys() | found.keys()):
        there, asked = found.get(name, "missing"), wanted.get(name, "missing")
        if there != asked:
            raise UserError(
                f"{folder}: weights of another model: {name} is {there} in the folder and {asked} in the config"
            )


def _sealed(meta: dict[str, Any]) -> dict[str, Any]:
    return meta | {"seal": fingerprint(meta)}


def _check_seal(meta: dict[str, Any]) -> None:
    if meta != _sealed({key: value for key, value in meta.items() if key != "seal"}):
        raise ValueError("the digest of meta differs")
