"""Corpora -> a tokenizer, and packed rows."""

import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msm_jax.corpus import records
from msm_jax.corpus.filters.contamination import Contamination
from msm_jax.errors import UserError
from msm_jax.eval import open_qa, side_effects, values
from msm_jax.microworld import prose, world_text
from msm_jax.stages.artifacts import CORPUS_FILE, chat_template, load_tokenizer, texts_of
from msm_jax.stages.corpora import make_world
from msm_jax.stages.graph import Kind, StageContext
from msm_jax.storage.progress import tell, track


def train_tokenizer(context: StageContext) -> dict[str, Any]:
    from msm_jax.data.tokenizer import train_sentencepiece

    texts = itertools.chain.from_iterable(
        texts_of(context.inputs[role] / CORPUS_FILE, chats=corpus.kind is Kind.CHATS)
        for role, corpus in sorted(context.stage.inputs.items())
    )
    tokenizer = train_sentencepiece(texts, context.folder, **context.params)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}


def pack_rows(context: StageContext) -> dict[str, Any]:
    """Tokenises and packs one source, once. A chat longer than a row is cut there, a longer document goes on in the
    next row. A chat that the template cannot write is left out, and all of them are an error."""
    from msm_jax.data.chat import TooLong, Unwritable, encode_chat, encode_document
    from msm_jax.data.rows import write_rows

    p = context.params
    tokenizer = load_tokenizer(context.inputs["tokenizer"])
    path = context.inputs["corpus"] / CORPUS_FILE
    if context.stage.inputs["corpus"].kind is Kind.CHATS:
        template = chat_template(p["chat"], context.inputs["tokenizer"])
        encode = functools.partial(encode_chat, tokenizer, template, name=p["model_name"], max_tokens=p["row_length"])
        documents = records.read_chats(path)
    else:
        encode, documents = functools.partial(encode_document, tokenizer), records.read_documents(path)
    lost = {"truncated": 0, "dropped": 0, "contaminated": 0}
    unwritable: list[str] = []
    contamination = Contamination(
        evaluation_prompts(asked["world"], asked["more"]) if (asked := p["evaluations"]) else ()
    )

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


def _count_lines(path: pathlib.Path) -> int:
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


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
        more = [*more, *values.prompts(), *open_qa.prompts(), *side_effects.prompts()]
    pairs = [(item["aligned"], item["other"]) for item in items if item["kind"] != "in_domain"]
    return list(dict.fromkeys([*more, *(ask(*order) for a, b in pairs for order in ((a, b), (b, a)))]))
