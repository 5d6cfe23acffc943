"""Corpora that a language model writes: as stages of an experiment, and alone (configs/corpus.py).

What determines a corpus is in the stages' parameters: the spec, the assistant, the prompts, the model that writes. How
the calls are made (`config.calls`) is not.
"""

import asyncio
import contextlib
import dataclasses
import functools
import pathlib
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from msm_jax import checks, dag, files
from msm_jax import config as config_lib
from msm_jax.corpus import dataset, estimate, records
from msm_jax.corpus.documents import Assistant, DocumentSettings, DocumentWriter
from msm_jax.corpus.generators.batch import BatchCaller
from msm_jax.corpus.generators.caller import Caller, Limits
from msm_jax.corpus.generators.offline import MODEL as OFFLINE_MODEL
from msm_jax.corpus.generators.openai import PREFIX as LOCAL_PREFIX
from msm_jax.corpus.generators.prices import FREE, SERVICES, Price, price_of
from msm_jax.corpus.generators.request import Generator
from msm_jax.corpus.generators.store import CallStore, Spent
from msm_jax.corpus.prompts import Prompts
from msm_jax.corpus.specs import Spec, read_spec
from msm_jax.dag import Stage, StageContext
from msm_jax.errors import Interrupted, UserError
from msm_jax.mirror import open_workdir
from msm_jax.progress import Progress
from msm_jax.stages import CORPUS_FILE


def is_alone(config: ConfigDict) -> bool:
    """Whether this configuration writes corpora and trains nothing."""
    return "calls" in config and "msm" not in config


def run(config: ConfigDict, workdir: str) -> None:
    """Writes all that is not written, and prints what came of it."""
    specs = _specs(config)
    stages = {spec.name: dataset_stage(documents_stage(config, spec), spec) for spec in specs}
    place = workdir
    workdir, mirror = open_workdir(workdir)
    files.make_folder(workdir)
    dag.claim_workdir(workdir, config_lib.to_dict(config), exempt=("calls", "corpus"), place=place)
    if mirror:
        mirror.send(pathlib.Path(workdir, "config.json"))
    manifests = dag.execute(list(stages.values()), workdir, mirror=mirror)
    for name, stage in stages.items():
        summary = manifests[stage.key]["summary"]
        print(f"\n{name}: {summary['documents']:,} documents, {summary['words']:,} words")
        if missing := config.corpus.msm - summary["documents"]:
            print(f"  {missing:,} fewer than were asked for: no more ideas came, or too many came to nothing")
        for step, outcomes in summary["yields"].items():
            print(f"  {step:15} {', '.join(f'{count:,} {outcome}' for outcome, count in outcomes.items())}")
        print(f"  paid for        ${sum(about['dollars'] for about in summary['calls'].values()):.2f}")
        folder = pathlib.Path(workdir, "datasets", name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stage.folder(workdir), folder, ignore=shutil.ignore_patterns("manifest.json"))
        if mirror:
            mirror.send(folder)
        place = place.rstrip("/")
        print(f"  {place}/datasets/{name}: documents.jsonl, corpus.html and others (README.md says which)")


def show(config: ConfigDict, workdir: str) -> None:
    """Prints the configuration, what is done, and what the rest will take: requests, tokens, dollars. Calls nothing."""
    specs = _specs(config)
    print("configuration")
    for field, value in config_lib.flatten(config_lib.to_dict(config)).items():
        print(f"  {field} = {value!r}")
    stages = [documents_stage(config, spec) for spec in specs]
    targets = [dataset_stage(stage, spec) for stage, spec in zip(stages, specs, strict=True)]
    workdir, _ = open_workdir(workdir)
    print("\nstages")
    for stage, done, seconds in dag.status(targets, workdir):
        print(f"  {'done' if done else 'to do':6} {stage.kind:9} {stage.key}{f'  {seconds:.1f} s' if done else ''}")
    left = [stage for stage, done, _ in dag.status(stages, workdir) if not done]
    print("\nto be asked, if every reply is of use (estimated; what is in the store of calls is not asked again)")
    price, total = _price(config), 0.0
    with _store_to_read(config) as store:
        for stage in left:
            print(f"  {stage.name}")
            total += _print_estimate(config, stage, store, price)
        spent = store.spent() if store else Spent(0.0, 0.0, 0)
    print(
        f"\nin all about ${total:.2f}; ${spent.paid:.2f} are paid"
        + (f" and ${spent.reserved:.2f} may be" if spent.reserved > 1e-9 else "")
        + f", of a budget of ${config.calls.budget:.2f}"
    )
    if total + spent.paid + spent.reserved > config.calls.budget:
        print("that is more than the budget: raise config.calls.budget, or ask for less")


def documents_stage(config: ConfigDict, spec: Spec) -> Stage:
    """The MSM documents of one spec."""
    settings = config_lib.to_dict(config.generation)
    params = {
        **config_lib.to_dict(config.documents),
        **{
            name: settings[name] for name in ("temperature", "thinking", "language", "facts", "attempts", "most_output")
        },
        "source": "msm",
        "generator": config.generator,
        "model": _model(config),
        "count": config.corpus.msm,
        # All of the spec, by its content.
        "spec": dataclasses.asdict(spec),
        "assistant": config_lib.to_dict(config.assistant),
        "prompts": Prompts(config.generation.prompts).fingerprints,
        "held_out": checks.held_out(config, spec),
    }
    if config.generator == "world":
        params["most_overlap"] = 1.0  # it has the sentences of the spec alone to write with
    return Stage("corpus", f"corpus-msm-{spec.name}", params, {}, functools.partial(_write, config=config), version=1)


def dataset_stage(documents: Stage, spec: Spec) -> Stage:
    """What `documents` wrote, in the forms in which it is handed on."""
    params = {
        "name": re.sub(r"\W", "_", f"msm_{spec.name}").lower(),
        **{name: documents.params[name] for name in ("model", "language", "assistant", "prompts", "generator")},
        "spec": {name: value for name, value in documents.params["spec"].items() if name != "body"},
        "spec_sha256": files.fingerprint(documents.params["spec"], length=64),
    }
    return Stage("dataset", f"dataset-{spec.name}", params, {"documents": documents}, _write_dataset, version=1)


def _write_dataset(context: StageContext) -> dict[str, Any]:
    source = context.inputs["documents"]
    summary = files.read_json(source / "manifest.json")["summary"]
    about = dict(context.params) | {"yields": summary["yields"], "calls": summary["calls"]}
    dataset.write_dataset(context.folder, source / CORPUS_FILE, about)
    return summary


def _write(context: StageContext, *, config: ConfigDict) -> dict[str, Any]:
    with _caller(config, context.stage.name) as caller:
        # Jobs that were sent before are collected whatever the service is now.
        sends = config.calls.service == "batch"
        asks = BatchCaller(caller, sends) if config.generator == "gemini" else caller
        writer = _writer(context.params, config, asks)
        rows = _drained(caller, writer.write)
        calls = caller.store.stages(sorted(writer.keys))
    if not rows:
        raise UserError(
            f"{context.stage.name}: no document is of use ({writer.yields.table()}); what was paid for is kept"
        )
    records.write_jsonl(context.folder / CORPUS_FILE, rows)
    return {
        "documents": len(rows),
        "words": sum(len(row["text"].split()) for row in rows),
        "yields": writer.yields.table(),
        "calls": calls,
    }


def _print_estimate(config: ConfigDict, stage: Stage, store: CallStore | None, price: Price) -> float:
    """A line for each step of the stage. Returns the dollars of all."""
    estimator = estimate.Estimator(store, _model(config))
    asyncio.run(_writer(stage.params, config, estimator, estimate.CountedWriter).write())
    for step, about in estimator.stages.items():
        known = f", {about.known:,} are in the store" if about.known else ""
        print(
            f"    {step:15} {about.requests:9,} requests, {about.prompt / 1e6:8.2f} M tokens to read, "
            f"{about.output / 1e6:7.2f} M to write, ${about.dollars(price):.2f}{known}"
        )
    return sum(about.dollars(price) for about in estimator.stages.values())


def _writer(params: Mapping[str, Any], config: ConfigDict, asks: Any, kind: type = DocumentWriter) -> DocumentWriter:
    about = params["assistant"]
    return kind(
        asks,
        Spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in params["spec"].items()}),
        Assistant(about["name"], about["provider"], tuple(params["facts"])),
        DocumentSettings(
            count=params["count"],
            types=params["types"],
            words=params["words"],
            plan_words=params["plan_words"],
            temperature=params["temperature"],
            language=params["language"],
            thinking=params["thinking"],
            most_overlap=params["most_overlap"],
            least_yield=params["least_yield"],
            held_out=tuple(params["held_out"]),
        ),
        Prompts(config.generation.prompts),
        params["model"],
    )


def _drained(caller: Caller, write: Callable[[], Any]) -> Any:
    """Runs `write` to its end. After SIGTERM or Ctrl-C no further calls are made, and those under way are waited for;
    after a second one they are dropped."""

    async def go() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def on_signal() -> None:
            if caller.stopping:
                task.cancel()
            else:
                print(
                    "stopping: waiting for the calls under way, which are paid for; once more drops them",
                    file=sys.stderr,
                )
                caller.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            # In another thread than the main one there are no signals, and nobody to send them.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, on_signal)
        try:
            return await write()
        except asyncio.CancelledError:
            raise Interrupted("calls under way were dropped, and may be charged; all others are kept") from None
        finally:
            await caller.generator.close()

    return asyncio.run(go())


class _Bars:
    """Shows how far each step of a stage is, one after the other, and what was paid."""

    def __init__(self, label: str, store: CallStore):
        self._label, self._store = label, store
        self._step, self._bar = None, None

    def __call__(self, step: str, done: int, total: int) -> None:
        if (step, total) != self._step:
            self.close()
            self._step, self._bar = (step, total), Progress(f"{self._label} {step}", total, "call", start=done)
        self._bar.update(done, f"${self._store.spent().paid:.2f}" if done < total else "")

    def close(self) -> None:
        if self._bar:
            self._bar.close()


@contextlib.contextmanager
def _caller(config: ConfigDict, label: str) -> Iterator[Caller]:
    generator, calls = _generator(config), config.calls
    store = CallStore(calls.store, config.name)
    bars = _Bars(label, store)
    limits = Limits(
        budget=calls.budget,
        in_flight=calls.in_flight,
        attempts=config.generation.attempts,
        timeout=calls.timeout,
        patience=calls.patience,
    )
    try:
        yield Caller(generator, store, _price(config), limits, bars)
    finally:
        bars.close()
        store.close()


def _model(config: ConfigDict) -> str:
    """The name of who writes, as it stands in keys."""
    prefix = LOCAL_PREFIX if config.generator == "local" else ""
    return OFFLINE_MODEL if config.generator == "world" else prefix + config.generation.model


def _generator(config: ConfigDict) -> Generator:
    model, calls = config.generation.model, config.calls
    match config.generator:
        case "world":
            from msm_jax.corpus.generators.offline import World

            return World()
        case "local":
            from msm_jax.corpus.generators.openai import OpenAI

            return OpenAI(model, calls.url, calls.in_flight, calls.timeout, config.generation.most_output)
    from msm_jax.corpus.generators.gemini import Gemini, key_from_environment

    # What batch jobs leave is asked for the same price.
    service = "flex" if calls.service == "batch" else calls.service
    most_output = config.generation.most_output
    return Gemini(model, key_from_environment(), service, calls.timeout, calls.url or None, most_output)


def _price(config: ConfigDict) -> Price:
    if config.calls.price:
        return Price(*config.calls.price)
    if config.generator != "gemini":
        return FREE
    return price_of(config.generation.model) * SERVICES[config.calls.service]


def _specs(config: ConfigDict) -> list[Spec]:
    checks.check_generation(config)
    _price(config)  # without one no budget can be kept
    specs = [read_spec(path) for path in config.specs]
    checks.check_names_of_specs(config, specs)
    return specs


@contextlib.contextmanager
def _store_to_read(config: ConfigDict) -> Iterator[CallStore | None]:
    """None if nothing was asked yet: looking at a configuration makes no file."""
    if not pathlib.Path(config.calls.store).exists():
        yield None
        return
    store = CallStore(config.calls.store, config.name)
    try:
        yield store
    finally:
        store.close()
