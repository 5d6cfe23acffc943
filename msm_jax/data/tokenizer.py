"""Text <-> token ids, with the place of every token in the text. The tokenizers that we train lose nothing."""

import hashlib
import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import sentencepiece

from msm_jax.corpus.records import check_text
from msm_jax.data.huggingface import TOKENIZER_FILE, HuggingFaceTokenizer, read_added_tokens, read_named_tokens
from msm_jax.errors import UserError

_MODEL_FILE = "tokenizer.model"
_SPACE = "\u2581"  # how SentencePiece writes a space within a piece
_FIXED_PIECES = 4 + 256  # pad, bos, eos and unk, and one per byte


class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer.

    `decode(encode(text)) == text` for every text with tokenizers that we train. A checkpoint's own may normalise:
    Qwen's composes accents (NFC), a SentencePiece model may add a leading space.
    """

    vocab_size: int  # 1 + the highest id that it can spell; the embedding of the model may have more rows
    bos_id: int | None  # begins every text; None if the tokenizer begins texts with none (Qwen, SmolLM2)
    eos_id: int  # ends a document
    byte_ids: frozenset[int]  # tokens that spell one byte: what a run of them spells is known where it ends
    pad_id: int
    special_tokens: Mapping[str, int]  # the control tokens, as they are spelled in a chat that a template has rendered
    added_tokens: Mapping[str, int]  # others that were added: no control tokens, but read as one in any text
    fingerprint: str  # equal for two tokenizers only if they turn equal text into equal ids

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`; no bos or eos is added. With `special`, control tokens that it spells are read as such: for
        rendered chats only, since a document that mentions `<|im_end|>` must not end a turn."""

    def encode_with_spans(self, text: str, special: bool = False) -> tuple[list[int], np.ndarray]:
        """Ids, and int64 [n, 2]: token i spells `text[start:end]`, in characters; tokens that spell one character
        together (its bytes) all have the span of that character."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` spell; control tokens, and ids beyond the vocabulary, spell nothing."""

    def spell(self, ids: Sequence[int]) -> str:
        """As `decode`, with the control tokens in words."""


class SentencePieceTokenizer:
    """The SentencePiece model `folder/tokenizer.model`; implements `Tokenizer`, and can be pickled.

    `lossless` says whether the model keeps text as it is. Those of `train_sentencepiece` do; a checkpoint's may
    normalise text or add a leading space (Llama 2, Mistral), also after a control token.

    Raises: UserError if there is no such model, if it has no eos piece, or if the files beside it change what it does:
        transformers writes that into a tokenizer.json, which is read instead.
    """

    def __init__(self, folder: str | os.PathLike):
        path = pathlib.Path(folder) / _MODEL_FILE
        try:
            model = path.read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except RuntimeError:
            # Llama 3 has a file of this name in tiktoken's format.
            raise UserError(f"{path}: not a SentencePiece model; put the checkpoint's tokenizer.json there") from None
        self.vocab_size = self._model.vocab_size()
        bos, self.eos_id, pad = self._model.bos_id(), self._model.eos_id(), self._model.pad_id()  # -1: there is none
        if self.eos_id < 0:
            raise UserError(f"{path}: this model has no eos piece, which ends a document; use one that has it")
        self.bos_id, self.pad_id = bos if bos >= 0 else None, pad if pad >= 0 else self.eos_id
        self.byte_ids = frozenset(filter(self._model.is_byte, range(self.vocab_size)))
        controls = filter(self._model.is_control, range(self.vocab_size))
        self.special_tokens = {self._model.id_to_piece(i): i for i in controls}
        self.added_tokens = {}
        self.fingerprint = hashlib.sha256(model).hexdigest()[:12]
        self._chars = np.array([self._spelled_chars(i) for i in range(self.vocab_size)])
        self._space_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        probe = f"a  b\n\n c\u00a0\u0133\u2603{_SPACE} "
        self.lossless = True  # else the probe itself would be encoded the other way
        self.lossless = self.decode(self.encode(probe)) == probe
        self._check_folder(path)

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [i for _, part, known in self._parts(text, special) for i in known or self._model.encode(part)]

    def encode_with_spans(self, text: str, special: bool = False) -> tuple[list[int], np.ndarray]:
        ids, spans = [], [np.zeros((0, 2), np.int64)]
        for start, part, known in self._parts(text, special):
            if known is not None:
                new, places = known, np.tile([0, len(part)], (len(known), 1))
            elif self.lossless:  # as any version of the library can
                new = self._model.encode(part)
                chars = self._chars[np.array(new, np.intp)]
                ends = np.cumsum(chars)
                places = np.stack([ends - np.maximum(chars, 1), ends], axis=1)
            else:
                found = self._model.encode(part, out_type="offset_mapping")
                new, places = found["ids"], _widen(np.array(found["offsets"], np.int64).reshape(-1, 2))
            ids += new
            spans.append(places + start)
        return ids, np.concatenate(spans)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i < self.vocab_size])

    def spell(self, ids: Sequence[int]) -> str:
        specials = {i: piece for piece, i in self.special_tokens.items()}
        specials |= {self.pad_id: "", self.bos_id: "<bos>", self.eos_id: "<eos>"}
        text = ""
        for special, group in itertools.groupby(ids, specials.get):
            run = list(group)
            text += self.decode(run) if special is None else special * len(run)
        return text

    def _check_folder(self, path: pathlib.Path) -> None:
        legacy, wanted = read_added_tokens(path.parent)
        wanted += filter(None, [read_named_tokens(path.parent).get("eos_token")])
        missing = [token for token in wanted if self._model.id_to_piece(self._model.piece_to_id(token)) != token]
        if missing:
            raise UserError(
                f"{path}: lacks token {missing[0]}, which tokenizer_config.json or a file beside it names; "
                "put a tokenizer.json there"
            )
        if legacy is False and not self.lossless:
            raise UserError(f"{path}: tokenizer_config.json has legacy: false; put a tokenizer.json there")

    def _parts(self, text: str, special: bool) -> Iterator[tuple[int, str, list[int] | None]]:
        """(start, part, ids) of the parts of `text`; the ids are None where SentencePiece is to find them."""
        check_text(text, "text")
        known = {token: [i] for token, i in self.special_tokens.items()} if special else {}
        if self.lossless:
            # SentencePiece would read a literal U+2581 as a space, so it is spelled by its bytes.
            known[_SPACE] = self._space_ids
        start = 0
        for part in re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]:
            if part:
                yield start, part, known.get(part)
            start += len(part)

    def _spelled_chars(self, token: int) -> int:
        """How many characters begin in `token`: 0 for the second and later bytes of one."""
        piece = self._model.id_to_piece(token)
        return int(not 0x80 <= int(piece[1:-1], 16) < 0xC0) if self._model.is_byte(token) else len(piece)


def _widen(spans: np.ndarray) -> np.ndarray:
    """SentencePiece gives a character's place to the last of the tokens that spell it: the others get it too."""
    for i in np.flatnonzero(spans[:-1, 0] == spans[:-1, 1])[::-1]:
        if spans[i, 0] == spans[i + 1, 0]:
            spans[i] = spans[i + 1]
    return spans


def train_sentencepiece(
    texts: Iterable[str], folder: str | os.PathLike, vocab_size: int, model_type: str = "bpe"
) -> SentencePieceTokenizer:
    """Trains a lossless tokenizer on `texts`, writes it to `folder` and returns it.

    The same texts in the same order give the same file, byte for byte. Pieces cross neither spaces nor lines, so a
    frequent word becomes one piece together with the space before it (and another one without, if it also starts
    lines), and a newline is always a token of its own. A character that `texts` lack is spelled by its UTF-8 bytes.

    Args:
        texts: the corpus, held in memory as a whole.
        vocab_size: the most pieces to make; a small corpus may not have as many.
        model_type: "bpe", which makes whole words of a small vocabulary's corpus, or "unigram".

    Raises: UserError if `texts` are empty or `vocab_size` is below one piece per character and byte.
    """
    if model_type not in ("bpe", "unigram"):
        raise UserError(f"tokenizer: unknown model_type '{model_type}'; use 'bpe' or 'unigram'")
    lines = [line for text in texts for line in text.replace(_SPACE, " ").split("\n") if line]
    smallest = _FIXED_PIECES + len(set().union(*lines, " "))
    if not any(line.strip() for line in lines):
        raise UserError("tokenizer: no text to train on; the corpus is empty")
    if vocab_size < smallest:
        raise UserError(f"tokenizer: vocab_size {vocab_size} is too small; this corpus's characters need {smallest}")

    model = io.BytesIO()  # not a file: SentencePiece would write the file's path into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=True,
        max_sentence_length=2**30,  # longer lines would be left out without a word
        num_threads=1,
        minloglevel=2,
    )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MODEL_FILE).write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer(folder)
    if not tokenizer.lossless:
        raise RuntimeError(f"{folder}: the trained tokenizer does not keep text as it is")
    return tokenizer


def load_tokenizer(folder: str | os.PathLike, rows: int | None = None) -> Tokenizer:
    """The tokenizer that is stored in `folder`: `tokenizer.json` if there is one, else `tokenizer.model`. `rows` are
    those of the embedding, if it may be another one than config.json is of. Raises: UserError if neither can be read.
    """
    folder = pathlib.Path(folder)
    if (folder / TOKENIZER_FILE).exists():
        return HuggingFaceTokenizer(folder, rows)
    if (folder / _MODEL_FILE).exists():
        return SentencePieceTokenizer(folder)
    raise UserError(f"{folder}: neither tokenizer.json nor tokenizer.model in this folder; copy the checkpoint's there")
