"""Ids that follow a prompt -> their text, whole or piece by piece as a model writes it."""

import os
from collections.abc import Sequence

from msm_jax.data.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"  # what decoding makes of bytes that are no character, or not yet one
_CONTEXT = 32  # tokens


class Continuation:
    """The text that ids spell after `prompt`, cut before the first stop string; for one answer.

    What `add` and `end` return is, joined, decode(prompt + ids) without decode(prompt). Only so does it hold the space
    before the first word, which decoders take off the beginning of a text. A piece is never taken back: bytes wait
    until they are a character, and what may begin a stop string until it is known whether it does.

    Attributes:
      stopped: whether a stop string has come. What follows it is ignored.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._context = end_of(prompt, tokenizer)  # tokens whose text has been read, enough to decode others after
        self._before = tokenizer.decode(self._context)
        self._new: list[int] = []  # tokens whose text has not been read yet
        self._held = ""  # text that may begin a stop string
        self.stopped = False

    def add(self, ids: Sequence[int]) -> str:
        """What is certain of the text after these ids, the next ones of the answer."""
        self._new += ids
        whole, text = self._read()
        if text.endswith(_UNFINISHED) or self._ends_in_bytes():
            return ""
        decoded = self._tokenizer.decode(self._new)
        if decoded.strip():
            self._context, self._before = self._new, decoded
        else:  # what decoders take off the beginning of a text must not be taken off the next tokens
            self._context, self._before = self._context + self._new, whole
        self._new = []
        self._held += text
        return self._release(final=False)

    def end(self) -> str:
        """The rest of the text; no more ids come."""
        self._held += self._read()[1]
        self._new = []
        return self._release(final=True)

    def _read(self) -> tuple[str, str]:
        """The text with its context, and that of the new tokens alone."""
        whole = self._tokenizer.decode([*self._context, *self._new])
        return whole, whole[len(os.path.commonprefix([self._before, whole])) :]

    def _ends_in_bytes(self) -> bool:
        """Whether a run of bytes may go on. Some decoders make nothing of a whole run if its end is no character."""
        byte_ids = self._tokenizer.byte_ids
        control = set(self._tokenizer.special_tokens.values()) if byte_ids else ()
        return next((i for i in reversed(self._new) if i not in control), None) in byte_ids

    def _release(self, final: bool) -> str:
        """Takes out of the held text what is certainly part of the answer."""
        text, self._held = ("" if self.stopped else self._held), ""
        for place in range(len(text)) if self._stop else ():
            if text.startswith(self._stop, place):
                self.stopped = True
                return text[:place]
            if not final and any(stop.startswith(text[place : place + len(stop)]) for stop in self._stop):
                self._held = text[place:]
                return text[:place]
        return text


def count_until_stop(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], stop: Sequence[str], sure: int = 0
) -> int:
    """How many of an answer's ids there are up to the one with which a stop text is whole: others may have been drawn
    after it, to the end of their block. `sure`: as many as are known to be before it."""
    if not stop:
        return len(ids)
    text = Continuation(tokenizer, prompt, stop)
    text.add(ids[:sure])
    for count in range(sure + 1, len(ids) + 1):
        text.add(ids[count - 1 : count])
        if text.stopped:
            return count
    return len(ids)


def end_of(prompt: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The last tokens of a prompt, after which others are decoded as after the whole: that may be long.

    They begin with a character, and have some text, so that what decoders do at the beginning happens in them.
    """
    for size in (_CONTEXT, 8 * _CONTEXT):
        ids = list(prompt[-size:])
        text = tokenizer.decode(ids)
        if text.strip() and not text.startswith(_UNFINISHED):
            return ids
    return list(prompt[-64 * _CONTEXT :])  # white space and control tokens
