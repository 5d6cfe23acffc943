"""A checkpoint that exists, as the base of an experiment."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.errors import UserError
from msm_jax.stages.artifacts import load_tokenizer
from msm_jax.stages.graph import StageContext
from msm_jax.storage.progress import tell


def find_base(context: StageContext) -> dict[str, Any]:
    """A checkpoint that exists: its shape, and what lies beside its weights. The weights stay where they are, and are
    fetched by the first stage that needs them."""
    from msm_jax.checkpoints import weights
    from msm_jax.checkpoints.sources import copy_small_files
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
    copy_small_files(stored.tokenizer, context.folder / weights.KEPT_FOLDER)
    weights.write_description(context.folder, stored.model, tokenizer=str(context.folder), source=source)
    return {"parameters": count_parameters(stored.model.shapes), **source}


def identity_of_adapter(path: str, base: Mapping[str, Any]) -> str:
    """What tells an adapter from others, wherever it lies: each byte of its weights. `base`: {"path", "revision"}.
    Raises: UserError if it is none, or does not fit the base."""
    from msm_jax.checkpoints import weights

    _, stored = weights.locate(base["path"], base["revision"] or None)
    return weights.fingerprint_of(weights.open_adapter(path, stored))


def find_adapter(
    context: StageContext, *, path: str, runtime: Any, chat: Mapping[str, Any], who: str
) -> dict[str, Any]:
    """An adapter that exists, of ours or of `peft`, over the base of input `base`: its weights, in float32. One that
    was trained in another chat format than `chat`, or under another name than `who`, is told of. Summary: {"path",
    "rank"}."""
    import jax

    from msm_jax.checkpoints import orbax, weights
    from msm_jax.parallel import make_mesh

    stored = weights.open_adapter(path, weights.open_model(context.inputs["base"]))
    params = weights.load(stored, make_mesh(runtime.mesh))
    if jax.process_index() == 0:
        trained, asked = dict(stored.chat or {}), {**chat, "name": who}
        if differ := sorted(name for name in trained.keys() & asked.keys() if trained[name] != asked[name]):
            fields = ", ".join(f"{name} {trained[name]!r}, not {asked[name]!r}"[:120] for name in differ)
            tell(f"{path}: was trained with {fields}; asked in another format a model is another model")
        kept = {"base": str(context.inputs["base"]), "tokenizer": str(context.inputs["base"]), "chat": stored.chat}
        weights.write_description(context.folder, stored.model, **kept, arrays=context.arrays)
    context.send()
    orbax.save_params(f"{context.arrays or context.folder}/final", params)
    return {"path": path, "rank": stored.lora.rank}


def check_base(folder: pathlib.Path, path: str, row_length: int, answer_length: int, chat: Mapping[str, Any]) -> None:
    """That the base at `folder`, which the user calls `path`, can be trained as an experiment asks, on chats that
    `chat` describes. Not a part of the stage, which experiments of other rows and chats share.

    Raises: UserError.
    """
    from msm_jax.checkpoints.weights import read_description, tokenizer_folder
    from msm_jax.data.jinja_template import make_template

    try:
        make_template(chat, tokenizer_folder(folder))
    except UserError as error:
        raise UserError(f"config.chat: {error}") from None
    limit = read_description(folder).config.max_length
    if limit and row_length > limit:
        raise UserError(f"config.row_length={row_length} is more than the {limit} tokens that {path} was made for")
    if limit and answer_length >= limit:
        raise UserError(
            f"config.eval.max_tokens={answer_length} leaves no room for a question in the {limit} tokens that "
            f"{path} was made for"
        )


def check_questions(
    folder: pathlib.Path, path: str, name: str, questions: Sequence[Mapping[str, Any]], answer: int,
    chat: Mapping[str, Any], who: str,
) -> None:  # fmt: skip
    """That the longest question of an evaluation, config.NAME, and an answer of `answer` tokens fit the base. Raises:
    UserError."""
    from msm_jax.checkpoints.weights import read_description, tokenizer_folder
    from msm_jax.data import conversation
    from msm_jax.data.jinja_template import make_template

    limit = read_description(folder).config.max_length
    template, tokenizer = make_template(chat, tokenizer_folder(folder)), load_tokenizer(folder)
    longest = max(questions, key=lambda question: sum(len(message["content"]) for message in question["messages"]))
    asked = conversation.render(template, who, longest["messages"], ())
    if limit and (count := len(conversation.encode(tokenizer, template, asked))) + answer > limit:
        raise UserError(
            f"config.{name}.max_tokens={answer}: a question has {count:,} tokens, and {path} was made for {limit:,} in "
            f"all; lower it, choose another base, or leave {name} out of config.evaluations"
        )
