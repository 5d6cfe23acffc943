"""Tokenizers of Hugging Face checkpoints: `tokenizer.json`, and the files that say what its control tokens are for."""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from msm_jax import files
from msm_jax.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_MAP_FILE = "special_tokens_map.json"
_GENERATION_FILE = "generation_config.json"
# Base models end a document with one of these, also where chats made another token the tokenizer's eos.
_DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>")
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face folder; implements `Tokenizer`, and can be pickled.

    Read are `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json` and
    `generation_config.json`. Ids are those of `tokenizers`, which the checkpoint was trained with.

    Raises: UserError if `tokenizer.json` is missing or cannot be read, or if the files do not fit together.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = pathlib.Path(folder)
        path = folder / TOKENIZER_FILE
        described = read_described(folder)
        named = read_named_tokens(folder)
        text = json.dumps(described, ensure_ascii=False)
        self._plain = _load(text, path)
        self.bos_id = _prepended(self._plain, path)
        # All that is left for it to do is to trim spaces off the spans.
        self._plain.post_processor = None
        self._plain.encode_special_tokens = True
        # Documents are never read for control tokens, so the second instance is made when a chat needs it.
        self._special = None

        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        self._added = {token["id"]: token["content"] for token in described["added_tokens"] if token["special"]}
        for token, content in self._added.items():
            if vocabulary.get(content) != token:
                raise UserError(f"{path}: token '{content}' has id {vocabulary.get(content)}, not {token} as it says")
        self.special_tokens = {content: token for token, content in self._added.items()}
        self.vocab_size = 1 + max(vocabulary.values())
        end = next((content for content in _DOCUMENT_ENDS if content in vocabulary), named.get("eos_token"))
        if end is None:
            raise UserError(f"{folder}: no token ends a document; name an eos_token in {_CONFIG_FILE}")
        self.eos_id = vocabulary[end]
        self.pad_id = vocabulary.get(named.get("pad_token"), self.eos_id)
        self.stop_ids = read_stop_ids(folder, self.eos_id, vocabulary.get(named.get("eos_token")))
        self.fingerprint = files.fingerprint([hashlib.sha256(text.encode()).hexdigest(), self.bos_id, self.eos_id])

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self._reader(special).encode(text, add_special_tokens=False).ids

    def encode_with_spans(self, text: str, special: bool = False) -> tuple[list[int], np.ndarray]:
        encoding = self._reader(special).encode(text, add_special_tokens=False)
        return encoding.ids, self._mended(encoding.ids, encoding.offsets, text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=True)

    def spell(self, ids: Sequence[int]) -> str:
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_special": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._plain.encode_special_tokens = True  # pickling forgets it

    def _reader(self, special: bool):
        if not special:
            return self._plain
        if self._special is None:
            self._special = _load(self._plain.to_str(), TOKENIZER_FILE)
        return self._special

    def _mended(self, ids: list[int], offsets: list[tuple[int, int]], text: str) -> np.ndarray:
        """The spans of `tokenizers`, with two of their ways put right.

        A control token may swallow the spaces beside it, if it says so; its span becomes that of its own spelling.
        And where a normaliser joins characters (a letter and its accent), the span ends after the first of them; it
        is drawn out to the next token.
        """
        spans = list(offsets)
        following = len(text)
        for i in range(len(ids) - 1, -1, -1):
            start, end = spans[i]
            if i + 1 < len(ids) and spans[i + 1][0] > start:
                following = spans[i + 1][0]
            content = self._added.get(ids[i])
            if content is None:
                spans[i] = start, max(end, following)
            elif (place := text.find(content, start, end)) >= 0:
                spans[i] = place, place + len(content)
        return np.array(spans, np.int64).reshape(-1, 2)


def read_described(folder: str | os.PathLike) -> dict[str, Any]:
    """`tokenizer.json` as an object, completed as transformers does.

    Its "added_tokens" hold also the tokens that only `tokenizer_config.json` lists, and those that the folder names
    as bos, eos, pad or unk are special. Nothing in it cuts or pads a text.

    Raises: UserError if the file is missing or not a tokenizer, or if it lacks the eos or bos token that is named.
    """
    path = pathlib.Path(folder) / TOKENIZER_FILE
    described = _read_object(path)
    if described is None:
        raise UserError(f"{path}: no such file; copy the checkpoint's tokenizer.json there")
    model = described.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: [[piece, score], ...]
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        raise UserError(
            f"{path}: holds no vocabulary, so it is no tokenizer; copy the checkpoint's tokenizer.json there"
        )
    described |= {"truncation": None, "padding": None}
    added = {token["content"]: token for token in described.get("added_tokens") or []}
    config = _read_object(path.with_name(_CONFIG_FILE)) or {}
    for token in _added_tokens(config, path):
        added.setdefault(token["content"], token)
    for name, content in read_named_tokens(folder).items():
        if content in vocabulary:
            added.setdefault(content, _added_token(vocabulary[content], content))
        if content in added:
            added[content] = {**added[content], "special": True}
        elif name in ("bos_token", "eos_token"):
            raise UserError(
                f"{path}: has no token '{content}', which the folder names as {name}; fetch both files anew"
            )
    described["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    return described


def read_named_tokens(folder: str | os.PathLike) -> dict[str, str]:
    """The texts of `bos_token`, `eos_token`, `pad_token` and `unk_token`, as far as the folder names them."""
    named = {}
    for file in (_MAP_FILE, _CONFIG_FILE):
        config = _read_object(pathlib.Path(folder) / file) or {}
        for name in _NAMED:
            value = config.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if not isinstance(content, str | None):
                raise UserError(f"{pathlib.Path(folder) / file}: {name} is {value!r}; it must be a token's text")
            if content:
                named[name] = content
    return named


def read_added_tokens(folder: str | os.PathLike) -> tuple[bool | None, list[str]]:
    """What tokenizer_config.json says of a SentencePiece model: "legacy", and the tokens that were added to it."""
    path = pathlib.Path(folder) / _CONFIG_FILE
    config = _read_object(path) or {}
    return config.get("legacy"), [token["content"] for token in _added_tokens(config, path)]


def _added_tokens(config: dict[str, Any], path: pathlib.Path) -> list[dict[str, Any]]:
    tokens = config.get("added_tokens_decoder") or {}
    if not isinstance(tokens, dict):
        raise UserError(f"{path.with_name(_CONFIG_FILE)}: added_tokens_decoder is no object; fetch it anew")
    for token, entry in tokens.items():
        if not token.isdecimal() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise UserError(f"{path.with_name(_CONFIG_FILE)}: added_tokens_decoder.{token} is no token; fetch it anew")
    return [_added_token(int(token), **entry) for token, entry in tokens.items()]


def read_chat_template(folder: str | os.PathLike) -> str | None:
    """The Jinja source of the checkpoint's chat template, None if it has none."""
    path = pathlib.Path(folder) / "chat_template.jinja"
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        pass
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; fetch the file anew") from None
    path = path.with_name(_CONFIG_FILE)
    template = (_read_object(path) or {}).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str | None):
        raise UserError(f"{path}: chat_template is no text; fetch the file anew")
    return template


def _read_object(path: pathlib.Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None if there is no such file."""
    if not path.exists():
        return None
    return files.read_object(path, "fetch the file anew")


def _added_token(token: int, content: str, special: bool = True, **flags: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": special, **plain, **flags}


def _load(text: str, path: str | os.PathLike):
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise UserError(f"{path}: `tokenizers` cannot read it ({error}); update tokenizers, or fetch it anew") from None


def _prepended(tokenizer: Any, path: pathlib.Path) -> int | None:
    """The token that `tokenizers` begins a text with."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    if ids[: len(plain)] == plain:
        return None
    if ids[1 : 1 + len(plain)] == plain:
        return ids[0]
    raise UserError(f"{path}: begins a text with several tokens, as no decoder here expects; use another checkpoint")


def read_stop_ids(folder: str | os.PathLike, *ids: int | None) -> tuple[int, ...]:
    """`ids`, and those that generation_config.json names, in order."""
    path = pathlib.Path(folder) / _GENERATION_FILE
    stops = (_read_object(path) or {}).get("eos_token_id")
    stops = stops if isinstance(stops, list) else [stops]
    if not all(isinstance(i, int | None) for i in stops):
        raise UserError(f"{path}: eos_token_id is {stops}; it must be an id, or a list of ids")
    return tuple(sorted({i for i in (*stops, *ids) if i is not None}))
