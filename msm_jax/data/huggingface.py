"""Tokenizers of Hugging Face checkpoints: `tokenizer.json`, and the files that say what its control tokens are for."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from msm_jax.corpus.records import check_text
from msm_jax.errors import UserError
from msm_jax.storage import files

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_MAP_FILE = "special_tokens_map.json"
# Base models end a document with one of these, also where chats made another token the tokenizer's eos.
_DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>")
_LONG = 1 << 15  # characters
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # how vocabularies made from SentencePiece spell a byte
# In the order in which transformers adds those that tokenizer.json lacks.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face folder; implements `Tokenizer`, and can be pickled.

    Read are `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json` and
    `added_tokens.json`. Ids are those of `tokenizers`, which the checkpoint was trained with. An added token for which
    the embedding has no row, as a padding token that a trainer named, is no part of the vocabulary, and a text that
    spells it an error.

    Args: rows: of the embedding; None: as many as config.json says, if there is one.
    Raises: UserError if `tokenizer.json` is missing or cannot be read, or if the files do not fit together.
    """

    def __init__(self, folder: str | os.PathLike, rows: int | None = None):
        folder = pathlib.Path(folder)
        path = folder / TOKENIZER_FILE
        described, named = read_described(folder), read_named_tokens(folder)
        text = json.dumps(described, ensure_ascii=False)
        self._plain = _load(text, path)
        self.bos_id = _prepended(self._plain, path)
        # All that is left for it to do is to trim spaces off the spans.
        self._plain.post_processor = None
        self._plain.encode_special_tokens = True
        self._special = None  # which reads control tokens: made when a chat needs it

        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        self._added = {token["id"]: token["content"] for token in described["added_tokens"] if token["special"]}
        for token, content in self._added.items():
            if vocabulary.get(content) != token:
                raise UserError(f"{path}: token '{content}' has id {vocabulary.get(content)}, not {token} as it says")
        self.special_tokens = {content: token for token, content in self._added.items()}
        self._folder = str(folder)
        self._rows = rows or _read_object(folder / "config.json").get("vocab_size")
        added = {token["content"]: token["id"] for token in described["added_tokens"]}
        self.added_tokens = {content: i for content, i in added.items() if content not in self.special_tokens}
        self._rowless = {i: content for content, i in added.items() if isinstance(self._rows, int) and i >= self._rows}
        self.vocab_size = 1 + max(set(vocabulary.values()) - self._rowless.keys())
        ends = (content for content in _DOCUMENT_ENDS if vocabulary.get(content, -1) not in {-1, *self._rowless})
        end = next(ends, named.get("eos_token"))
        if end is None:
            raise UserError(f"{folder}: no token ends a document; name an eos_token in {_CONFIG_FILE}")
        self.eos_id = vocabulary[end]
        self._check_rows([self.bos_id, self.eos_id])
        pad = vocabulary.get(named.get("pad_token"), self.eos_id)
        self.pad_id = self.eos_id if pad in self._rowless else pad
        self.byte_ids = frozenset(i for piece, i in vocabulary.items() if _BYTE.fullmatch(piece))
        self.fingerprint = files.fingerprint([hashlib.sha256(text.encode()).hexdigest(), self.bos_id, self.eos_id])

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self._encoding(text, special).ids

    def encode_with_spans(self, text: str, special: bool = False) -> tuple[list[int], np.ndarray]:
        encoding = self._encoding(text, special)
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

    def _encoding(self, text: str, special: bool):
        check_text(text, "text")
        if special and self._special is None:
            self._special = _load(self._plain.to_str(), TOKENIZER_FILE)
        tokenizer = self._special if special else self._plain
        if len(text) < _LONG:
            encoding = tokenizer.encode(text, add_special_tokens=False)
        else:  # `encode` holds Python's lock all the while, which other threads wait for
            [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)
        self._check_rows(encoding.ids)
        return encoding

    def _check_rows(self, ids: Sequence[int]) -> None:
        if self._rowless and (odd := self._rowless.keys() & set(ids)):
            token = min(odd)
            raise UserError(
                f"{self._folder}: token '{self._rowless[token]}' has id {token}, for which the embedding of "
                f"{self._rows} rows has none; use it nowhere, or resize the embedding"
            )

    def _mended(self, ids: list[int], offsets: list[tuple[int, int]], text: str) -> np.ndarray:
        """The spans of `tokenizers`, with two of their ways put right: a control token may swallow the spaces beside
        it, and where a normaliser joins characters (a letter and its accent), a span ends after the first of them."""
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
    """`tokenizer.json` as an object, completed as transformers does: its "added_tokens" hold also those that only the
    files beside it list, and those that the folder names as bos, pad and the like are special. Nothing in it cuts or
    pads a text. Raises: UserError if it is missing or no tokenizer, or lacks the eos or bos token that is named."""
    path = pathlib.Path(folder) / TOKENIZER_FILE
    if not path.exists():
        raise UserError(f"{path}: no such file; copy the checkpoint's tokenizer.json there")
    described = _read_object(path)
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
    for token in _added_tokens(path.parent):
        known = added.get(token["content"], {})
        kept = {"id": known.get("id", token["id"]), "special": token["special"] or known.get("special", False)}
        added[token["content"]] = {**known, **token, **kept}
    for name, content in [*read_named_tokens(folder).items(), *(("", token) for token in _extra_tokens(path.parent))]:
        if content not in added:
            if content not in vocabulary and name in ("bos_token", "eos_token"):
                raise UserError(
                    f"{path}: has no token '{content}', which the folder names as {name}; fetch both files anew"
                )
            new = max([len(vocabulary), *(1 + token["id"] for token in added.values())])
            added[content] = _added_token(vocabulary.get(content, new), content)
        elif name:
            added[content] = {**added[content], "special": True}
    described["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    return described


def read_named_tokens(folder: str | os.PathLike) -> dict[str, str]:
    """The texts of `bos_token`, `pad_token` and whatever tokens else the folder names, by their names.

    Where the files differ, special_tokens_map.json is right, as in transformers, but not beside an
    `added_tokens_decoder`: who writes that keeps no map, so the file is an older one.
    """
    named, paths = {}, [pathlib.Path(folder) / file for file in (_CONFIG_FILE, _MAP_FILE)]
    if "added_tokens_decoder" in _read_object(paths[0]):
        paths.reverse()
    for path in paths:
        config = _read_object(path)
        more = config.get("extra_special_tokens")
        config |= more if isinstance(more, dict) else {}
        own = [name for name, value in config.items() if name.endswith("_token") and isinstance(value, str | dict)]
        for name in [*_NAMED, *own]:
            content = _content(config.get(name))
            if not isinstance(content, str | None):
                raise UserError(f"{path}: {name} is {config[name]!r}; it must be a token's text")
            if content:
                named[name] = content
    return {name: named[name] for name in [*_NAMED, *named] if name in named}


def read_added_tokens(folder: pathlib.Path) -> tuple[bool | None, list[str]]:
    """What tokenizer_config.json says of a SentencePiece model: "legacy", and the tokens that were added to it."""
    added = [token["content"] for token in _added_tokens(folder)]
    return _read_object(folder / _CONFIG_FILE).get("legacy"), [*added, *_extra_tokens(folder)]


def _extra_tokens(folder: pathlib.Path) -> list[str]:
    """The special tokens without a name that tokenizer_config.json lists; or special_tokens_map.json, which is an old
    one where there is an `added_tokens_decoder`."""
    config = _read_object(folder / _CONFIG_FILE)
    lists = []
    for said in (config, {} if "added_tokens_decoder" in config else _read_object(folder / _MAP_FILE)):
        extra = said.get("extra_special_tokens")
        lists += (isinstance(extra, list) and extra) or said.get("additional_special_tokens") or []
    contents = [_content(token) for token in lists]
    if not all(isinstance(content, str) for content in contents):
        raise UserError(f"{folder / _CONFIG_FILE}: its list of special tokens has other than texts; fetch it anew")
    return contents


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _added_tokens(folder: pathlib.Path) -> list[dict[str, Any]]:
    config, path = _read_object(folder / _CONFIG_FILE), folder / _CONFIG_FILE
    if "added_tokens_decoder" not in config:  # files of before have them in one of their own, as {content: id}
        older = _read_object(folder / "added_tokens.json")
        if not all(type(token) is int for token in older.values()):
            raise UserError(f"{folder / 'added_tokens.json'}: not an object of tokens and their ids; fetch it anew")
        tokens = [_added_token(older[content], content, False, normalized=True) for content in older]
        return sorted(tokens, key=lambda token: token["id"])
    tokens = config["added_tokens_decoder"] or {}
    if not isinstance(tokens, dict):
        raise UserError(f"{path}: added_tokens_decoder is no object; fetch it anew")
    for token, entry in tokens.items():
        if not token.isdecimal() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise UserError(f"{path}: added_tokens_decoder.{token} is no token; fetch it anew")
    return [_added_token(int(token), **entry) for token, entry in tokens.items()]


def read_chat_template(folder: str | os.PathLike) -> str | None:
    """The Jinja source of the checkpoint's chat template, None if it has none."""
    path = pathlib.Path(folder) / TEMPLATE_FILE
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        pass
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; fetch the file anew") from None
    path = path.with_name(_CONFIG_FILE)
    template = default_template(_read_object(path).get("chat_template"))
    if not isinstance(template, str | None):
        raise UserError(f"{path}: chat_template is no text; fetch the file anew")
    return template


def default_template(value: Any) -> Any:
    """Of `chat_template` in a JSON file, which may be a list: the one that is named "default"."""
    if not isinstance(value, list):
        return value
    named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
    return named[0].get("template") if named else None


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in `path`, an empty one if there is no such file."""
    return files.read_object(path, "fetch the file anew") if path.exists() else {}


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


def read_eos_ids(path: pathlib.Path) -> set[int]:
    """What a generation_config.json or a config.json names as eos_token_id; nothing where there is no such file."""
    ids = _read_object(path).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(type(i) is not int for i in ids):
        raise UserError(f"{path}: eos_token_id is {ids}; it must be an id, or a list of ids")
    return set(ids)
