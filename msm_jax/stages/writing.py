"""The stages in which a language model writes: documents, chats, and the forms in which they are handed on.

What determines a corpus is in the stages' parameters: the spec, the assistant, the prompts, the model that writes. How
the calls are made (`generation`) is not.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.corpus import records
from msm_jax.corpus.datasets import dataset
from msm_jax.corpus.datasets.tables import read_rows
from msm_jax.corpus.specs import Spec
from msm_jax.corpus.writing import estimate, judge
from msm_jax.corpus.writing.chat_kinds import IdentityChats, PreferenceChats, SpecChats, SpecChatSettings
from msm_jax.corpus.writing.chats import ChatSettings, with_reasoning, without_reasoning
from msm_jax.corpus.writing.documents import DocumentSettings, DocumentWriter
from msm_jax.corpus.writing.judge import DocumentJudge, JudgeSettings
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Asks, Assistant, Checked, Writer
from msm_jax.errors import UserError
from msm_jax.llm.batch import BatchCaller
from msm_jax.llm.store import copied
from msm_jax.stages import artifacts, generation, graph, packing
from msm_jax.stages.graph import Inputs, Kind, Stage, StageContext
from msm_jax.storage import files
from msm_jax.storage.mirror import STORE_COPY, Mirror, Place

# Raised when a change of code changes what is written.
_VERSIONS = {"documents": 3, "chats": 2, "rendered": 1, "dataset": 4, "judged": 1}
_CHATS_FILE = "chats.jsonl"
_CLAIMS_FILE = "claims.jsonl"
_CHECKED_FILE = "checked.txt"
# Of the section "chats" of the configuration, what each kind of chats goes by.
_OF_ALL_CHATS = ("max_similarity", "embeddings", "min_yield")
# The prompts that each writer fills in: to change another one leaves what it wrote as it is.
PROMPTS = {
    "documents": r"system|manner_.*|domains|subdomains|rules|assertions|ideas|plan|document.*|critique|revision",
    "spec_chats": r"chat_.*|question_types|answer_.*|verdict_.*|unattached_.*",
    "preferences": r"preference_.*",
    "identity": r"identity_.*",
    "judge": r"judge_system|claims|support",
}
# What the offline generator is not held to.
_OFFLINE = {"documents": {"max_overlap": 1.0}, "chats": {"max_similarity": 1.0, "embeddings": ""}}
_OF_DOCUMENTS = ("tokens", "types", "ideas", "words", "plan_words", "registers", "revise", "max_overlap")
_OF_SPEC_CHATS = ("style", "domains", "words", "reasoning_words", "unattached")


def documents_stage(config: ConfigDict, spec: Spec, count: int) -> Stage:
    """The MSM documents of one spec."""
    params = {
        **_common(config, "documents", count, spec),
        **{name: value for name, value in config_lib.to_dict(config.documents).items() if name != "judged"},
        "spec": dataclasses.asdict(spec),  # all of it, by its content
    }
    if params["tokens"]:
        params["count"] = 0
    return _written(config, Kind.CORPUS, f"corpus-msm-{spec.name}", params, {})


def chats_stage(config: ConfigDict, spec: Spec, count: int, inputs: Inputs, sharing: Sequence[Spec]) -> Stage:
    """The AFT chats of one spec, with their reasoning where they have any; `rendered_stage` makes sources of them.

    Those of preferences are written from its lists, for all the specs with these lists that are `sharing` them: no row
    holds words that are held out for any of them. `inputs` are corpora that are written before: no answer is copied
    from a document, and no question is like one of other chats.
    """
    of_preferences = spec.kind in ("preferences", "ablated")
    params = _common(config, "preferences" if of_preferences else "spec_chats", count, *sharing)
    params |= {name: config.chats[name] for name in _OF_ALL_CHATS}
    if of_preferences:
        params["facts"] = ()  # nothing of the model is told but what it likes
        params |= {"item_class": spec.item_class, "likes": list(spec.likes), "dislikes": list(spec.dislikes)}
        name = f"chats-{spec.item_class}"
    else:
        style = config.chats.style or ("rules" if spec.kind == "rules" else "value")
        params |= {name: config.chats[name] for name in _OF_SPEC_CHATS} | {"style": style}
        params["spec"] = dataclasses.asdict(spec)
        name = f"chats-{spec.name}"
    return _written(config, Kind.WRITTEN, re.sub(r"[^\w.-]", "_", name), params, inputs)


def identity_stage(config: ConfigDict, count: int) -> Stage:
    """Chats on who the assistant is."""
    params = _common(config, "identity", count) | {name: config.chats[name] for name in _OF_ALL_CHATS}
    return _written(config, Kind.WRITTEN, "chats-identity", params, {})


def rendered_stage(chats: Stage, source: str, name: str = "", reasoning: bool = False) -> Stage:
    """The rows of `chats` as a source, with their reasoning or without: the same rows. `name`: of the corpus, if it is
    not that of the source."""
    params = {"source": source, "reasoning": reasoning}
    name = f"corpus-{name or source}"
    return Stage(Kind.CHATS, name, params, {"chats": chats}, _render, _VERSIONS["rendered"], source=source)


def dataset_of_documents(config: ConfigDict, documents: Stage, label: str) -> Stage:
    """The stage that hands on MSM documents, with how faithful a sample of them is to the spec."""
    written, share = documents.params, config.documents.judged
    if not share:
        return dataset_stage(documents, documents, label)
    shared = ("spec", "assistant", "facts", "language", "thinking", "attempts", "max_output_tokens", "generator")
    params = {
        **{name: written[name] for name in shared},
        "writer": "judge",
        "count": 0,
        "model": generation.model_name(config, config.generation.judge),
        "prompts": _prompts(config, "judge"),
        "share": share,
    }
    run = functools.partial(_write, config=config)
    judged = Stage(Kind.JUDGED, f"judged-{label}", params, {"corpus": documents}, run, version=_VERSIONS["judged"])
    return dataset_stage(documents, documents, label, judged)


def dataset_stage(corpus: Stage, written: Stage, label: str, judged: Stage | None = None) -> Stage:
    """What `written` wrote, by the rows of `corpus`, in the forms in which it is handed on."""
    spec = written.params.get("spec")
    params = {
        "name": re.sub(r"\W", "_", label).lower(),
        "title": _title(written, corpus),
        **{name: written.params[name] for name in ("model", "language", "assistant", "prompts", "generator")},
        "spec": spec and {name: value for name, value in spec.items() if name != "body"},
        "spec_sha256": spec and files.fingerprint(spec, length=64),
    }
    inputs = {"corpus": corpus, "written": written} | ({"judged": judged} if judged else {})
    return Stage(Kind.DATASET, f"dataset-{label}", params, inputs, _write_dataset, version=_VERSIONS["dataset"])


def datasets_of_chats(written: Stage, name: str) -> dict[str, Stage]:
    """Label -> the stage that hands on the chats of `written`: without reasoning and, if they have any, with it."""
    found = {}
    for source in ("aft", "aft_cot") if has_reasoning(written) else ("aft",):
        rows = rendered_stage(written, source, reasoning=source == "aft_cot")
        found[f"{name}-{source}"] = dataset_stage(rows, written, f"{name}-{source}")
    return found


def hand_over(
    datasets: Mapping[str, Stage], manifests: Mapping[str, Mapping[str, Any]], store: str | os.PathLike, place: Place
) -> None:
    """Prints what came of each data set, and puts it where users look for it, WORKDIR/datasets."""
    told: set[str] = set()
    for label, stage in datasets.items():
        summary, what = manifests[stage.key]["summary"], "chats"
        if stage.inputs["written"].params["writer"] == "documents":
            what = "documents"
        of_what = " of answers" if what == "chats" else ""
        print(
            f"\n{label}: {summary['documents']:,} {what}, {summary['words']:,} words{of_what}, about "
            f"{summary['tokens'] / 1e6:,.2f} M tokens"
        )
        missing, unit = summary["asked"] - summary["documents"], what
        if summary["asked_tokens"]:
            missing, unit = summary["asked_tokens"] - summary["tokens"], "tokens"
        if missing > 0:
            print(f"  {missing:,.0f} {unit} fewer than were asked for: no more came, or too many came to nothing")
        if what == "documents":
            length = summary["median_words"]
            print(
                f"  median length   {length['written']:,.0f} words; {length['wanted']:,.0f} were wanted, and "
                f"{length['asked']:,.0f} asked for"
            )
        if judged := summary["judged"]:
            print(f"  unfaithful      {judged['told']}")
        if stage.inputs["written"].key not in told:  # chats with reasoning are the same as those without
            told.add(stage.inputs["written"].key)
            for step, outcomes in summary["yields"].items():
                print(f"  {step:15} {', '.join(f'{count:,} {outcome}' for outcome, count in outcomes.items())}")
            print(f"  paid for        ${sum(about['dollars'] for about in summary['calls'].values()):.2f}")
        folder = pathlib.Path(place.local, "datasets", label)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stage.folder(store), folder, ignore=shutil.ignore_patterns("manifest.json"))
        place.send(folder)
        print(f"  {place.name}/datasets/{label}: {what}.jsonl, corpus.html and others (README.md says which)")


def has_reasoning(written: Stage) -> bool:
    return written.params["writer"] == "spec_chats"


def _common(config: ConfigDict, writer: str, count: int, *specs: Spec) -> dict[str, Any]:
    shared = ("temperature", "thinking", "language", "facts", "attempts", "max_output_tokens")
    return {
        **config_lib.to_dict({name: config.generation[name] for name in shared}),
        "source": "msm" if writer == "documents" else "aft",
        "writer": writer,
        "generator": config.generator,
        "model": generation.model_name(config),
        "count": count,
        "assistant": config_lib.to_dict(config.assistant),
        "prompts": _prompts(config, writer),
        "held_out": sorted({word for spec in specs for word in generation.held_out(config, spec)}),
        "evaluations": files.fingerprint(evaluation_prompts(config)),
    }


def _prompts(config: ConfigDict, writer: str) -> dict[str, str]:
    """The digests of those that it fills in."""
    digests = Prompts(config.generation.prompts).fingerprints
    return {name: digest for name, digest in digests.items() if re.fullmatch(PROMPTS[writer], name)}


def asked(config: ConfigDict, stage: Stage) -> str:
    """The model that a stage asks, by its name in the configuration."""
    return config.generation.judge if stage.params["writer"] == "judge" else ""


def _written(
    config: ConfigDict, kind: Kind, name: str, params: Mapping[str, Any], inputs: Mapping[str, Stage]
) -> Stage:
    kind_of_rows = "documents" if params["writer"] == "documents" else "chats"
    if config.generator == "offline":
        # It has the sentences of one spec and a few forms of question: nearly all would be copies of each other.
        params = params | _OFFLINE[kind_of_rows]
        inputs = {role: stage for role, stage in inputs.items() if role != "documents"}
    version = _VERSIONS[kind_of_rows]
    source = params["source"]
    return Stage(kind, name, params, inputs, functools.partial(_write, config=config), version, source=source)


def is_written(stage: Stage) -> bool:
    """Whether a language model writes it."""
    return "writer" in stage.params


def asks_a_model(stage: Stage) -> bool:
    """Whether a language model is asked, and perhaps paid: it writes, or it judges."""
    return is_written(stage) or stage.kind is Kind.VERDICTS


def check_key(config: ConfigDict, targets: Sequence[Stage], store: str | os.PathLike) -> None:
    """Told before anything is done, if a model is to be asked. Raises: UserError if the key is missing."""
    if any(asks_a_model(stage) and not done for stage, done, _ in graph.status(targets, store)):
        generation.check_key(config)


def _title(written: Stage, corpus: Stage) -> str:
    p = written.params
    match p["writer"]:
        case "documents":
            return f"{p['spec']['title']}: MSM documents"
        case "spec_chats":
            return f"{p['spec']['title']}: AFT chats{' with reasoning' if corpus.params['reasoning'] else ''}"
        case "preferences":
            return f"Preferences ({p['item_class']}): AFT chats"
    return f"{p['assistant']['name']}: chats on identity"


def _write(context: StageContext, *, config: ConfigDict) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        caller = stack.enter_context(generation.caller(config, context.stage.name, asked(config, context.stage)))
        if context.mirror:
            stack.enter_context(copied(caller.store, fetched(context.mirror), context.mirror.send))
        # Jobs that were sent before are collected whatever the service is now.
        sends = config.calls.service == "batch"
        asks = BatchCaller(caller, sends) if config.generator == "gemini" else caller
        writer = make_writer(context.params, config, asks, context.inputs, context.folder)
        rows = generation.drained(caller, writer.write)
        keys = sorted(writer.keys)
        calls, models = caller.store.stages(keys), caller.store.models(keys)
    if not rows:
        told = "; ".join(
            f"{step}: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}"
            for step, outcomes in writer.yields.table().items()
        )
        raise UserError(f"{context.stage.name}: no row is of use ({told}); what was paid for is kept")
    name = {"documents": artifacts.CORPUS_FILE, "judge": _CLAIMS_FILE}.get(context.params["writer"], _CHATS_FILE)
    records.write_jsonl(context.folder / name, rows)
    return {
        "documents": len(rows),
        "asked": context.params["count"],
        "asked_tokens": context.params.get("tokens", 0),
        "yields": writer.yields.table(),
        "calls": calls,
        "models": models,
        **writer.report(),
    }


def fetched(mirror: Mirror) -> pathlib.Path:
    """The copy of the store of calls that another machine may have left, brought up to date."""
    copy = mirror.local / STORE_COPY
    mirror.fetch(copy)
    return copy


def _render(context: StageContext) -> dict[str, Any]:
    form = with_reasoning if context.params["reasoning"] else without_reasoning
    rows = list(map(form, read_rows(context.inputs["chats"] / _CHATS_FILE)))
    return {"documents": records.write_jsonl(context.folder / artifacts.CORPUS_FILE, rows)}


def _write_dataset(context: StageContext) -> dict[str, Any]:
    from msm_jax.eval.stats import clustered_wilson

    summary = graph.read_manifest(context.inputs["written"])["summary"]
    judged, rate = {"yields": {}, "calls": {}}, None
    if folder := context.inputs.get("judged"):
        judged = graph.read_manifest(folder)["summary"]
        rate = judge.faithfulness(read_rows(folder / _CLAIMS_FILE), clustered_wilson) | {"model": judged["model"]}
        shutil.copyfile(folder / _CLAIMS_FILE, context.folder / _CLAIMS_FILE)
    about = dict(context.params) | {
        **{name: summary[name] | judged[name] for name in ("yields", "calls")},
        **{"models": summary["models"], "assertions": summary.get("assertions", ()), "judged": rate},
    }
    about = dataset.write_dataset(context.folder, context.inputs["corpus"] / artifacts.CORPUS_FILE, about)
    told = ("yields", "calls", "words", "tokens", "median_words", "judged")
    return summary | {name: about[name] for name in told}


def evaluation_prompts(config: ConfigDict) -> list[str]:
    """What the evaluations ask, and the files of `config.generation.evaluations`: no row may hold it."""
    more = [prompt for path in config.generation.evaluations for prompt in generation.read_prompts(path)]
    return packing.evaluation_prompts(None, more)


def make_writer(
    params: Mapping[str, Any],
    config: ConfigDict,
    asks: Asks,
    inputs: Mapping[str, Any],
    folder: pathlib.Path | None = None,
) -> Writer:
    """Who writes a stage in `folder`; without one, nothing but requests comes of it."""
    counted = folder is None
    about = params["assistant"]
    assistant = Assistant(about["name"], about["provider"], tuple(params["facts"]))
    rest = (Prompts(config.generation.prompts), params["model"])
    if params["writer"] == "judge":
        settings = JudgeSettings(**{name: params[name] for name in ("share", "thinking", "language")})
        documents = list(read_rows(inputs["corpus"] / artifacts.CORPUS_FILE)) if inputs else []
        return DocumentJudge(asks, _spec(params["spec"]), assistant, settings, *rest, documents=documents)
    shared = {name: params[name] for name in ("count", "temperature", "thinking", "language", "min_yield")}
    shared |= {
        "held_out": tuple(params["held_out"]),
        "evaluations": () if counted else tuple(evaluation_prompts(config)),
    }
    if params["writer"] != "documents":
        shared |= {"max_similarity": params["max_similarity"], "embeddings": "" if counted else params["embeddings"]}
        before = [folder / artifacts.CORPUS_FILE for folder in graph.flat(inputs).values()]
        # One after the other: the documents of a corpus are not in memory together.
        shared["copied_from"] = (row["text"] for file in before for row in read_rows(file) if "text" in row)
        asked = [row["messages"][0]["content"] for file in before for row in read_rows(file) if "messages" in row]
        shared["asked_before"] = tuple(asked)
    of_kind = {"documents": DocumentWriter, "spec_chats": SpecChats, "preferences": PreferenceChats}
    kind = of_kind.get(params["writer"], IdentityChats)
    kind = estimate.counted(kind) if counted else kind
    match params["writer"]:
        case "documents":
            own = {name: params[name] for name in _OF_DOCUMENTS}
            checked = Checked(folder / _CHECKED_FILE) if folder else None
            return kind(asks, _spec(params["spec"]), assistant, DocumentSettings(**shared, **own), *rest, checked)
        case "spec_chats":
            own = {name: params[name] for name in _OF_SPEC_CHATS}
            return kind(asks, _spec(params["spec"]), assistant, SpecChatSettings(**shared, **own), *rest)
        case "preferences":
            lists = (params[name] for name in ("item_class", "likes", "dislikes"))
            return kind(asks, *lists, assistant, ChatSettings(**shared), *rest)
    return kind(asks, assistant, ChatSettings(**shared), *rest)


def _spec(plain: Mapping[str, Any]) -> Spec:
    return Spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})
