"""What stages read of each other's folders."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from msm_jax.corpus import records
from msm_jax.errors import UserError
from msm_jax.storage import files

CORPUS_FILE = "corpus.jsonl"


def texts_of(path: pathlib.Path, chats: bool) -> Iterator[str]:
    if not chats:
        return (document.text for document in records.read_documents(path))
    return (f" {message.content}" for chat in records.read_chats(path) for message in chat.messages)


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
