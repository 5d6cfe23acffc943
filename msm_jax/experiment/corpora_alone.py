"""Corpora alone, without training (configs/corpus.py): what is written, and what it will cost."""

import pathlib

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config import checks
from msm_jax.corpus.specs import read_spec
from msm_jax.stages import generation, graph, writing
from msm_jax.stages.graph import Stage
from msm_jax.storage import files
from msm_jax.storage.mirror import open_workdir


def is_alone(config: ConfigDict) -> bool:
    """Whether this configuration writes corpora and trains nothing."""
    return "calls" in config and "msm" not in config


def run(config: ConfigDict, workdir: str) -> None:
    """Writes all that is not written, and prints what came of it."""
    datasets = _datasets(config)
    place = workdir
    workdir, mirror = open_workdir(workdir)
    files.make_folder(workdir)
    writing.check_key(config, list(datasets.values()), workdir)
    graph.claim_workdir(workdir, config_lib.to_dict(config), exempt=("calls", "corpus"), place=place)
    if mirror:
        mirror.send(pathlib.Path(workdir, "config.json"))
    manifests = graph.execute(list(datasets.values()), workdir, mirror=mirror)
    writing.hand_over(datasets, manifests, workdir, place, mirror)


def show(config: ConfigDict, workdir: str) -> None:
    """Prints the configuration, what is done, and what the rest will take: requests, tokens, dollars. Calls nothing."""
    targets = list(_datasets(config).values())
    workdir, mirror = open_workdir(workdir)
    status = graph.status(targets, workdir)
    config_lib.show(config)
    print("\nstages")
    left = []
    for stage, done, seconds in status:
        print(f"  {'done' if done else 'to do':6} {stage.kind:9} {stage.key}{f'  {seconds:.1f} s' if done else ''}")
        if writing.is_written(stage) and not done:
            left.append(stage)
    if not left:
        print("\nnothing is to be asked")
    writing.print_estimates(config, left, mirror)


def _datasets(config: ConfigDict) -> dict[str, Stage]:
    """Label -> the stage that hands it on: documents and chats of each spec, and chats on identity."""
    if "arms" in config:  # an experiment, but for this
        raise config_lib.lacking("msm")
    generation.check(config)
    generation.check_counts(config)
    specs = [read_spec(path) for path in config.specs]
    checks.check_names_of_specs(config, specs)
    found: dict[str, Stage] = {}
    before: dict[str, Stage] = {}
    if config.corpus.identity:
        written = writing.identity_stage(config, config.corpus.identity)
        before["identity"] = writing.rendered_stage(written, "identity")
        found["identity"] = writing.dataset_stage(before["identity"], written, "identity")
    for spec in specs:
        documents = writing.documents_stage(config, spec, config.corpus.msm) if config.corpus.msm else None
        if documents:
            found[f"{spec.name}-msm"] = writing.dataset_of_documents(config, documents, f"{spec.name}-msm")
        if config.corpus.aft:
            inputs = before | ({"documents": documents} if documents else {})
            written = writing.chats_stage(config, spec, config.corpus.aft, inputs, [spec])
            found |= writing.datasets_of_chats(written, spec.name)
    return found
