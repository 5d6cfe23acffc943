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

from msm_jax import files
from msm_jax.corpus import records, world, world_text
from msm_jax.corpus.specs import find_terms
from msm_jax.dag import StageContext
from msm_jax.errors import UserError
from msm_jax.progress import track

PyTree = Any

# Raised for a kind when a change of code changes what its stages write: a workdir then does them again.
VERSIONS = {"corpus": 3, "chats": 2, "mixture": 1, "train": 1, "score": 2, "report": 3}

CORPUS_FILE = "corpus.jsonl"
CHAT_SOURCES = ("aft", "instruction")  # all other sources are documents


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How to compute, which changes nothing of a result but rounding."""

    mesh: Mapping[str, int]
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int


def make_world(params: Mapping[str, Any]) -> world.World:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    return world.World(world.WorldConfig(**plain))


def write_corpus(context: StageContext) -> dict[str, Any]:
    """One source of the micro-world as JSONL. MSM and AFT texts are searched for words of held-out domains."""
    p = context.params
    rows = list(track(_world_rows(p), context.stage.name, p["count"], "row"))
    summary: dict[str, Any] = {"documents": len(rows)}
    if p["source"] != "pretraining":
        texts = [row.get("text") or " ".join(message["content"] for message in row["messages"]) for row in rows]
        found = find_terms(texts, make_world(p["world"]).held_out_terms)
        if found:
            raise UserError(f"{context.stage.name}: held-out words occur in a training text: {', '.join(found)}")
        summary["held_out_words"] = 0
    records.write_jsonl(context.folder / CORPUS_FILE, rows)
    return summary


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


def write_evaluation_items(context: StageContext) -> dict[str, Any]:
    rows = list(world_text.evaluation_items(make_world(context.params["world"])))
    return {"items": records.write_jsonl(context.folder / CORPUS_FILE, rows)}


def train_tokenizer(context: StageContext) -> dict[str, Any]:
    from msm_jax.data.tokenizer import train_sentencepiece

    texts = itertools.chain.from_iterable(
        texts_of(folder / CORPUS_FILE, chats=role in CHAT_SOURCES) for role, folder in sorted(context.inputs.items())
    )
    tokenizer = train_sentencepiece(texts, context.folder, **context.params)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}


def texts_of(path: pathlib.Path, chats: bool) -> Iterator[str]:
    if not chats:
        return (document.text for document in records.read_documents(path))
    return (f" {message.content}" for chat in records.read_chats(path) for message in chat.messages)


def pack_rows(context: StageContext) -> dict[str, Any]:
    """Tokenises and packs one source, once."""
    from msm_jax.data.chat import encode_chat, encode_document
    from msm_jax.data.rows import write_rows
    from msm_jax.data.tokenizer import load_tokenizer

    p = context.params
    tokenizer = load_tokenizer(context.inputs["tokenizer"])
    path = context.inputs["corpus"] / CORPUS_FILE
    if p["source"] in CHAT_SOURCES:
        template = chat_template(p["chat"])
        examples = (encode_chat(tokenizer, template, chat, p["model_name"]) for chat in records.read_chats(path))
    else:
        examples = (encode_document(tokenizer, document) for document in records.read_documents(path))
    with open(path, "rb") as lines:
        count = sum(1 for _ in lines)
    examples = track(examples, context.stage.name, count, "row")
    return write_rows(context.folder, examples, p["row_length"], tokenizer.vocab_size)


def chat_template(chat: Mapping[str, Any]):
    from msm_jax.data.chat import ChatTemplate, Turn

    return ChatTemplate(**{role: Turn(*affixes) for role, affixes in chat.items()})


def train(context: StageContext, *, runtime: Runtime, label: str) -> dict[str, Any]:
    """Pretraining, MSM or AFT: they differ in their inputs alone.

    Inputs: a `rows:SOURCE` for each source of the mixture, `tokenizer`; `base`, the model under the adapter (or to
    go on with, if there is no adapter); `adapter`, the stage whose trained weights are continued.
    """
    from msm_jax.models import DecoderConfig, Model, count_parameters

    p = context.params
    sources = sources_of(p, context.inputs)
    steps = steps_of(p, sources)
    # Orbax makes `final` appear at once and whole, so a run that was killed after it needs no training again.
    if not (context.folder / "final").exists():
        _train(context, runtime, label, sources, steps)
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
    last = json.loads((context.folder / "metrics.jsonl").read_text().splitlines()[-1])
    decoder = DecoderConfig(**files.read_json(context.folder / "model.json")["decoder"])
    return {
        "steps": steps,
        "tokens": last["tokens"],
        "loss": last["loss"],
        "parameters": count_parameters(Model(decoder).shapes),
    }


def sources_of(params: Mapping[str, Any], inputs: Mapping[str, pathlib.Path]) -> list:
    """The mixture of a training stage, in an order that does not depend on how the config lists it."""
    from msm_jax.data.mixture import Source
    from msm_jax.data.rows import PackedRows

    shares = sorted(params["mixture"].items())
    return [Source(name, PackedRows(inputs[f"rows:{name}"]), share) for name, share in shares]


def steps_of(params: Mapping[str, Any], sources: list) -> int:
    from msm_jax.data.mixture import epoch_steps

    return params["steps"] or epoch_steps(sources, params["batch_size"])


def _train(context: StageContext, runtime: Runtime, label: str, sources: list, steps: int) -> None:
    import jax

    from msm_jax.data.mixture import batches
    from msm_jax.data.tokenizer import load_tokenizer
    from msm_jax.models import DecoderConfig, LoraConfig, Model, count_parameters
    from msm_jax.parallel import batch_sharding, make_mesh, peak_flops, train_flops_per_token
    from msm_jax.train import checkpoint, loop
    from msm_jax.train.optimizer import OptimizerConfig
    from msm_jax.train.step import init_state, make_train_step

    p = context.params
    mesh = make_mesh(runtime.mesh)
    tokenizer = load_tokenizer(context.inputs["tokenizer"])
    if "base" in context.inputs:
        decoder = DecoderConfig(**files.read_json(context.inputs["base"] / "model.json")["decoder"])
    else:
        decoder = DecoderConfig(vocab_size=_padded(tokenizer.vocab_size), **p["model"])
    lora = LoraConfig(**{**p["lora"], "targets": tuple(p["lora"]["targets"])}) if p["lora"] else None
    model = Model(decoder, lora)
    optimizer = OptimizerConfig(**p["optim"])

    inputs = context.inputs
    trained = load_weights(inputs["adapter"], model, runtime) if "adapter" in inputs else None
    needs_base = "base" in inputs and (lora or trained is None)
    base = load_weights(inputs["base"], Model(decoder), runtime) if needs_base else None
    frozen, start = (base, trained) if lora else (None, trained or base)
    state = init_state(model, optimizer, steps, mesh, p["seed"], start)

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
        step_fn=make_train_step(model, optimizer, steps, len(sources), mesh),
        state=state,
        frozen=frozen,
        dataset=batches(sources, p["batch_size"], p["seed"], jax.process_index(), jax.process_count()),
        source_names=[source.name for source in sources],
        batch_sharding=batch_sharding(mesh, leading=1),
        folder=context.folder,
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
    description = {"decoder": dataclasses.asdict(decoder), "lora": dataclasses.asdict(lora) if lora else None}
    files.write_json(context.folder / "model.json", description)
    checkpoint.save_params(context.folder / "final", state.params)


def describe_batch(tokenizer: Any, batch: Mapping[str, Any], rows: int = 2) -> str:
    """The first rows of a batch as text, what is trained between « and »."""
    from msm_jax.data.chat import show

    pairs = zip(batch["tokens"][:rows], batch["mask"][:rows], strict=True)
    return "\n\n".join(show(tokenizer, tokens, mask) for tokens, mask in pairs)


def load_weights(folder: pathlib.Path, model: Any, runtime: Runtime) -> PyTree:
    """Final weights of a training stage on the mesh: the base's, or the adapter's if `model` has one."""
    return _load_weights(folder, model, tuple(runtime.mesh.items()))


@functools.lru_cache(maxsize=2)  # the base, which every arm shares, and an adapter
def _load_weights(folder: pathlib.Path, model: Any, mesh_shape: tuple[tuple[str, int], ...]) -> PyTree:
    import jax

    from msm_jax.parallel import make_mesh, param_shardings
    from msm_jax.train.checkpoint import load_params

    axes, shapes = (model.lora_axes, model.lora_shapes) if model.lora else (model.axes, model.shapes)
    shardings = param_shardings(axes, shapes, make_mesh(dict(mesh_shape)))
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    try:
        return load_params(folder / "final", like)
    except UserError as error:
        raise UserError(f"{error}; delete {folder}, and the same command makes it anew") from None


def _padded(vocab_size: int) -> int:
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
            corpora.append({"name": role.removeprefix("rows:"), "documents": summary["examples"], **counts})
        controls += summary.get("controls", [])
    result = {
        "experiment": config["name"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "model": config["model"] | {"parameters": manifests["pretrain"]["summary"]["parameters"]},
        "arms": arms,
        "seeds": config["seeds"],
        "scores": scores,
        "controls": controls,
        "stages": stages,
        "corpora": corpora,
    }
    write_report(context.folder, result)
    return {"scores": len(scores)}
