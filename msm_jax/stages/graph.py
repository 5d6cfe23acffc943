"""An experiment as a DAG of stages, each of which writes one folder, once.

`STORE/stages/NAME-HASH/manifest.json` is written last and atomically, and marks the stage as done. HASH covers all that
determines the output, so what is done is never done again, and arms and experiments that share a stage share its
folder. A store is a workdir, or a folder that several runs share: one process at a time makes a stage, and others wait
for it.
"""

import collections
import contextlib
import dataclasses
import datetime
import enum
import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msm_jax
from msm_jax.errors import Interrupted, UserError
from msm_jax.storage import files
from msm_jax.storage.mirror import Mirror


class Kind(enum.StrEnum):
    """What a stage makes."""

    BASE = "base"  # a checkpoint that exists
    ADAPTER = "adapter"  # an adapter that exists
    CORPUS = "corpus"  # documents, and what else is text: a tokenizer, the items of an evaluation
    CHATS = "chats"
    WRITTEN = "written"  # chats as a language model wrote them, with their reasoning
    JUDGED = "judged"  # documents held against their spec
    DATASET = "dataset"  # what was written, in the forms in which it is handed on
    ROWS = "mixture"  # one source, tokenised and packed
    TRAIN = "train"
    SAMPLE = "sample"
    SCORE = "score"
    VERDICTS = "verdicts"  # answers as a judge grades them
    REPORT = "report"

    @property
    def on_all_hosts(self) -> bool:
        """Whether it computes on all devices; other stages run on the first host alone."""
        return self in (Kind.ADAPTER, Kind.TRAIN, Kind.SAMPLE, Kind.SCORE)


# Raised when a change of code changes what stages of a kind write: they are done again. Stages of corpora that a
# language model writes (`writing`), or that are taken as they are, have versions of their own.
VERSIONS = {
    Kind.BASE: 1, Kind.ADAPTER: 1, Kind.CORPUS: 3, Kind.CHATS: 2, Kind.ROWS: 2, Kind.TRAIN: 1, Kind.SAMPLE: 1,
    Kind.SCORE: 5, Kind.VERDICTS: 2, Kind.REPORT: 10,
}  # fmt: skip
TAKEN_VERSION = 4


@dataclasses.dataclass(frozen=True)
class StageContext:
    """What `run` sees: `folder` exists, and after an interruption it holds what the earlier run left.

    Attributes:
        inputs: role -> the folder of the stage that plays it, or name -> folder where several do.
        arrays: folder or URL of the stage's checkpoints and weights, which all hosts share; None: `folder`.
        send: keeps what is in `folder` so far where the workdir is, if that is elsewhere.
        mirror: of the workdir, if that is elsewhere.
    """

    folder: pathlib.Path
    inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    stage: "Stage"
    arrays: str | None = None
    send: Callable[[], None] = lambda: None
    mirror: Mirror | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One step of an experiment.

    Attributes:
        name: names the folder, and nothing else: letters, digits, ".", "_" and "-".
        params: JSON that holds all that determines the output, but the inputs.
        inputs: role -> the stage that plays it, or name -> stage where several do.
        run: writes into `context.folder`, resuming what it finds there; returns a JSON summary for the manifest.
        version: raised by whoever changes the code of `run` such that the output changes.
        source: of a corpus or its rows: msm, aft, instruction, ...
        section: of a training stage, that of the configuration which it is trained by: pretrain, msm or aft.
        arm, seed: which it was made for; others may share it.
        evaluation: of a score, the name of what is measured.
    """

    kind: Kind
    name: str
    params: Mapping[str, Any]
    inputs: "Inputs"
    run: Callable[[StageContext], Mapping[str, Any]]
    version: int = 1
    _: dataclasses.KW_ONLY
    source: str = ""
    section: str = ""
    arm: str = ""
    seed: int | None = None
    evaluation: str = ""

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"stage name {self.name!r} cannot name a folder")

    @functools.cached_property
    def hash(self) -> str:
        inputs = {role: stage.hash for role, stage in self.all_inputs.items()}
        return files.fingerprint({"kind": self.kind, "version": self.version, "params": self.params, "inputs": inputs})

    @property
    def key(self) -> str:
        return f"{self.name}-{self.hash}"

    @property
    def all_inputs(self) -> dict[str, "Stage"]:
        """All inputs, `flat`."""
        return flat(self.inputs)

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest says of it beside its parameters."""
        fields = ("source", "section", "arm", "seed", "evaluation")
        return {name: value for name in fields if (value := getattr(self, name)) not in ("", None)}

    def folder(self, store: str | os.PathLike) -> pathlib.Path:
        return pathlib.Path(store, "stages", self.key)

    def folders(self, store: str | os.PathLike) -> dict[str, Any]:
        """Those of its inputs, as `StageContext.inputs` has them."""

        def folders(played_by: "Stage | Mapping[str, Stage]") -> Any:
            if isinstance(played_by, Stage):
                return played_by.folder(store)
            return {name: stage.folder(store) for name, stage in played_by.items()}

        return {role: folders(played_by) for role, played_by in self.inputs.items()}


def flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What plays each role; of a role that several play, by "ROLE:NAME"."""
    found = {}
    for role, played_by in inputs.items():
        several = isinstance(played_by, Mapping)
        found |= {f"{role}:{name}": one for name, one in played_by.items()} if several else {role: played_by}
    return found


Inputs = Mapping[str, Stage | Mapping[str, Stage]]


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that run an experiment together, over one workdir that all of them see, or copies of one.

    Attributes:
        index: which this is; the first writes what is written once.
        count: how many there are.
        meet: returns when all have called it with the same name.
        stop_requested: whether SIGTERM came to one of them; they ask equally often, and get the same answer.
        agree: whether all have called it with the same text.
        of_first: the number that the first has called it with.
    """

    index: int = 0
    count: int = 1
    meet: Callable[[str], None] = lambda name: None
    stop_requested: Callable[[], bool] = lambda: False
    agree: Callable[[str], bool] = lambda text: True
    of_first: Callable[[float], float] = lambda value: value

    @property
    def first(self) -> bool:
        return self.index == 0


ALONE = Hosts()


def execute(
    targets: Sequence[Stage],
    store: str | os.PathLike,
    report: Callable[[str], None] = print,
    hosts: Hosts = ALONE,
    mirror: Mirror | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs all that `targets` need and is not done, inputs first; `report` takes one line per stage that runs.

    With a `mirror`, `store` is its local copy.

    Returns: key -> manifest, for every stage that `targets` need.
    Raises: UserError if the disk is full, or a stage says so; Interrupted if one of several hosts is to stop;
        ValueError if stages have a cycle.
    """
    stages = _sorted(targets)
    manifests = {stage.key: manifest for stage in stages if (manifest := _made(stage, store, hosts, mirror))}
    if manifests:
        report(f"{len(manifests)} of {len(stages)} stages are done already")
    start = time.monotonic()
    for index, stage in enumerate(stages):
        if stage.key in manifests:
            continue
        if hosts.stop_requested():
            raise Interrupted(f"SIGTERM; {len(manifests)} of {len(stages)} stages are done")
        place = f"[{index + 1}/{len(stages)}] {stage.name}"
        waits = functools.partial(report, f"{place}: another process makes it; waiting for its end")
        with files.lock_stage(store, stage.key, waits) if hosts.first else contextlib.nullcontext():
            hosts.meet(f"{stage.key} is free")
            manifest = _made(stage, store, hosts, mirror)  # another process may have done it
            if manifest is None:
                report(f"{place} ...{_progress(start, stages, manifests)}")
                run = functools.partial(_run_together, hosts=hosts) if hosts.count > 1 else _run
                manifest = run(stage, store, mirror=mirror)
            manifests[stage.key] = manifest
    return manifests


def _made(stage: Stage, store: str | os.PathLike, hosts: Hosts, mirror: Mirror | None) -> dict[str, Any] | None:
    """The manifest of a stage if it is done, which the first of several hosts decides for all."""
    if hosts.first:
        manifest = _manifest(stage, store)
        return manifest if hosts.of_first(manifest is not None) else None
    return _seen(stage, store, mirror) if hosts.of_first(0.0) else None


def _seen(stage: Stage, store: str | os.PathLike, mirror: Mirror | None) -> dict[str, Any]:
    """The manifest of a stage that the first host has done. Raises: UserError if it is not to be seen here."""
    manifest = _manifest(stage, store)
    if manifest is None and mirror:
        mirror.fetch(stage.folder(store))
        manifest = _manifest(stage, store)
    if manifest is None:
        raise UserError(
            f"{stage.folder(store)}: not done, or not seen from this host; the first host's messages say what is "
            "wrong, and --workdir, or --store if it is given, must be one folder for all hosts"
        )
    return manifest


def _run_together(stage: Stage, store: str | os.PathLike, hosts: Hosts, mirror: Mirror | None) -> dict[str, Any]:
    """Runs a stage on the hosts that it needs; all return when its manifest is written.

    A host that fails in a stage of all hosts ends at once, and the others learn it from the runtime.
    """
    try:
        if hosts.first:
            _run(stage, store, mirror)
        elif stage.kind.on_all_hosts:
            _call(stage, store, mirror, sends=False)
    finally:
        if not stage.kind.on_all_hosts:
            hosts.meet(f"{stage.key} is over")
    if stage.kind.on_all_hosts:
        hosts.meet(f"{stage.key} is over")
    return _seen(stage, store, mirror)


def status(targets: Sequence[Stage], store: str | os.PathLike) -> list[tuple[Stage, bool, float | None]]:
    """(stage, done, seconds that it took) in the order of execution; reads only."""
    manifests = [(stage, _manifest(stage, store)) for stage in _sorted(targets)]
    return [(stage, manifest is not None, manifest and manifest["seconds"]) for stage, manifest in manifests]


def _sorted(targets: Sequence[Stage]) -> list[Stage]:
    """Inputs before the stages that need them, each key once."""
    ordered: dict[Stage, None] = {}

    def visit(stage: Stage, path: tuple[Stage, ...]) -> None:
        if stage in path:
            raise ValueError(f"cycle of stages: {' -> '.join(s.name for s in (*path, stage))}")
        if stage not in ordered:
            for source in stage.all_inputs.values():
                visit(source, (*path, stage))
            ordered[stage] = None

    for target in targets:
        visit(target, ())
    return list({stage.key: stage for stage in ordered}.values())


def _manifest(stage: Stage, store: str | os.PathLike) -> dict[str, Any] | None:
    folder = stage.folder(store)
    manifest = read_manifest(folder) if (folder / "manifest.json").exists() else None
    return manifest if manifest and manifest["key"] == stage.key else None


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a stage that is done. Raises: UserError if there is none that `execute` wrote."""
    path, cure = folder / "manifest.json", "delete it, and the same command does what is left of this stage"
    fields = {"key": str, "kind": str, "params": dict, "summary": dict, "seconds": float}
    manifest = files.read_object(path, cure, **fields)
    return manifest | {"summary": _Summary(manifest["summary"], path, cure)}


class _Summary(dict):
    """Of a manifest that was read: a field that it lacks is told like any other fault of the file."""

    def __init__(self, fields: Mapping[str, Any], path: pathlib.Path, cure: str):
        super().__init__(fields)
        self._path, self._cure = path, cure

    def __missing__(self, field: str) -> Any:
        raise UserError(f"{self._path}: its summary has no {field}; {self._cure}")


def _call(stage: Stage, store: str | os.PathLike, mirror: Mirror | None, sends: bool = True) -> Mapping[str, Any]:
    folder = stage.folder(store)
    files.make_folder(folder, "delete what is in the way, or choose another --workdir")
    context = StageContext(folder, stage.folders(store), stage.params, stage)
    if mirror:
        send = functools.partial(mirror.send, folder) if sends else context.send
        context = dataclasses.replace(context, arrays=mirror.arrays(folder), send=send, mirror=mirror)
    return stage.run(context)


def _run(stage: Stage, store: str | os.PathLike, mirror: Mirror | None = None) -> dict[str, Any]:
    folder = stage.folder(store)
    start = time.monotonic()
    try:
        summary = _call(stage, store, mirror)
        manifest = {
            "key": stage.key,
            "kind": stage.kind,
            "name": stage.name,
            "params": stage.params,
            "inputs": {role: source.key for role, source in stage.all_inputs.items()},
            "about": stage.about,
            "summary": summary,
            "seconds": round(time.monotonic() - start, 3),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {
                "python": platform.python_version(),
                "jax": importlib.metadata.version("jax"),
                "msm_jax": msm_jax.__version__,
            },
        }
        if mirror:
            mirror.finish(folder, manifest)
        else:
            files.write_json(folder / "manifest.json", manifest)
    except Exception as error:
        if problem := files.disk_problem(error):
            what, cure = problem
            raise UserError(
                f"{what} while writing {folder}: {cure} and run the same command again; finished stages are kept"
            ) from error
        path = files.missing_file(error)
        for folder in (source.folder(store) for source in stage.all_inputs.values()):
            if path and pathlib.Path(path).absolute().is_relative_to(folder.absolute()):
                raise UserError(f"{path}: is gone, though its stage is done; {files.anew(folder)}") from error
            # What reads files of users as well does not know that a stage wrote this one.
            if isinstance(error, UserError) and str(error).startswith(f"{folder}/") and "delete" not in str(error):
                raise UserError(f"{error}; or {files.anew(folder)}") from error
        raise
    return manifest


def _progress(start: float, stages: Sequence[Stage], manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Time since `start`, and what is left at the pace of the done stages of each kind."""
    if not manifests:
        return ""
    seconds, work = collections.Counter(), collections.Counter()
    for manifest in manifests.values():
        seconds[manifest["kind"]] += manifest["seconds"]
        work[manifest["kind"]] += _work(manifest["params"])
    typical = statistics.median(manifest["seconds"] for manifest in manifests.values())
    left = 0.0
    for stage in stages:
        if stage.key not in manifests:
            known = work[stage.kind]
            left += seconds[stage.kind] / known * _work(stage.params) if known else typical
    elapsed, left = (datetime.timedelta(seconds=round(value)) for value in (time.monotonic() - start, left))
    return f" {elapsed} elapsed, about {left} left"


def _work(params: Mapping[str, Any]) -> int:
    """How much a stage has to do, relative to others of its kind: training stages differ by their rows."""
    return (params.get("steps") or 1) * params.get("batch_size", 1)
