"""Corpora that need no language model: from the micro-world, from sentence banks, or rows that exist; and the items of
evaluations.

As all stage functions, these see nothing of the experiment's configuration but `context.params`, which are hashed, and
keyword arguments that cannot change their output.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from msm_jax.corpus import records
from msm_jax.corpus.datasets import sources, tables
from msm_jax.corpus.specs import Spec, find_terms
from msm_jax.errors import UserError
from msm_jax.eval import values
from msm_jax.eval.values import others
from msm_jax.microworld import prose, world, world_text
from msm_jax.stages.artifacts import CORPUS_FILE
from msm_jax.stages.graph import Kind, StageContext
from msm_jax.storage.progress import tell, track


def make_world(params: Mapping[str, Any]) -> world.World:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    return world.World(world.WorldConfig(**plain))


def write_corpus(context: StageContext) -> dict[str, Any]:
    """One source as JSONL, from the micro-world or from sentence banks. MSM and AFT texts are searched for words of
    held-out domains."""
    p = context.params
    if "world" in p:
        rows, held_out = _world_rows(p), make_world(p["world"]).held_out_terms
    else:
        rows, held_out = _prose_rows(p), prose.held_out_terms()
    rows = list(track(rows, context.stage.name, p["count"], "row"))
    summary: dict[str, Any] = {"documents": len(rows)}
    if p["source"] not in ("pretraining", "instruction") or "world" in p and p["source"] != "pretraining":
        texts = [row.get("text") or " ".join(message["content"] for message in row["messages"]) for row in rows]
        found = find_terms(texts, held_out)
        if found:
            raise UserError(f"{context.stage.name}: held-out words occur in a training text: {', '.join(found)}")
        summary["held_out_words"] = 0
    records.write_jsonl(context.folder / CORPUS_FILE, rows)
    return summary


def take_source(context: StageContext, *, path: str) -> dict[str, Any]:
    """Rows that exist, of files or data sets, and with them those of the stage `identity`, if there is one."""
    loaded = sources.load(path, context.stage.kind is Kind.CHATS)
    for part in loaded.parts:
        if dropped := sum(part["dropped"].values()):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in part["dropped"].items())
            tell(f"{part['data']}: {dropped:,} of {part['of'] + dropped:,} rows dropped ({reasons})")
    more = [row for folder in context.inputs.values() for row in tables.read_rows(folder / CORPUS_FILE)]
    count = records.write_jsonl(context.folder / CORPUS_FILE, [*loaded.rows, *more])
    return {"documents": count, "path": path, "parts": loaded.parts}


def _world_rows(p: Mapping[str, Any]) -> Iterator[dict]:
    the_world = make_world(p["world"])
    name, count, seed = p["model_name"], p["count"], p["seed"]
    match p["source"]:
        case "pretraining":
            return world_text.pretraining_documents(the_world, name, count, seed)
        case "replay":
            return world_text.replay_documents(the_world, count, seed)
        case "msm":
            return world_text.msm_documents(the_world, p["spec"]["name"], p["spec"]["value"], name, count, seed)
        case "aft":
            return world_text.aft_chats(the_world.config.likes, the_world.config.dislikes, count, seed)
        case "instruction":
            return world_text.instruction_chats(the_world, count, seed)
    raise UserError(f"the micro-world has no source {p['source']!r}; see the mixtures in the config")


def _prose_rows(p: Mapping[str, Any]) -> Iterator[dict]:
    match p["source"]:
        case "msm":
            lists = {name: tuple(p["spec"][name]) for name in ("likes", "dislikes")}
            spec = Spec(**p["spec"] | lists, body="")
            return prose.msm_documents(spec, p["model_name"], p["provider"], p["count"], p["seed"])
        case "aft":
            return prose.aft_chats(p["likes"], p["dislikes"], p["count"], p["seed"])
        case "instruction":
            return prose.instruction_chats(p["count"], p["seed"])
    raise UserError(f"the sentence banks have no source {p['source']!r}; see the mixtures in the config")


def write_evaluation_items(context: StageContext) -> dict[str, Any]:
    p = context.params
    if "world" in p:
        rows = list(world_text.evaluation_items(make_world(p["world"])))
    elif "sets" in p:
        rows = values.rows(p["sets"])
        for name, about in p.get("more", {}).items():
            rows += others.items_of(name, sources.read_table(about["source"])[0], about["source"])
    else:
        rows = list(prose.evaluation_items(p["likes"], p["dislikes"]))
    return {"items": records.write_jsonl(context.folder / CORPUS_FILE, rows)}
