"""The loop that draws: plans a border, gives the devices their work, and reads what they drew.

An engine holds one base on its devices, and adapters beside it. `submit` hands it a request, `step` goes on by one
block, and a request's listener hears of each token. It knows ids alone; text is made around it (text.py).
"""

import collections
import contextlib
import dataclasses
import functools
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from msm_jax.errors import UserError
from msm_jax.models import Model
from msm_jax.parallel.hosts import fetch
from msm_jax.sampler import programs
from msm_jax.sampler.adapters import count_adapters
from msm_jax.sampler.border import Group, Key, Plan, Prefill, Sample
from msm_jax.sampler.draw import Settings, neutral
from msm_jax.sampler.request import Finish, Sampling, TokenLogprob, check_count, check_stop_ids
from msm_jax.sampler.scheduler import Scheduler
from msm_jax.sampler.state import STOP_IDS, State

PyTree = Any


@dataclasses.dataclass(eq=False)
class Request:
    """What was submitted. `listener(index, tokens, finish)` hears of the tokens of sample `index`, each once and in
    order; `finish` comes with the last ones, and is None before. It returns whether the answer ends here."""

    prompt: tuple[int, ...]
    sampling: Sampling
    n: int
    adapter: int
    stop_ids: tuple[int, ...]
    seed: int
    listener: Callable[[int, list[TokenLogprob], Finish | None], bool | None]
    samples: list[Sample] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None  # where they are wanted, of tokens from the first such one on


class Engine:
    """Args:
      params: of the base, as `model` has them, in the type of its products.
      adapters: None, or several as one (`adapters.join_adapters`). Requests name them from 1; 0 is the bare base.
      vocabulary: ids that the tokenizer can spell.
      rows: samples that are drawn at once, at most.
      steps: tokens of a block: what a row that has ended may idle, and what a listener waits for.
      chunk: tokens of a prompt that are read at once.
      behind: blocks that the devices have drawn, or are drawing, before the host reads the first of them. One, so that
        they need not wait for it; none where they are the host's own cores. Who ends with a stop text or an id is then
        known a block later.

    `model.lora` tells whether there are adapters. Programs are compiled when they are first needed, for the shapes that
    `scheduler.wanted` chooses.
    """

    def __init__(
        self,
        model: Model,
        params: PyTree,
        adapters: PyTree | None,
        *,
        vocabulary: int,
        end_ids: Sequence[int] = (),
        rows: int = 64,
        steps: int = 16,
        chunk: int = 256,
        behind: int | None = None,
        int8_prompts: bool = False,
    ):
        self._int8_prompts = int8_prompts
        self.model, self._params, self._adapters = model, params, adapters
        self.vocabulary, self.end_ids = vocabulary, tuple(end_ids)
        sharding = jax.tree.leaves(params)[0].sharding
        named = isinstance(sharding, NamedSharding)
        self._anywhere = NamedSharding(sharding.mesh, PartitionSpec()) if named else sharding
        self._mesh = sharding.mesh if named and sharding.mesh.size > 1 else None
        devices = self._mesh.size if self._mesh else 1
        self.scheduler = Scheduler(-(-rows // devices) * devices, steps, chunk, devices)
        self._behind = int(jax.default_backend() != "cpu") if behind is None else behind
        self._unread: collections.deque[tuple[programs.Block, list[Sample | None]]] = collections.deque()
        self._state: State | None = None
        self._ended_on_host: set[int] = set()  # rows that the devices still draw
        self._lock = threading.RLock()  # several threads may ask, and go on

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        n: int,
        listener: Callable,
        adapter: int = 0,
        scored_from: int = 1,
        indices: Sequence[int] | None = None,
    ) -> Request:
        """`scored_from`: the first token of the prompt whose log-probability is wanted, if any are
        (`sampling.prompt_logprobs`): at least 1, since nothing tells the probability of the first. `indices`: of `n`
        samples, those that are drawn; default: all.

        Raises: UserError if the prompt is empty or has an id that the model does not know, or if prompt and answer
        exceed the tokens that the model was made for."""
        prompt, longest = tuple(map(int, prompt)), self.model.config.max_length
        if not prompt:
            raise UserError("a prompt has no token to go on from; give it a text")
        if outside := [i for i in prompt if not 0 <= i < self.model.config.vocab_size]:
            raise UserError(f"a prompt has the id {outside[0]}, which the model does not know")
        if longest and len(prompt) + sampling.max_tokens > longest:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and max_tokens={sampling.max_tokens} exceed the {longest} tokens "
                "that the model was made for; shorten one of the two"
            )
        held = count_adapters(self.model, self._adapters)
        if not 0 <= adapter <= held:
            raise UserError(f"adapter {adapter} is not on the devices; choose from 0, the bare base, to {held}")
        check_count(n)
        ends = set(sampling.stop_ids) | (set() if sampling.ignore_end else set(self.end_ids))
        if sampling.seed is None and jax.process_count() > 1:
            raise UserError("seed is None: several processes must draw the same numbers; give one")
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        if outside := [i for i in sampling.logit_bias if not 0 <= i < self.vocabulary]:
            raise UserError(f"logit_bias has the id {outside[0]}; ids are from 0 to {self.vocabulary - 1}")
        request = Request(prompt, sampling, n, adapter, check_stop_ids(ends, self.vocabulary), seed, listener)
        first = None if sampling.prompt_logprobs is None else scored_from
        key = Key(adapter, prompt, first, sampling.prompt_logprobs or 0)
        request.samples = [
            Sample(prompt, adapter, sampling.max_tokens, (request, index), first, key.likeliest, key)
            for index in (range(n) if indices is None else indices)
        ]
        with self._lock:
            self.scheduler.add(request.samples)
        return request

    def cancel(self, request: Request) -> None:
        """Its samples draw no more, and hear of that."""
        with self._lock:
            for sample in request.samples:
                if not sample.ended:
                    self._end(sample, [], Finish.CANCELLED)

    def step(self) -> bool:
        """Goes on by one border and one block. Returns whether anything was done. After an error (such as memory that
        does not suffice) nothing is left of what was asked, and the engine can be asked anew."""
        with self._lock:
            try:
                with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
                    return self._step()
            except BaseException:  # the state that a program was given is gone
                self._lose_all()
                raise

    def _lose_all(self) -> None:
        """Who asked hears that it was cancelled: others than who goes on may have asked."""
        old = self.scheduler
        self.scheduler = Scheduler(old.rows_at_most, old.steps, old.chunk, old.devices)
        lost = [*old.live, *old.waiting, *(sample for _, rows in self._unread for sample in rows if sample is not None)]
        self._state, self._ended_on_host = None, set()
        self._unread.clear()
        for sample in lost:
            sample.row = None
            if not sample.ended:
                sample.ended = True
                request, index = sample.request
                with contextlib.suppress(Exception):
                    request.listener(index, [], Finish.CANCELLED)

    def _step(self) -> bool:
        plan = self.scheduler.plan()
        if plan.reshape:
            self._reshape(plan)
        scores = [(prefill, self._prefill(prefill)) for prefill in plan.prefills]
        if plan.admitted:
            self._state = programs.admit(self._state, self._admission(plan.admitted))
            self._ended_on_host -= {sample.row for sample in plan.admitted}
        if plan.decodes:
            self._unread.append((self._decode(), list(self.scheduler.rows)))
        for prefill, found in scores:
            self._keep_scores(prefill, found)
        for sample in plan.admitted:
            self._tell_scores(sample, self.scheduler.groups[sample.row // self.scheduler.shape.rows])
        for sample, group in plan.scored:
            self._tell_scores(sample, group)
            if not sample.ended:
                self._end(sample, [], Finish.LENGTH)
        if plan.decodes:
            self.scheduler.release()
        found = bool(plan) or bool(self._unread)
        while len(self._unread) > (self._behind if plan.decodes else 0):
            block, rows = self._unread.popleft()
            self._listen(fetch(block), rows)
        return found

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return self.scheduler.idle and not self._unread

    def run(self) -> None:
        """Goes on until nothing is left to be drawn."""
        while True:
            with self._lock:  # others may ask between a step and the look at what is left
                if self.idle:
                    return
                if not self.step() and not self.idle:
                    raise RuntimeError("the sampler has samples that wait, and nothing to do")

    def _reshape(self, plan: Plan) -> None:
        move, stacked = plan.reshape, self.model.execution.stacked
        if self._state is None or not any(place >= 0 for place in move.group_from):
            self._state = None  # before the new one: both together may be too much
            self._state = programs.empty(model=self.model, shape=move.shape, int8_prompts=self._int8_prompts)
            if self._mesh is None:
                # On its device by intent, as the weights are and as all later states: else the first program that is
                # given it would be compiled twice.
                self._state = jax.device_put(self._state, self._anywhere)
        else:
            self._state = programs.reshape(
                self._state, np.array(move.group_from), np.array(move.row_from), shape=move.shape, stacked=stacked
            )
        self._ended_on_host = set()

    def _prefill(self, prefill: Prefill) -> programs.Scores | None:
        groups = self.scheduler.shape.groups
        if prefill.copies:
            width = 1 if len(prefill.copies) == 1 else groups
            places = np.full((3, width), groups, np.int32)
            for place, copy in enumerate(prefill.copies):
                places[:, place] = copy.source, copy.target, copy.length
            self._state = programs.copy_prompts(self._state, *places, stacked=self.model.execution.stacked)
        if not prefill.chunks:
            return None
        tokens = np.zeros((prefill.width, prefill.size), np.int32)
        place, start, count, adapter = np.zeros((4, prefill.width), np.int32)
        place[:], count[:] = groups, 1
        for number, chunk in enumerate(prefill.chunks):
            tokens[number, : len(chunk.tokens)] = chunk.tokens
            place[number], start[number], count[number] = chunk.group, chunk.start, len(chunk.tokens)
            adapter[number] = chunk.adapter
        likeliest = max((-1 if group is None else group.key.likeliest for group in prefill.scored), default=-1)
        self._state, scores = programs.prefill(
            self.model, self._params, self._adapters, self._state, place, tokens, start, count, adapter,
            np.int32(likeliest), vocabulary=self.vocabulary,
        )  # fmt: skip
        return scores if likeliest >= 0 else None

    def _keep_scores(self, prefill: Prefill, scores: programs.Scores | None) -> None:
        if scores is None:
            return
        scores = fetch(scores)
        for number, (chunk, group) in enumerate(zip(prefill.chunks, prefill.scored, strict=True)):
            if group is None:
                continue
            for place in range(len(chunk.tokens) - 1):
                slot = chunk.start + place + 1
                if slot >= group.key.scored_from and slot not in group.scores:
                    ids, logprobs = scores.likeliest_ids[number, place], scores.likeliest_logprobs[number, place]
                    group.scores[slot] = TokenLogprob(
                        chunk.tokens[place + 1],
                        float(scores.logprob[number, place]),
                        _likeliest(ids, logprobs, group.key.likeliest),
                    )

    def _tell_scores(self, sample: Sample, group: Group) -> None:
        request, _ = sample.request
        if sample.scored_from is not None and request.prompt_logprobs is None:
            request.prompt_logprobs = [group.scores[slot] for slot in range(sample.scored_from, len(sample.prompt))]

    def _admission(self, samples: Sequence[Sample]) -> programs.Admitted:
        B = self.scheduler.shape.batch
        settings = Settings(*(np.array(x) for x in _neutral(B)))
        rows, limit = np.zeros(B, bool), np.zeros(B, np.int32)
        stops, origin = np.full((B, STOP_IDS), -1, np.int32), np.zeros((B, 4), np.uint32)
        for sample in samples:
            request, index = sample.request
            row, asked = sample.row, request.sampling
            rows[row], limit[row] = True, asked.max_tokens
            stops[row, : len(request.stop_ids)] = request.stop_ids
            for name in (
                "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
            ):  # fmt: skip
                getattr(settings, name)[row] = min(getattr(asked, name), 2**31 - 1)
            for place, (token, bias) in enumerate(asked.logit_bias.items()):
                settings.bias_ids[row, place], settings.biases[row, place] = token, bias
            origin[row] = request.seed >> 32, request.seed & 0xFFFFFFFF, asked.stream, index
            settings.likeliest[row] = asked.logprobs or 0
        return programs.Admitted(rows, limit, stops, origin, settings)

    def _decode(self) -> programs.Block:
        cancelled = np.zeros(self.scheduler.shape.batch, bool)
        cancelled[list(self._ended_on_host)] = True
        self._state, block = programs.decode(
            self.model, self._params, self._adapters, self._state, cancelled, steps=self.scheduler.steps,
            vocabulary=self.vocabulary,
        )  # fmt: skip
        return block

    def _listen(self, block: programs.Block, rows: Sequence[Sample | None]) -> None:
        """Tells listeners what a block drew; `rows` drew it."""
        for row, sample in enumerate(rows):
            if sample is None or sample.ended:  # by a listener of a row before it
                continue
            request, _ = sample.request
            wanted = request.sampling.logprobs or 0
            count = int(block.alive[:, row].sum())
            spoilt = ~block.finite[:count, row]
            if spoilt.any():  # what is drawn from what is no number is no token
                count = int(spoilt.argmax())
            tokens = [
                TokenLogprob(
                    int(block.drawn.token[step, row]),
                    float(block.drawn.logprob[step, row]),
                    _likeliest(block.drawn.likeliest_ids[step, row], block.drawn.likeliest_logprobs[step, row], wanted),
                )
                for step in range(count)
            ]
            sample.drawn += count
            finish = None
            if spoilt.any():
                finish = Finish.ERROR
            elif tokens and tokens[-1].id in request.stop_ids:
                finish = Finish.STOP
            elif sample.drawn >= sample.max_tokens:
                finish = Finish.LENGTH
            self._end(sample, tokens, finish) if finish else self._tell(sample, tokens)

    def _tell(self, sample: Sample, tokens: list[TokenLogprob]) -> None:
        request, index = sample.request
        if request.listener(index, tokens, None):
            if sample.row is not None:
                self._ended_on_host.add(sample.row)
            self.scheduler.end(sample)

    def _end(self, sample: Sample, tokens: list[TokenLogprob], finish: Finish) -> None:
        request, index = sample.request
        if sample.row is not None and finish is not Finish.LENGTH:
            self._ended_on_host.add(sample.row)
        self.scheduler.end(sample)
        request.listener(index, tokens, finish)


def _likeliest(ids: np.ndarray, logprobs: np.ndarray, wanted: int) -> dict[int, float]:
    found = zip(ids[:wanted].tolist(), logprobs[:wanted].tolist(), strict=True)
    return {i: value for i, value in found if math.isfinite(value)}


@functools.lru_cache(maxsize=64)
def _neutral(rows: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x) for x in neutral(rows))
