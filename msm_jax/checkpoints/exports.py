"""What lies beside the weights of an export, so that others read, write and end texts with it as we do."""

import contextlib
import pathlib
from typing import Any

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.families import config_of
from msm_jax.checkpoints.sources import small_files
from msm_jax.checkpoints.weights import Stored
from msm_jax.data.huggingface import TEMPLATE_FILE, default_template, read_chat_template, read_eos_ids
from msm_jax.data.jinja_template import load_chat_template
from msm_jax.data.stops import GENERATION_FILE, stop_ids
from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.errors import UserError
from msm_jax.storage import files
from msm_jax.storage.folders import Folder

# Of all the files beside weights, those that make a tokenizer.
_TOKENIZER_FILES = {
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", TEMPLATE_FILE, "chat_template.json"),
}


def write_beside(stored: Stored, whole: Stored, folder: pathlib.Path, dtype: str) -> None:
    """All that lay beside the weights that `whole` came from, config.json, and `write_texts`. What is exported is
    `stored`: `whole` itself, or an adapter that is merged into it. `dtype` is that of the weights."""
    kept = whole.tokenizer or weights.beside(whole)
    for name, content in (small_files(kept) if kept else {}).items():
        if name not in _TOKENIZER_FILES or stored.tokenizer == whole.tokenizer:
            Folder(folder).write(name, content)
    path = folder / "config.json"
    config = _described(path) or config_of(whole.decoder)
    named = [field for field in ("torch_dtype", "dtype") if config.get(field)] or ["torch_dtype"]
    # As the file was, unless a fine-tuned model is in another dtype than the one that it came from.
    if any(config.get(field) != dtype for field in named):
        files.write_json(path, config | dict.fromkeys(named, dtype))
    write_texts(stored, whole, folder)


def write_texts(stored: Stored, whole: Stored, folder: pathlib.Path) -> None:
    """The tokenizer of an adapter that has its own; the template of training, as the only one; and all that ends an
    answer, in generation_config.json."""
    if not stored.tokenizer:
        return
    if stored.tokenizer != whole.tokenizer:
        for name, content in small_files(stored.tokenizer).items():
            if name in _TOKENIZER_FILES:
                Folder(folder).write(name, content)
    texts = weights.local_tokenizer(stored.tokenizer)
    source = _write_template(folder, (stored.chat or {}).get("template")) or read_chat_template(texts)
    template = None
    with contextlib.suppress(UserError):  # who asks it in chats is told what is wrong with it
        template = load_chat_template(texts, source, for_training=False) if source else None
    beside = [weights.beside(one) for one in (whole, stored)]
    ids = stop_ids(load_tokenizer(texts), template, texts, *filter(None, beside))
    path = folder / GENERATION_FILE
    if set(ids) != read_eos_ids(path):
        files.write_json(path, _described(path) | {"eos_token_id": list(ids)})


def _described(path: pathlib.Path) -> dict[str, Any]:
    return files.read_object(path, "fetch the file anew") if path.exists() else {}


def _write_template(folder: pathlib.Path, trained: str | None) -> str | None:
    """Puts `trained`, else the template that the folder is read with, in all places that hold one. Returns it, or None
    if there is neither."""
    there = read_chat_template(folder)
    template = trained or there
    if not template:  # what we find none in, as a list without a default one, stays as it was
        return None
    if template != there:
        files.write_text(folder / TEMPLATE_FILE, template)
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        described = _described(path)
        if described.get("chat_template") and default_template(described["chat_template"]) != template:
            files.write_json(path, described | {"chat_template": template})
    return template
