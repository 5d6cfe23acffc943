"""What each kind of stage does: from its parameters and the folders of its inputs to its own folder.

A stage function sees nothing of the experiment's configuration but `context.params`, which are hashed, and keyword
arguments that cannot change its output. Imports of jax and of the evaluations are inside the functions, since
showing an experiment needs neither.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msm_jax.corpus import records
from msm_jax.corpus.datasets import sources, tables
from msm_jax.corpus.filters.contamination import Contamination
from msm_jax.corpus.specs import Spec, find_terms
from msm_jax.errors import UserError
from msm_jax.microworld import prose, world, world_text
from msm_jax.stages.graph import StageContext, read_manifest
from msm_jax.storage import files
from msm_jax.storage.progress import tell, track

# Raised for a kind when a change of code changes what its stages write: a workdir then does them again.
VERSIONS = {"base": 1, "corpus": 3, "chats": 2, "mixture": 2, "train": 1, "score": 4, "report": 5}
TAKEN_VERSION = 4  # of the corpora that are taken as they are, of either kind

CORPUS_FILE = "corpus.jsonl"
AFT_SOURCES = ("aft", "aft_cot")
CHAT_SOURCES = (*AFT_SOURCES, "instruction")  # all other sources are documents


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
    loaded = sources.load(path, context.params["source"] in CHAT_SOURCES)
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
    else:
        rows = list(prose.evaluation_items(p["likes"], p["dislikes"]))
    return {"items": records.write_jsonl(context.folder / CORPUS_FILE, rows)}


def train_tokenizer(context: StageContext) -> dict[str, Any]:
    from msm_jax.data.tokenizer import train_sentencepiece

    texts = itertools.chain.from_iterable(
        texts_of(folder / CORPUS_FILE, chats=role in CHAT_SOURCES) for role, folder in sorted(context.inputs.items())
    )
    tokenizer = train_sentencepiece(texts, context.folder, **context.params)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}


def _count_lines(path: pathlib.Path) -> int:
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


def texts_of(path: pathlib.Path, chats: bool) -> Iterator[str]:
    if not chats:
        return (document.text for document in records.read_documents(path))
    return (f" {message.content}" for chat in records.read_chats(path) for message in chat.messages)


def find_base(context: StageContext, *, row_length: int, answer_length: int, chat: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that exists: its shape, and what lies beside its weights. The weights stay where they are, and are
    fetched by the first stage that needs them. That it can be trained as the experiment asks, on chats that `chat`
    describes, is looked at here, before corpora are written."""
    from msm_jax.checkpoints import weights
    from msm_jax.checkpoints.sources import copy_small_files
    from msm_jax.data.jinja_template import make_template
    from msm_jax.models import count_parameters

    p = context.params
    source, stored = weights.locate(p["path"], p["revision"] or None, **p["model"])
    if stored.lora is not None:
        raise UserError(
            f"config.base.path={p['path']}: is an adapter; name its base, or merge the two by msm_jax.convert"
        )
    if stored.tokenizer is None:
        raise UserError(f"config.base.path={p['path']}: has no tokenizer")
    rows = stored.decoder.vocab_size
    if load_tokenizer(weights.local_tokenizer(stored.tokenizer)).vocab_size > rows:
        raise UserError(
            f"config.base.path={p['path']}: its tokenizer has more ids than the {rows} rows of its embedding"
        )
    try:
        make_template(chat, weights.local_tokenizer(stored.tokenizer))
    except UserError as error:
        raise UserError(f"config.chat: {error}") from None
    limit = stored.decoder.max_length
    if limit and row_length > limit:
        raise UserError(f"config.row_length={row_length} is more than the {limit} tokens that {p['path']} was made for")
    if limit and answer_length >= limit:
        raise UserError(
            f"config.eval.max_tokens={answer_length} leaves no room for a question in the {limit} tokens that "
            f"{p['path']} was made for"
        )
    copy_small_files(stored.tokenizer, context.folder / weights.KEPT_FOLDER)
    weights.write_description(context.folder, stored.model, tokenizer=str(context.folder), source=source)
    return {"parameters": count_parameters(stored.model.shapes), **source}


def pack_rows(context: StageContext) -> dict[str, Any]:
    """Tokenises and packs one source, once. A chat longer than a row is cut there, a longer document goes on in the
    next row. A chat that the template cannot write is left out, and all of them are an error."""
    from msm_jax.data.chat import TooLong, Unwritable, encode_chat, encode_document
    from msm_jax.data.rows import write_rows

    p = context.params
    tokenizer = load_tokenizer(context.inputs["tokenizer"])
    path = context.inputs["corpus"] / CORPUS_FILE
    if p["source"] in CHAT_SOURCES:
        template = chat_template(p["chat"], context.inputs["tokenizer"])
        encode = functools.partial(encode_chat, tokenizer, template, name=p["model_name"], max_tokens=p["row_length"])
        documents = records.read_chats(path)
    else:
        encode, documents = functools.partial(encode_document, tokenizer), records.read_documents(path)
    lost = {"truncated": 0, "dropped": 0, "contaminated": 0}
    unwritable: list[str] = []
    contamination = Contamination(evaluation_prompts(**p["evaluations"]) if p["evaluations"] else ())

    def examples() -> Iterator[Any]:
        packed = 0
        for document in track(documents, context.stage.name, _count_lines(path), "row"):
            if contamination.find(_whole_text(document)):
                lost["contaminated"] += 1
                continue
            try:
                example = encode(document)
            except TooLong:  # its first answer begins after the end of a row
                lost["dropped"] += 1
                continue
            except Unwritable as error:
                unwritable.append(str(error))
                continue
            lost["truncated"] += example.truncated
            packed += 1
            yield example
        if unwritable and not packed:
            raise UserError(unwritable[0])

    summary = write_rows(context.folder, examples(), p["row_length"], tokenizer.vocab_size) | lost
    if unwritable:
        summary |= {"unwritable": len(unwritable), "first_unwritable": unwritable[0]}
        of = f"{len(unwritable):,} of {_count_lines(path):,} chats"
        tell(f"{context.stage.name}: {of} left out, the first of them {unwritable[0]}")
    return summary


def _whole_text(row: records.Document | records.Chat) -> str:
    return row.text if isinstance(row, records.Document) else "\n".join(message.content for message in row.messages)


def evaluation_prompts(world: Mapping[str, Any] | None, more: Sequence[str]) -> list[str]:
    """What the evaluations ask, in either order of two options; of `world`, or of the sentence banks if it is None.

    Those in domain are left out: they are asked in the words of AFT, and meant to be learnt.
    """
    if world:
        items, ask = world_text.evaluation_items(make_world(world)), world_text.question
    else:
        items, ask = prose.evaluation_items(("a",), ("b",)), prose.question
    pairs = [(item["aligned"], item["other"]) for item in items if item["kind"] != "in_domain"]
    return list(dict.fromkeys([*more, *(ask(*order) for a, b in pairs for order in ((a, b), (b, a)))]))


def load_tokenizer(folder: pathlib.Path):
    """The tokenizer that the stage at `folder` made or found."""
    from msm_jax.checkpoints.weights import tokenizer_folder
    from msm_jax.data import tokenizer

    try:
        return tokenizer.load_tokenizer(tokenizer_folder(folder))
    except UserError as error:
        raise UserError(f"{error}; {files.anew(folder)}") from error


def chat_template(chat: Mapping[str, Any], folder: pathlib.Path):
    """The template that `chat` describes; `folder` is the stage of the tokenizer."""
    from msm_jax.checkpoints.weights import tokenizer_folder
    from msm_jax.data.jinja_template import make_template

    return make_template(chat, tokenizer_folder(folder))


def report(context: StageContext) -> dict[str, Any]:
    """Gathers all scores into `report.html`, figures and `report.json`. Inputs: `score:ARM:SEED`, `control`, others
    for their manifests."""
    import datetime

    from eval.report import write_report

    config, arms = context.params["config"], context.params["arms"]
    manifests = {role: read_manifest(folder) for role, folder in context.inputs.items()}
    scores, stages, corpora, controls = [], [], [], []
    for role, manifest in manifests.items():
        summary = manifest["summary"]
        stages.append({"key": manifest["key"], "kind": manifest["kind"], "seconds": manifest["seconds"],
                       "tokens": summary.get("tokens")})  # fmt: skip
        if role.startswith("score:"):
            _, arm, seed = role.split(":")
            about = {"arm": arms[int(arm)]["name"], "spec": arms[int(arm)]["spec"], "seed": int(seed)}
            scores += [about | entry for entry in summary["scores"]]
        elif role.startswith("rows:"):
            counts = {key: summary[key] for key in ("split", "tokens", "trained_tokens", "rows", "fill")}
            counts |= {key: summary.get(key, 0) for key in ("truncated", "dropped", "contaminated", "unwritable")}
            counts |= {key: summary[key] for key in ("first_unwritable",) if key in summary}
            corpora.append({"name": role.removeprefix("rows:"), "documents": summary["examples"], **counts})
        controls += summary.get("controls", [])
    result = {
        "experiment": config["name"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "model": config["model"] | {"parameters": manifests["base"]["summary"]["parameters"]},
        "arms": arms,
        "seeds": config["seeds"],
        "scores": scores,
        "controls": controls,
        "stages": stages,
        "corpora": corpora,
    }
    write_report(context.folder, result)
    return {"scores": len(scores)}
