"""Corpora alone, without training (configs/corpus.py): what is written, and what it will cost."""

import pathlib
import shutil

from ml_collections import ConfigDict

from msm_jax import checks, corpus_stages, dag, files, generation
from msm_jax import config as config_lib
from msm_jax.corpus.specs import Spec, read_spec
from msm_jax.dag import Stage
from msm_jax.mirror import open_workdir


def is_alone(config: ConfigDict) -> bool:
    """Whether this configuration writes corpora and trains nothing."""
    return "calls" in config and "msm" not in config


def run(config: ConfigDict, workdir: str) -> None:
    """Writes all that is not written, and prints what came of it."""
    datasets = _datasets(config)
    place = workdir
    workdir, mirror = open_workdir(workdir)
    files.make_folder(workdir)
    dag.claim_workdir(workdir, config_lib.to_dict(config), exempt=("calls", "corpus"), place=place)
    if mirror:
        mirror.send(pathlib.Path(workdir, "config.json"))
    manifests = dag.execute(list(datasets.values()), workdir, mirror=mirror)
    for label, stage in datasets.items():
        summary = manifests[stage.key]["summary"]
        written = stage.inputs["written"]
        what = "documents" if written.params["writer"] == "documents" else "chats"
        print(f"\n{label}: {summary['documents']:,} {what}, {summary['words']:,} words")
        if missing := summary["asked"] - summary["documents"]:
            print(f"  {missing:,} fewer than were asked for: no more came, or too many came to nothing")
        for step, outcomes in summary["yields"].items():
            print(f"  {step:15} {', '.join(f'{count:,} {outcome}' for outcome, count in outcomes.items())}")
        print(f"  paid for        ${sum(about['dollars'] for about in summary['calls'].values()):.2f}")
        folder = pathlib.Path(workdir, "datasets", label)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stage.folder(workdir), folder, ignore=shutil.ignore_patterns("manifest.json"))
        if mirror:
            mirror.send(folder)
        print(f"  {place.rstrip('/')}/datasets/{label}: {what}.jsonl, corpus.html and others (README.md says which)")


def show(config: ConfigDict, workdir: str) -> None:
    """Prints the configuration, what is done, and what the rest will take: requests, tokens, dollars. Calls nothing."""
    targets = list(_datasets(config).values())
    print("configuration")
    for field, value in config_lib.flatten(config_lib.to_dict(config)).items():
        print(f"  {field} = {value!r}")
    workdir, _ = open_workdir(workdir)
    print("\nstages")
    left = []
    for stage, done, seconds in dag.status(targets, workdir):
        print(f"  {'done' if done else 'to do':6} {stage.kind:9} {stage.key}{f'  {seconds:.1f} s' if done else ''}")
        if corpus_stages.is_written(stage) and not done:
            left.append(stage)
    if not left:
        print("\nnothing is to be asked")
    corpus_stages.print_estimates(config, left)


def _datasets(config: ConfigDict) -> dict[str, Stage]:
    """Label -> the stage that hands it on: documents and chats of each spec, and chats on identity."""
    generation.check(config)
    generation.check_counts(config)
    specs = [read_spec(path) for path in config.specs]
    checks.check_names_of_specs(config, specs)
    found: dict[str, Stage] = {}
    before: dict[str, Stage] = {}
    if config.corpus.identity:
        written = corpus_stages.identity_stage(config, config.corpus.identity)
        before["identity"] = corpus_stages.rendered_stage(written, "identity")
        found["identity"] = corpus_stages.dataset_stage(before["identity"], written, "identity")
    for spec in specs:
        documents = corpus_stages.documents_stage(config, spec, config.corpus.msm) if config.corpus.msm else None
        if documents:
            found[f"{spec.name}-msm"] = corpus_stages.dataset_stage(documents, documents, f"{spec.name}-msm")
        if config.corpus.aft:
            found |= _chats(config, spec, before | ({"documents": documents} if documents else {}))
    return found


def _chats(config: ConfigDict, spec: Spec, inputs: dict[str, Stage]) -> dict[str, Stage]:
    written = corpus_stages.chats_stage(config, spec, config.corpus.aft, inputs)
    found = {}
    for source in ("aft", "aft_cot") if corpus_stages.has_reasoning(written) else ("aft",):
        label = f"{spec.name}-{source}"
        rows = corpus_stages.rendered_stage(written, source, reasoning=source == "aft_cot")
        found[label] = corpus_stages.dataset_stage(rows, written, label)
    return found
