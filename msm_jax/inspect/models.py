"""Checkpoints that several providers ask: each base is loaded once in a process, with its adapters beside it."""

import dataclasses
import functools
import os
import threading
from typing import Any

import jax

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.sources import is_hub_id
from msm_jax.data.chat import Template
from msm_jax.data.tokenizer import Tokenizer, load_tokenizer
from msm_jax.errors import UserError
from msm_jax.sampler.adapters import check_adapter, for_sampling
from msm_jax.sampler.language_model import load, read_voice
from msm_jax.sampler.sampler import Sampler
from msm_jax.sampler.service import Service
from msm_jax.stages.own_model import name_of
from msm_jax.storage import files


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """A base with at most one adapter over it, opened and not loaded.

    Attributes:
      base: what `load` takes.
      adapter: folder or id; None: the bare base.
      digest: of all that changes answers: weights of both, tokenizer, template, how it thinks, type of the numbers.
      tokenizer, template, name, stops: as in `LanguageModel`.
      shared: the key of the base among those that are loaded.
    """

    base: str
    revision: str | None
    stored: weights.Stored
    adapter: weights.Stored | None
    digest: str
    tokenizer: Tokenizer
    template: Template
    name: str
    stops: tuple[int, ...]
    dtype: str | None
    rows: int
    shared: str


def open_arm(
    path: str, adapter: str | None, *, dtype: str | None, rows: int, chat_template: str, thinking: str | None
) -> Arm:
    """Raises: UserError if there is no such model or adapter, or if it has no tokenizer or no chat template."""
    opened = weights.open_model(path)
    revision = None
    if opened.lora is not None:  # a folder of an adapter names its base, which other arms may share
        if adapter is not None:
            raise UserError(f"{path}: is an adapter itself; name its base with one adapter")
        if opened.base is None:
            raise UserError(f"{path}: an adapter whose base is not told; name it as BASE:{path}")
        path, adapter, revision = opened.base, path, opened.revision if is_hub_id(opened.base) else None
        opened = weights.open_base(path, os.fspath(adapter), revision)
    over = weights.open_adapter(adapter, opened) if adapter else None
    tokenizer, template, name, stops = _texts(opened, over, chat_template, thinking)
    # Ids that do not mean the same are not decoded by one engine.
    base = [name_of(path) if revision is None else [path, revision], tokenizer.fingerprint, dtype, rows]
    told = repr(template), name, stops
    adapted = [weights.fingerprint_of(over), dataclasses.asdict(over.lora)] if over else None
    identity = [base[:3], adapted, told]
    return Arm(
        path, revision, opened, over, files.fingerprint(identity), tokenizer, template, name, stops, dtype, rows,
        files.fingerprint([os.path.abspath(opened.folder), base]),
    )  # fmt: skip


def _texts(
    base: weights.Stored, adapter: weights.Stored | None, chat_template: str, thinking: str | None
) -> tuple[Tokenizer, Template, str, tuple[int, ...]]:
    """Tokenizer, template, who speaks in it, and the ids that end answers, as `load` finds them."""
    what = (adapter or base).folder
    where = (adapter or base).tokenizer
    if where is None:
        raise UserError(f"{what}: no tokenizer lies beside these weights, so it cannot be asked")
    folder = weights.local_tokenizer(where)
    tokenizer = load_tokenizer(folder, base.decoder.vocab_size)
    voice = read_voice(base, adapter, folder, tokenizer, chat_template, thinking)
    if voice.template is None:
        raise UserError(f"{what}: has no chat template, so it cannot be asked; give -M chat_template=")
    return tokenizer, *voice


class Shared:
    """One base on the devices, and the adapters of all arms that ask it."""

    def __init__(self, arm: Arm):
        self._first = arm
        self._lock = threading.Lock()
        self._wanted: dict[str, weights.Stored] = {}  # by the arm's digest
        self._adapters: dict[str, Any] = {}
        self._serving: tuple[Service, tuple[str, ...]] | None = None  # with the adapters of its engine, in order
        self.users: set[object] = set()

    def want(self, arm: Arm) -> None:
        """The adapters that are known when the first is asked are loaded with the base."""
        if arm.adapter is not None:
            self._wanted.setdefault(arm.digest, arm.adapter)

    def ready(self, arm: Arm) -> tuple[Service, int] | None:
        """The service and the adapter's place in its engine, if nothing needs to be loaded first."""
        if self._serving is None:
            return None
        service, digests = self._serving
        if arm.adapter is None:
            return service, 0
        return (service, 1 + digests.index(arm.digest)) if arm.digest in digests else None

    def load(self, arm: Arm) -> tuple[Service, int]:
        """As `ready`, after loading; takes long, and may be called by several threads. Raises: UserError."""
        with self._lock:
            self.want(arm)
            if found := self.ready(arm):
                return found
            model, params, mesh = self._base
            for digest, stored in self._wanted.items():
                if digest not in self._adapters:
                    lora = stored.lora, weights.load(stored, mesh)
                    check_adapter(*lora, model, stored.folder)
                    self._adapters[digest] = lora
            first = self._first
            sampler = Sampler(
                model, params, None, first.tokenizer, "inspect", special=True, stop_ids=first.stops,
                adapters=list(self._adapters.values()), rows=first.rows,
            )  # fmt: skip
            before, service = self._serving, Service(sampler.engine, first.tokenizer)
            self._serving = service, tuple(self._adapters)
            if before is not None:  # an adapter that came late: who still asks the engine without it is answered
                threading.Thread(target=functools.partial(before[0].close, drain=True), daemon=True).start()
            return service, 1 + list(self._adapters).index(arm.digest) if arm.adapter is not None else 0

    def close(self) -> None:
        with self._lock:
            if self._serving is not None:
                self._serving[0].close()
            self._serving = None
            self._adapters.clear()
            vars(self).pop("_base", None)

    @functools.cached_property
    def _base(self) -> tuple[Any, Any, Any]:
        """The bare base as an engine takes it: another engine of it, for more adapters, then copies nothing."""
        first = self._first
        loaded = load(first.base, revision=first.revision, dtype=first.dtype, rows=first.rows)
        mesh = jax.tree.leaves(loaded.params)[0].sharding.mesh
        model, params, _ = for_sampling(loaded.model, loaded.params, [])
        return model, params, mesh


_shared: dict[str, Shared] = {}
_lock = threading.Lock()


def acquire(arm: Arm, user: object) -> Shared:
    """The base of `arm` until `user` releases it."""
    with _lock:
        shared = _shared.setdefault(arm.shared, Shared(arm))
        shared.users.add(user)
        shared.want(arm)
        return shared


def release(arm: Arm, user: object) -> None:
    """The last one who leaves closes it: what is being drawn is cancelled, and its memory is free."""
    with _lock:
        shared = _shared.get(arm.shared)
        if shared is None or user not in shared.users:
            return
        shared.users.discard(user)
        if shared.users:
            return
        del _shared[arm.shared]
    shared.close()


def is_folder(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))
