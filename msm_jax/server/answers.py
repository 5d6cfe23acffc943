"""What was drawn -> answers as OpenAI writes them, whole or in pieces."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.data import conversation
from msm_jax.data.tokenizer import Tokenizer
from msm_jax.sampler.request import Finish, TokenLogprob
from msm_jax.sampler.service import Piece
from msm_jax.server.requests import Asked

_LOWEST = -9999.0  # JSON has no infinity; OpenAI gives this


@dataclasses.dataclass
class Draft:
    """An answer that is being drawn. `tokens` are kept where log-probabilities are asked for."""

    text: str = ""
    tokens: list[TokenLogprob] = dataclasses.field(default_factory=list)
    count: int = 0
    finish: Finish | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    def add(self, piece: Piece, keeps_tokens: bool) -> None:
        self.prompt_logprobs = piece.prompt_logprobs or self.prompt_logprobs
        self.text += piece.text
        self.count += len(piece.tokens)
        self.finish = piece.finish
        if keeps_tokens:
            self.tokens += piece.tokens


class TextForm:
    """Of /v1/completions."""

    whole_object = piece_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, asked: Asked, tokenizer: Tokenizer):
        self.asked, self.tokenizer = asked, tokenizer
        self._offsets = [0] * asked.samples  # characters before the next token

    def body(self, drafts: Sequence[Draft]) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(index, draft) for index, draft in enumerate(drafts)]
        usage = self.usage(sum(draft.count for draft in drafts))
        return {**self._head(self.whole_object), "choices": choices, "usage": usage}

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    def pieces(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """What a stream goes on with."""
        if not piece.text and not piece.finish and not self._wants_logprobs:
            return []
        choice = {
            "index": index, "text": piece.text, "logprobs": self._logprobs(index, piece.tokens),
            "finish_reason": piece.finish,
        }  # fmt: skip
        return [self._chunk([choice])]

    def closing(self, count: int) -> list[dict[str, Any]]:
        """What a stream ends with; `count` tokens were drawn."""
        return [{**self._chunk([]), "usage": self.usage(count)}] if self.asked.include_usage else []

    def usage(self, count: int) -> dict[str, Any]:
        prompt = sum(map(len, self.asked.prompts))
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

    @property
    def _wants_logprobs(self) -> bool:
        return self.asked.sampling.logprobs is not None

    def _choice(self, index: int, draft: Draft) -> dict[str, Any]:
        text, tokens = draft.text, draft.tokens
        if self.asked.echo:
            prompt = self.asked.prompts[index // self.asked.n]
            text = self.tokenizer.decode(list(prompt)) + text
            # Nothing tells the probability of the first token.
            tokens = [TokenLogprob(prompt[0], math.nan, {}), *draft.prompt_logprobs, *tokens]
        return {
            "index": index, "text": text, "logprobs": self._logprobs(index, tokens), "finish_reason": draft.finish,
        }  # fmt: skip

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        spelled, offsets = [self.tokenizer.spell([token.id]) for token in tokens], []
        for text in spelled:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": spelled,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [self._likeliest(token.likeliest) or None for token in tokens]
            if self.asked.sampling.logprobs
            else None,
            "text_offset": offsets,
        }

    def _likeliest(self, likeliest: Mapping[int, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for i, value in sorted(likeliest.items(), key=lambda item: -item[1]):
            found.setdefault(self.tokenizer.spell([i]), value)  # of ids that are spelled alike, the likeliest
        return found

    def _head(self, kind: str) -> dict[str, Any]:
        asked = self.asked
        return {"id": f"{self.prefix}-{asked.id}", "object": kind, "created": asked.created, "model": asked.model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head(self.piece_object), "choices": choices, **usage}


class ChatForm(TextForm):
    """Of /v1/chat/completions."""

    whole_object, piece_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, asked: Asked, tokenizer: Tokenizer):
        super().__init__(asked, tokenizer)
        self._listeners = [conversation.Listener(asked.opened, asked.thinks, asked.tools) for _ in range(asked.samples)]
        self._thoughts = [""] * asked.samples

    def opening(self) -> list[dict[str, Any]]:
        return [self._delta(index, {"role": "assistant", "content": ""}) for index in range(self.asked.samples)]

    def pieces(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        listener, delta = self._listeners[index], {}
        thoughts, said = listener.add(piece.text)
        calls: list[dict[str, Any]] = []
        if piece.finish:
            more_thoughts, more, found = listener.end()
            unread, calls = self._calls(index, found)
            thoughts, said = thoughts + more_thoughts, said + more + unread
        self._thoughts[index] += thoughts
        if thoughts:
            delta["reasoning_content"] = thoughts
        if said:
            delta["content"] = said
        if calls:
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        if not delta and not piece.finish and not (self._wants_logprobs and piece.tokens):
            return []
        return [self._delta(index, delta, piece.tokens, _reason(piece.finish, calls))]

    def usage(self, count: int) -> dict[str, Any]:
        thought = sum(len(self.tokenizer.encode(text)) for text in self._thoughts if text)
        details = {"completion_tokens_details": {"reasoning_tokens": min(thought, count)}} if thought else {}
        return {**super().usage(count), **details}

    def _choice(self, index: int, draft: Draft) -> dict[str, Any]:
        parsed = conversation.parse(draft.text, self.asked.opened, self.asked.thinks, self.asked.tools)
        unread, calls = self._calls(index, parsed.calls)
        self._thoughts[index] = parsed.thoughts
        message: dict[str, Any] = {"role": "assistant", "content": parsed.text + unread, "refusal": None}
        if parsed.thoughts:
            message["reasoning_content"] = parsed.thoughts
        if calls:
            message["tool_calls"], message["content"] = calls, message["content"] or None
        return {
            "index": index, "message": message, "logprobs": self._logprobs(index, draft.tokens),
            "finish_reason": _reason(draft.finish, calls),
        }  # fmt: skip

    def _calls(self, index: int, found: Sequence[conversation.Call]) -> tuple[str, list[dict[str, Any]]]:
        """What cannot be read of them, which stays a part of the text, and the others."""
        calls = [
            {
                "id": f"call_{self.asked.id}_{index}_{number}",
                "type": "function",
                "function": {"name": call.function, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for number, call in enumerate(found)
            if not call.error
        ]
        return "".join(call.source for call in found if call.error), calls

    def _delta(
        self, index: int, delta: dict[str, Any], tokens: Sequence[TokenLogprob] = (), reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(index, tokens) if tokens else None
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return {"content": [self._logprob(token) for token in tokens], "refusal": None}

    def _logprob(self, token: TokenLogprob) -> dict[str, Any]:
        likeliest = sorted(token.likeliest.items(), key=lambda item: -item[1])
        return {**self._token(token.id, token.logprob), "top_logprobs": [self._token(*other) for other in likeliest]}

    def _token(self, i: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.spell([i])
        # Of a token that is a part of a character the text shows nothing.
        bytes_ = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": bytes_}


def _reason(finish: Finish | None, calls: Sequence[Any]) -> str | None:
    return "tool_calls" if calls and finish is Finish.STOP else finish


def _finite(logprob: float) -> float | None:
    return None if math.isnan(logprob) else max(logprob, _LOWEST)
