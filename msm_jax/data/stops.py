"""What ends an answer: one set of ids for a model and its chat template, from every file that says something of it."""

import os
import pathlib

from msm_jax.data import huggingface
from msm_jax.data.chat import Template
from msm_jax.data.jinja_template import JinjaTemplate, closing_token
from msm_jax.data.tokenizer import Tokenizer
from msm_jax.errors import UserError

GENERATION_FILE = "generation_config.json"


def stop_ids(tokenizer: Tokenizer, template: Template | None, *folders: str | os.PathLike) -> tuple[int, ...]:
    """The ids, in order, of which each ends an answer.

    They are the end of a document; the eos_token of each folder; the ids that its generation_config.json and its
    config.json name as eos_token_id; and the control token with which `template` closes an answer. An id that
    config.json alone names and that spells text is left out where generation_config.json names others: transformers
    writes such ids as defaults, which belong to no tokenizer. `folders` are local, of a model and of its adapter.

    Raises: UserError if an eos_token is none of the tokenizer's, or if an eos_token_id is no id.
    """
    found = {tokenizer.eos_id}
    for folder in map(pathlib.Path, folders):
        if end := huggingface.read_named_tokens(folder).get("eos_token"):
            found.add(_id_of(tokenizer, end, f"{folder}: names '{end}' as eos_token"))
        named = huggingface.read_eos_ids(folder / GENERATION_FILE)
        of_model = huggingface.read_eos_ids(folder / "config.json")
        found |= named | {i for i in of_model if not named or not tokenizer.decode([i])}
    if isinstance(template, JinjaTemplate) and (close := closing_token(template)):
        found.add(_id_of(tokenizer, close, f"chat template: closes with '{close}'"))
    return tuple(sorted(i for i in found if 0 <= i < tokenizer.vocab_size))


def _id_of(tokenizer: Tokenizer, token: str, named_by: str) -> int:
    if token in tokenizer.special_tokens:
        return tokenizer.special_tokens[token]
    # Without a space that the tokenizer may put before it.
    ids = [i for i in tokenizer.encode(token, special=True) if tokenizer.decode([i])]
    if len(ids) != 1:
        raise UserError(f"{named_by}, which is no token of this tokenizer; put the tokenizer.json that has it there")
    return ids[0]
