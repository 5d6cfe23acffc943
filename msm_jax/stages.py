"""What each kind of stage does: from its parameters and the folders of its inputs to its own folder.

A stage function sees nothing of the experiment's configuration but `context.params`, which are hashed, and keyword
arguments that cannot change its output. Imports of jax and of the evaluations are inside the functions, since
showing an experiment needs neither.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from msm_jax import files
from msm_jax.corpus import prose, records, world, world_text
from msm_jax.corpus.specs import Spec, find_terms
from msm_jax.dag import StageContext
from msm_jax.errors import UserError
from msm_jax.progress import track

PyTree = Any

# Raised for a kind when a change of code changes what its stages write: a workdir then does them again.
VERSIONS = {"base": 1, "corpus": 3, "chats": 2, "mixture": 1, "train": 1, "score": 3, "report": 4}

CORPUS_FILE = "corpus.jsonl"
CHAT_SOURCES = ("aft", "aft_cot", "instruction")  # all other sources are documents


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How to compute, which changes nothing of a result but rounding."""

    mesh: Mapping[str, int]
    execution: Mapping[str, Any]
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int


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


def copy_corpus(context: StageContext, *, path: str) -> dict[str, Any]:
    """A file of the user's, each row checked. What it holds is hashed, where it lies is not."""
    read = records.read_chats if context.params["source"] in CHAT_SOURCES else records.read_documents
    documents = sum(1 for _ in track(read(path), context.stage.name, _count_lines(path), "row"))
    shutil.copyfile(path, context.folder / CORPUS_FILE)
    return {"documents": documents, "path": path}


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


def find_base(context: StageContext, *, row_length: int) -> dict[str, Any]:
    """A checkpoint that exists: its shape, and what lies beside its weights. The weights stay where they are, and are
    fetched by the first stage that needs them."""
    from msm_jax import weights
    from msm_jax.models import count_parameters
    from msm_jax.models.sources import copy_small_files

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
    limit = stored.decoder.max_length
    if limit and row_length > limit:
        raise UserError(f"config.row_length={row_length} is more than the {limit} tokens that {p['path']} was made for")
    copy_small_files(stored.tokenizer, context.folder / weights.KEPT_FOLDER)
    weights.write_description(context.folder, stored.model, tokenizer=str(context.folder), source=source)
    return {"parameters": count_parameters(stored.model.shapes), **source}


def pack_rows(context: StageContext) -> dict[str, Any]:
    """Tokenises and packs one source, once. A chat longer than a row is cut there, a longer document goes on in the
    next row."""
    from msm_jax.data.chat import TooLong, encode_chat, encode_document
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
    lost = {"truncated": 0, "dropped": 0}

    def examples() -> Iterator[Any]:
        for document in track(documents, context.stage.name, _count_lines(path), "row"):
            try:
                example = encode(document)
            except TooLong:  # its first answer begins after the end of a row
                lost["dropped"] += 1
                continue
            lost["truncated"] += example.truncated
            yield example

    return write_rows(context.folder, examples(), p["row_length"], tokenizer.vocab_size) | lost


def load_tokenizer(folder: pathlib.Path):
    """The tokenizer that the stage at `folder` made or found."""
    from msm_jax.data import tokenizer
    from msm_jax.weights import tokenizer_folder

    return tokenizer.load_tokenizer(tokenizer_folder(folder))


def chat_template(chat: Mapping[str, Any], folder: pathlib.Path):
    """The template that `chat` describes; `folder` is the stage of the tokenizer."""
    from msm_jax.data.jinja_template import make_template
    from msm_jax.weights import tokenizer_folder

    return make_template(chat, tokenizer_folder(folder))


def train(context: StageContext, *, runtime: Runtime, label: str) -> dict[str, Any]:
    """Pretraining, MSM or AFT: they differ in their inputs alone.

    Inputs: a `rows:SOURCE` for each source of the mixture, `tokenizer`; `base`, the model under the adapter (or to
    go on with, if there is no adapter); `adapter`, the stage whose trained weights are continued.
    """
    import jax

    from msm_jax.models import count_parameters
    from msm_jax.train.checkpoint import exists, remove
    from msm_jax.weights import read_description

    p = context.params
    sources = sources_of(p, context.inputs)
    steps = steps_of(p, sources)
    # Orbax makes `final` appear at once and whole, so a run that was killed after it needs no training again.
    if not exists(f"{context.arrays or context.folder}/final"):
        _train(context, runtime, label, sources, steps)
    if jax.process_index() > 0:
        return {}
    remove(f"{context.arrays or context.folder}/checkpoints")
    last = json.loads((context.folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "steps": steps,
        "tokens": last["tokens"],
        "loss": last["loss"],
        "parameters": count_parameters(read_description(context.folder).shapes),
    }


def sources_of(params: Mapping[str, Any], inputs: Mapping[str, pathlib.Path]) -> list:
    """The mixture of a training stage, in an order that does not depend on how the config lists it."""
    from msm_jax.data.mixture import Source
    from msm_jax.data.rows import PackedRows

    sources = [
        Source(name, PackedRows(inputs[f"rows:{name}"]), share) for name, share in sorted(params["mixture"].items())
    ]
    # An epoch takes each row once, so its shares are those of the rows.
    return sources if params["steps"] else [source._replace(weight=len(source.rows)) for source in sources]


def steps_of(params: Mapping[str, Any], sources: list) -> int:
    from msm_jax.data.mixture import epoch_steps

    return params["steps"] or epoch_steps(sources, params["batch_size"])


def _train(context: StageContext, runtime: Runtime, label: str, sources: list, steps: int) -> None:

    from msm_jax.data.mixture import batches
    from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model, count_parameters
    from msm_jax.parallel import batch_sharding, check_heads, make_mesh, peak_flops, train_flops_per_token
    from msm_jax.parallel.hosts import row_share
    from msm_jax.train import checkpoint, loop
    from msm_jax.train.optimizer import OptimizerConfig
    from msm_jax.train.step import init_state, make_train_step
    from msm_jax.weights import read_description, write_description

    p = context.params
    mesh = make_mesh(runtime.mesh)
    tokenizer = load_tokenizer(context.inputs["tokenizer"])
    if "base" in context.inputs:
        decoder = read_description(context.inputs["base"]).config
    else:
        decoder = DecoderConfig(vocab_size=padded(tokenizer.vocab_size), **p["model"])
    check_heads(mesh, decoder.num_kv_heads)
    lora = LoraConfig(**{**p["lora"], "targets": tuple(p["lora"]["targets"])}) if p["lora"] else None
    execution = Execution(**runtime.execution).on(mesh.devices.flat[0].platform)
    model = Model(decoder, lora, execution, p["int8_base"])

    inputs = context.inputs
    trained = load_weights(inputs["adapter"], model, runtime) if "adapter" in inputs else None
    needs_base = "base" in inputs and (lora or trained is None)
    # A frozen base is read in the dtype of the products; what is trained is float32.
    base = (
        load_weights(inputs["base"], dataclasses.replace(model, lora=None), runtime, decoder.dtype if lora else None)
        if needs_base
        else None
    )
    frozen, start = (base, trained) if lora else (None, trained or base)
    state = init_state(model, mesh, p["seed"], start)

    matmuls = count_parameters(model.shapes["layers"]) + decoder.width * decoder.vocab_size
    state = loop.train(
        config=loop.LoopConfig(
            steps=steps,
            batch_size=p["batch_size"],
            accumulation=p["accumulation"],
            log_every=runtime.log_every,
            checkpoint_every=runtime.checkpoint_every,
            keep_checkpoints=runtime.keep_checkpoints,
        ),
        step_fn=make_train_step(model, OptimizerConfig(**p["optim"]), steps, mesh),
        state=state,
        frozen=frozen,
        dataset=batches(sources, p["batch_size"], p["seed"], *row_share(mesh)),
        source_names=[source.name for source in sources],
        batch_sharding=batch_sharding(mesh, leading=1),
        folder=context.folder,
        arrays=context.arrays or context.folder,
        saved=context.send,
        identity=context.stage.hash,
        run_config={"params": p, "inputs": {role: source.key for role, source in context.stage.inputs.items()}},
        flops_per_token=train_flops_per_token(
            matmul_parameters=matmuls,
            adapter_parameters=count_parameters(model.lora_shapes) if lora else None,
            num_layers=decoder.num_layers,
            attention_width=decoder.num_heads * decoder.head_size,
            row_length=sources[0].rows.row_length,
        ),
        peak_flops=peak_flops(decoder.dtype),
        describe=functools.partial(describe_batch, tokenizer),
        label=label,
    )
    [first, *_] = [stage for role, stage in context.stage.inputs.items() if role.startswith("rows:")]
    write_description(
        context.folder,
        model,
        base=str(inputs["base"]) if lora else None,
        tokenizer=str(inputs["tokenizer"]),
        # Asked in another format than it was trained in, a model is another model.
        chat=first.params["chat"] | {"name": first.params["model_name"]},
        arrays=context.arrays,
    )
    checkpoint.save_params(f"{context.arrays or context.folder}/final", state.params)


def describe_batch(tokenizer: Any, batch: Mapping[str, Any]) -> str:
    """The first row of each source in a batch as text, what is trained between « and »."""
    from msm_jax.data.chat import show

    _, rows = np.unique(batch["source"], return_index=True)
    return "\n\n".join(show(tokenizer, *(batch[name][row] for name in ("tokens", "mask", "segments"))) for row in rows)


def load_weights(folder: pathlib.Path, model: Any, runtime: Runtime, dtype: str | None = None) -> PyTree:
    """Weights of a training stage, or of a base, on the mesh: the base's, or the adapter's if `model` has one.

    Args:
      dtype: of matrices; None: float32.
    """
    from msm_jax.models import Execution

    model = dataclasses.replace(model, execution=Execution())
    return _load_weights(folder, model, tuple(runtime.mesh.items()), dtype or "float32")


@functools.lru_cache(maxsize=2)  # the base, which every arm shares, and an adapter
def _load_weights(folder: pathlib.Path, model: Any, mesh_shape: tuple[tuple[str, int], ...], dtype: str) -> PyTree:
    from msm_jax import weights
    from msm_jax.models import quantize
    from msm_jax.parallel import make_mesh

    stored = weights.open_model(folder)
    if (stored.decoder, stored.lora) != (model.config, model.lora):
        raise UserError(f"{folder}: holds another model than the stage that asks for it; delete the folder")
    try:
        params = weights.load(stored, make_mesh(dict(mesh_shape)), dtype)
        return quantize(params) if model.int8_base and not model.lora else params
    except UserError as error:
        if not stored.ours:
            raise
        raise UserError(f"{error}; delete {folder}, and the same command makes it anew") from None


def padded(vocab_size: int) -> int:
    """Rows of the embedding: a multiple of 128 divides among chips and fills their tiles."""
    return -(-vocab_size // 128) * 128


def report(context: StageContext) -> dict[str, Any]:
    """Gathers all scores into `report.html`, figures and `report.json`. Inputs: `score:ARM:SEED`, `control`, others
    for their manifests."""
    import datetime

    from eval.report import write_report

    config, arms = context.params["config"], context.params["arms"]
    manifests = {role: files.read_json(folder / "manifest.json") for role, folder in context.inputs.items()}
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
            counts |= {key: summary.get(key, 0) for key in ("truncated", "dropped")}  # workdirs of before lack them
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
