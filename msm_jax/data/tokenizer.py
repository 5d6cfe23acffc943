"""Text <-> token ids, losslessly, with the place of every token in the text."""

import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import sentencepiece

from msm_jax.errors import UserError

_MODEL_FILE = "tokenizer.model"
_SPACE = "\u2581"  # how SentencePiece writes a space within a piece
_PAD_ID, _BOS_ID, _EOS_ID, _UNK_ID = range(4)
_FIXED_PIECES = 4 + 256  # the four above, and one per byte


class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer. `decode(encode(text)) == text` for every text."""

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    fingerprint: str  # equal for two tokenizers only if they turn equal text into equal ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no bos or eos is added, and none is read out of the text."""

    def encode_with_spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """Ids, and int64 [n, 2]: token i spells `text[start:end]`, in characters.

        Tokens that spell one character together (its bytes) all have the span of that character.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` spell; bos, eos and pad spell nothing."""


class SentencePieceTokenizer:
    """The SentencePiece model `folder/tokenizer.model`; implements `Tokenizer`, and can be pickled.

    Raises: UserError if there is no such file, or if it is not a lossless model: one that normalises text, adds a
        leading space or has no piece for some byte (`train_sentencepiece` makes lossless ones).
    """

    def __init__(self, folder: str | os.PathLike):
        path = pathlib.Path(folder) / _MODEL_FILE
        try:
            model = path.read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; train a tokenizer into this folder first") from None
        except RuntimeError:
            raise UserError(f"{path}: not a SentencePiece model") from None
        self.vocab_size = self._model.vocab_size()
        self.bos_id = self._model.bos_id()
        self.eos_id = self._model.eos_id()
        self.pad_id = self._model.pad_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()[:12]
        if min(self.bos_id, self.eos_id, self.pad_id) < 0:
            raise UserError(f"{path}: this model lacks a bos, eos or pad piece; train one that has all three")
        self._chars = np.array([self._spelled_chars(i) for i in range(self.vocab_size)])
        self._space_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        probe = f"a  b\n\n c\u00a0\u0133\u2603{_SPACE} "
        if self.decode(self.encode(probe)) != probe:
            raise UserError(f"{path}: this model does not keep text as it is; train one with train_sentencepiece")

    def encode(self, text: str) -> list[int]:
        # SentencePiece would read a literal U+2581 as a space, so it is spelled by its bytes.
        first, *others = text.split(_SPACE)
        ids = self._model.encode(first)
        for part in others:
            ids += self._space_ids + self._model.encode(part)
        return ids

    def encode_with_spans(self, text: str) -> tuple[list[int], np.ndarray]:
        ids = self.encode(text)
        chars = self._chars[np.array(ids, np.intp)]
        ends = np.cumsum(chars)
        return ids, np.stack([ends - np.maximum(chars, 1), ends], axis=1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])

    def _spelled_chars(self, token: int) -> int:
        """How many characters begin in `token`: 0 for the second and later bytes of one."""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return 0 if 0x80 <= int(piece[1:-1], 16) < 0xC0 else 1
        return len(piece)


def train_sentencepiece(
    texts: Iterable[str], folder: str | os.PathLike, vocab_size: int, model_type: str = "bpe"
) -> SentencePieceTokenizer:
    """Trains a lossless tokenizer on `texts`, writes it to `folder` and returns it.

    The same texts in the same order give the same file, byte for byte. Text is never normalised. Pieces cross
    neither spaces nor lines, so a frequent word becomes one piece together with the space before it (and another
    one without, if it also starts lines), and a newline is always a token of its own. A character that `texts`
    lack is spelled by its UTF-8 bytes.

    Args:
        texts: the corpus, held in memory as a whole.
        vocab_size: the most pieces to make. A small corpus may not have as many: read `vocab_size` of the result.
        model_type: "bpe" or "unigram". BPE merges until the vocabulary is full, so it is the one that makes whole
            words of a small vocabulary's corpus; unigram prunes, and may leave frequent words in parts.

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
        pad_id=_PAD_ID,
        bos_id=_BOS_ID,
        eos_id=_EOS_ID,
        unk_id=_UNK_ID,
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
    return SentencePieceTokenizer(folder)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer that is stored in `folder`. Raises: UserError if there is none."""
    return SentencePieceTokenizer(folder)
