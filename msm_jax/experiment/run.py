"""Runs what a configuration asks for, or shows it: an experiment, or corpora without training.

What is done lies in a store of stages, by default the workdir itself, and is done once for all runs that share the
store. The workdir holds what is of one run: its configuration, the data sets that a language model wrote, the report.
"""

import contextlib
import functools
import json
import pathlib
import shutil
import sys
from collections.abc import Callable

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config import checks, schema
from msm_jax.config.settings import KINDS
from msm_jax.errors import UserError
from msm_jax.experiment.build import Experiment
from msm_jax.experiment.corpora import WrittenCorpora, costs
from msm_jax.experiment.evaluated import Evaluated
from msm_jax.stages import estimates, graph, writing
from msm_jax.stages.graph import Kind
from msm_jax.storage import files
from msm_jax.storage.mirror import Place


def build(config: ConfigDict) -> Experiment | WrittenCorpora:
    """The stages of a configuration, by its kind. Raises: UserError if it cannot be run."""
    if config.kind not in KINDS:
        raise UserError(f"config.kind is {config.kind!r}; it is one of {', '.join(KINDS)}, as the file sets it")
    return {"corpora": WrittenCorpora, "evaluation": Evaluated}.get(config.kind, Experiment)(config)


def run(config: ConfigDict, workdir: str, store: str = "", hosts: graph.Hosts = graph.ALONE) -> None:
    """Does all that is not done, and tells where the results are: WORKDIR/datasets and WORKDIR/report.

    Args:
      store: folder of the stages, which other runs may share; "": `workdir`.
      hosts: with several all of them call it; the first prints and writes.

    Raises: UserError, Interrupted.
    """
    work = build(config)
    keys = [stage.key for stage in work.targets]
    if not hosts.agree(f"{files.fingerprint(config_lib.to_dict(config))} {keys}"):
        raise UserError(
            "the processes of this run have different configurations, specs or corpora; start the same command from "
            "the same files on all of them"
        )
    place = Place.open(workdir)
    stages = Place.open(store) if store else place
    for folder in {place.local, stages.local}:
        files.make_folder(folder)
    if any(stage.kind is Kind.TRAIN and not done for stage, done, _ in graph.status(work.targets, stages.local)):
        checks.check_devices(config)
    report = print if hosts.first else lambda line: None
    execute = functools.partial(graph.execute, store=stages.local, report=report, hosts=hosts, mirror=stages.mirror)
    with files.lock_run(place.local, stages.local) if hosts.first else contextlib.nullcontext():
        if hosts.first:
            writing.check_key(config, work.targets, stages.local)
            _note_config(config, place, report)
        if told := work.told:  # before anything is paid for
            report(told)
        if isinstance(work, Experiment) and not work.in_world:
            [(_, there, _)] = graph.status([work.base], stages.local)
            execute([work.base], report=(lambda line: None) if there else report)
            work.check_base(stages.local)
        if work.datasets:  # first, so that they can be looked at while it trains
            manifests = execute([*work.free, *work.datasets.values()])
            if hosts.first:
                writing.hand_over(work.datasets, manifests, stages.local, place)
        if isinstance(work, Experiment):
            if work.datasets and hosts.first:
                print()
            execute([work.report])
            if hosts.first:
                _hand_over_report(work.report.folder(stages.local), place, stages)


def show(config: ConfigDict, workdir: str, store: str = "") -> None:
    """Prints the configuration, the stages and what is done, a decoded batch of each training stage, the work ahead.

    Corpora that are at hand, the tokenizer and packed rows cost seconds and no money: they are made, so that the
    batches shown are those that training will see. Nothing is trained, no service is called, nothing large is fetched.
    """
    work = build(config)
    place = Place.open(store or workdir)
    training = isinstance(work, Experiment)
    if training:
        files.make_folder(place.local)
    batches = work.decoded_batches(place.local, place.mirror) if training else []
    status = graph.status(work.targets if not training else [work.report], place.local)
    schema.show(
        config, KINDS[config.kind]
    )  # only now, for who mistyped a field should not look for it behind a hundred lines
    print("\nstages")
    for stage, done, seconds in status:
        print(f"  {'done' if done else 'to do':6} {stage.kind:9} {stage.key}{f'  {seconds:.1f} s' if done else ''}")
    if training:
        if batches:
            print("\none batch of each kind of training stage; «trained» tokens are marked")
            print(*batches, sep="\n")
        print(f"\n{work.evaluation}\n{work.estimate(place.local)}")
    left = [stage for stage, done, _ in graph.status(work.targets, place.local) if costs(stage) and not done]
    if not left and not training:
        print("\nnothing is to be asked")
    estimates.print_estimates(config, [stage for stage in left if writing.asks_a_model(stage)], place.mirror)


def _note_config(config: ConfigDict, place: Place, report: Callable[[str], None]) -> None:
    """Writes WORKDIR/config.json, and tells how the configuration differs from that of the last run there."""
    path, here = pathlib.Path(place.local, "config.json"), config_lib.to_dict(config)
    try:
        before = config_lib.flatten(json.loads(path.read_bytes()))
    except (OSError, ValueError, AttributeError):
        before = None
    now = config_lib.flatten(here)
    if before is not None and (differing := [name for name in now | before if now.get(name) != before.get(name)]):
        first, more = differing[0], len(differing) - 1
        report(
            f"{place.name}: its last run had another configuration (config.{first} was {before.get(first)} and is "
            f"{now.get(first)}{f'; {more} more fields differ' if more else ''}); what both need is not done again"
        )
    files.write_json(path, here)
    place.send(path)


def _hand_over_report(made: pathlib.Path, place: Place, stages: Place) -> None:
    """Prints the table, and puts the report where users look for it."""
    from msm_jax.eval.report import table

    result = files.read_object(made / "report.json", files.anew(made), scores=list, controls=list, findings=list)
    _copy(made, pathlib.Path(place.local, "report"))
    if stages.local != place.local:  # links to transcripts
        page, there = (
            pathlib.Path(place.local, "report", "report.html"),
            pathlib.Path(stages.local, "stages").absolute(),
        )
        files.write_text(page, page.read_text("utf-8").replace('"../stages/', f'"{there.as_uri()}/'))
    place.send(pathlib.Path(place.local, "report"))
    print(table(result))
    tensorboard = pathlib.Path(sys.executable).with_name("tensorboard")
    print(f"\nreport: {place.name}/report/report.html\ncurves: {tensorboard} --logdir {stages.name}")


def _copy(source: pathlib.Path, folder: pathlib.Path) -> None:
    """The report where users look for it, without figures of an earlier one. `shutil.copytree` would gather errors in
    one of its own kind, and a full disk would not be known."""
    files.make_folder(folder, "delete what is in the way, or choose another --workdir")
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
    for path in folder.glob("*.png"):
        if not (source / path.name).exists():
            path.unlink()
