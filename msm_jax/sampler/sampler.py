"""Scores and samples text with a decoder: the only two things that evaluations and corpora ask of a model."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from msm_jax.data.tokenizer import Tokenizer
from msm_jax.errors import UserError
from msm_jax.models import LoraConfig, Model
from msm_jax.sampler.adapters import for_sampling
from msm_jax.sampler.engine import Engine, Request
from msm_jax.sampler.request import Finish, Sampling, TokenLogprob, check_count
from msm_jax.sampler.service import Answers, Piece
from msm_jax.storage.progress import track

PyTree = Any
_LOST = "the answer was lost: the sampler failed while another caller waited for it"


@dataclasses.dataclass(frozen=True)
class Completion:
    """A sampled text. `finished` is False if it was cut off at `max_tokens`, before a stop string or end token.

    `logprobs`, where asked for, holds the sampled tokens up to the end token; a stop string does not shorten it.
    `tokens` counts what was drawn, the end token and what follows a stop string with it. `prompt_logprobs`, where asked
    for, holds the prompt's tokens but for the first.
    """

    text: str
    finished: bool
    logprobs: tuple[TokenLogprob, ...] | None = None
    tokens: int = dataclasses.field(default=0, compare=False)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class Sampler:
    """A model ready to answer.

    Args:
      params, lora: weights as in `Model.apply`; `lora` None for the bare base.
      label: of the progress of what takes long.
      bos, special: how prompts are tokenised, which their template says (data/chat.py): whether the tokenizer's bos
        is put before them, and whether control tokens are read out of the text.
      stop_ids: what ends an answer besides the tokenizer's end of a document (data/stops.py).
      adapters: others of the same base, which `generate` may be asked for.
      rows: answers that are drawn at once, at most.
      int8_prompts: whether the engine holds prompts as 8-bit integers.
    """

    def __init__(
        self,
        model: Model,
        params: PyTree,
        lora: PyTree | None,
        tokenizer: Tokenizer,
        label: str = "sampler",
        bos: bool = True,
        special: bool = False,
        stop_ids: Sequence[int] = (),
        adapters: Sequence[tuple[LoraConfig, PyTree]] = (),
        rows: int = 64,
        int8_prompts: bool = False,
    ):
        self.model, self.params, self.lora, self.tokenizer = model, params, lora, tokenizer
        self._stop_ids = {tokenizer.eos_id, *stop_ids}
        self.label = label
        self._start = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
        self._special = special
        self._others, self._sizes = list(adapters), {"rows": rows, "int8_prompts": int8_prompts}

    def logprobs(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """log p(option | prompt) in nats, summed over the option's tokens, for each option of each prompt.

        Prompt and option are tokenised together, as the text that the model was trained on. A token that reaches
        into the option counts as the option's (a space is often part of the word that follows it).
        """
        pairs = [(prompt, option) for prompt, row in zip(prompts, options, strict=True) for option in row]
        encoded = [self._encode_pair(prompt, option) for prompt, option in pairs]
        progress = iter(track(range(len(encoded)), f"{self.label}: scoring", len(encoded), "text"))
        asked = Sampling(max_tokens=0, prompt_logprobs=0, seed=0)

        def hear(index: int, tokens: list[TokenLogprob], finish: Finish | None) -> None:
            next(progress, None)

        requests = []
        try:
            for ids, first in encoded:
                requests.append(self.engine.submit(ids, asked, 1, hear, self._place, scored_from=first))
            self.engine.run()
        finally:
            for request in requests:
                self.engine.cancel(request)
        totals = iter([_total(request.prompt_logprobs) for request in requests])
        return [[next(totals) for _ in row] for row in options]

    def _encode_pair(self, prompt: str, option: str) -> tuple[list[int], int]:
        """The ids of both, and where the option's begin."""
        ids, spans = self.tokenizer.encode_with_spans(prompt + option, special=self._special)
        first = next((place for place, (_, end) in enumerate(spans) if end > len(prompt)), None)
        if first is None:
            raise UserError(f"nothing to score: option {option!r} has no token after the prompt {prompt!r}")
        if not first and not self._start:
            raise UserError(f"nothing before {option!r} to predict it from: the prompt has no token")
        return [*self._start, *ids], len(self._start) + first

    @property
    def _place(self) -> int:
        """Of this sampler's own adapter in those of the engine."""
        return int(self.lora is not None)

    def encode(self, prompt: str) -> list[int]:
        """The ids that `generate` goes on from."""
        return [*self._start, *self.tokenizer.encode(prompt, special=self._special)]

    @functools.cached_property
    def engine(self) -> Engine:
        """What draws the samples. Its adapters: place 0 is the bare base, then this sampler's own, and the others."""
        own = [] if self.lora is None else [(self.model.lora, self.lora)]
        model, params, adapters = for_sampling(self.model, self.params, [*own, *self._others])
        ends = sorted(self._stop_ids)
        return Engine(model, params, adapters, vocabulary=self.tokenizer.vocab_size, end_ids=ends, **self._sizes)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 64,
        seed: int | Sequence[int] | None = 0,
        stop: Sequence[str] = (),
        top_p: float = 1.0,
        logprobs: int | None = None,
        adapter: int | None = None,
        **settings: Any,
    ) -> list[list[Completion]]:
        """`n` samples of each prompt, up to `max_tokens` tokens, cut before the first stop string.

        A stop string that is a control token (`<|im_end|>`, also with white space beside it) stands for the token
        itself, which texts do not show.
        Sample j of prompt i draws the random numbers of (seed, i, j), whatever else is asked.

        Args:
          prompts: texts, or the ids of each.
          seed: or a list of them, one for each prompt, which then has the samples that it has alone with this seed.
            None: of the operating system.
          adapter: its place in those of the engine; None: this sampler's own.
          settings: the other fields of `Sampling`, which says what each means.

        Raises: UserError for a prompt without a token, and if a prompt and its answer do not fit the model's context;
            for an argument that is out of range, such as a stop string that holds a control token among other text.
        """
        if not isinstance(stop, Sequence) or isinstance(stop, str):
            raise UserError(f"stop is {stop!r}; it must be a list of texts that are not empty")
        several = isinstance(seed, list | tuple)
        if several and len(seed) != len(prompts):
            raise UserError(f"{len(seed)} seeds are given for {len(prompts)} prompts; give one, or one for each")
        asked = Sampling(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, logprobs=logprobs, stop=tuple(stop),
            seed=None if several else seed, **settings,
        )  # fmt: skip
        strings, ids = parse_stop(self.tokenizer, asked.stop)
        asked = dataclasses.replace(asked, stop=strings, stop_ids=(*asked.stop_ids, *ids))
        check_count(n)
        seeds = [{"seed": own} for own in seed] if several else [{"stream": number} for number in range(len(prompts))]
        found: list[list[Completion]] = [[None] * n for _ in prompts]

        def keep(number: int, index: int, completion: Completion) -> None:
            found[number][index] = completion

        self.draw(
            prompts, [dataclasses.replace(asked, **own) for own in seeds], [range(n)] * len(prompts), keep, adapter
        )
        return found

    def draw(
        self,
        prompts: Sequence[str | Sequence[int]],
        asked: Sequence[Sampling],
        indices: Sequence[Sequence[int]],
        on_answer: Callable[[int, int, Completion], None],
        adapter: int | None = None,
    ) -> None:
        """Of each prompt the samples of these indices, each of which is the same whatever else is asked.

        Args:
          asked: of each prompt; control tokens among its stop texts were parsed (`parse_stop`).
          on_answer: hears (number of the prompt, index, completion) as answers end; if it raises, all end.

        Raises: as `generate` does, and what `on_answer` raises.
        """
        place = self._place if adapter is None else adapter
        ids_of = [self.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        count = sum(map(len, indices))
        progress = iter(track(range(count), f"{self.label}: sampling", count, "answer"))
        drafts = {(number, index): _Draft() for number, wanted in enumerate(indices) for index in wanted}
        requests: list[Request] = []
        failures: list[Exception] = []
        listening = True

        def hear(number: int, piece: Piece) -> None:
            if not listening or failures:
                return
            drafts[number, piece.index].add(piece)
            if not piece.finish:
                return
            next(progress, None)
            try:
                draft = drafts.pop((number, piece.index))
                on_answer(number, piece.index, draft.completion(asked[number].logprobs is not None))
            except Exception as error:  # told below: the engine may have others to answer
                failures.append(error)
                for request in requests:
                    self.engine.cancel(request)

        try:
            for number, (prompt, own, wanted) in enumerate(zip(ids_of, asked, indices, strict=True)):
                if not wanted:
                    continue
                n = max(wanted) + 1
                answers = Answers(prompt, own, n, self.tokenizer, functools.partial(hear, number))
                requests.append(self.engine.submit(prompt, own, n, answers.hear, place, indices=wanted))
                answers.request = requests[-1]
            self.engine.run()
        finally:  # nobody waits for them if one of them could not be asked
            listening = False
            for request in requests:
                self.engine.cancel(request)
        if failures:
            raise failures[0]
        if drafts:
            raise RuntimeError(_LOST)


@dataclasses.dataclass
class _Draft:
    """A completion that is being drawn."""

    text: str = ""
    tokens: list[TokenLogprob] = dataclasses.field(default_factory=list)
    finish: Finish | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    def add(self, piece: Piece) -> None:
        self.prompt_logprobs = self.prompt_logprobs or piece.prompt_logprobs
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish = piece.finish

    def completion(self, with_logprobs: bool) -> Completion:
        if self.finish in (None, Finish.CANCELLED):
            raise RuntimeError(_LOST)
        if self.finish is Finish.ERROR:
            raise UserError("the model gave no numbers for the next token; its weights are damaged")
        # The id that ended the answer has a log-probability, and no text.
        logprobs = tuple(self.tokens) if with_logprobs else None
        return Completion(self.text, self.finish is Finish.STOP, logprobs, len(self.tokens), self.prompt_logprobs)


def parse_stop(tokenizer: Tokenizer, stop: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The stop texts that are looked for in the answer, and the ids of those that are control tokens, which texts do
    not show. Raises: UserError if one holds a control token among other text."""
    control = tokenizer.special_tokens
    stop = [string.strip() if string.strip() in control else string for string in stop]
    strings = [string for string in stop if string not in control]
    for string in strings:
        if token := next((token for token in control if token in string), None):
            raise UserError(f"stop {string!r} holds the control token '{token}' among other text; give it alone")
    return tuple(strings), tuple(control[string] for string in stop if string in control)


def _total(tokens: list[TokenLogprob] | None) -> float:
    """Raises: UserError if the model gave no numbers."""
    if tokens is None:
        raise RuntimeError("the score was lost: the sampler failed while another caller waited for it")
    total = math.fsum(token.logprob for token in tokens)
    if math.isnan(total):
        raise UserError("the model gave no numbers for a text; its weights are damaged")
    return total
