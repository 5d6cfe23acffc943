"""The engine draws what the model says, from one copy of each prompt, in any company."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import make_mesh, param_shardings
from msm_jax.sampler import programs
from msm_jax.sampler.adapters import check_adapter, for_sampling, stack_adapters
from msm_jax.sampler.engine import Engine
from msm_jax.sampler.request import Finish, Sampling

VOCABULARY = 60
CONFIG = DecoderConfig(
    vocab_size=64, num_layers=2, width=32, mlp_width=48, num_heads=4, num_kv_heads=2, head_size=8, dtype="float32",
    max_length=512,
)  # fmt: skip
BASE = Model(CONFIG)
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda x: jnp.asarray(RNG.normal(0, 0.3, x.shape), x.dtype), jax.eval_shape(BASE.init, jax.random.key(0))
)
LONG = tuple(int(i) for i in RNG.integers(0, VOCABULARY, 150))
PROMPTS = [LONG[:5], LONG[:64], LONG[:100], LONG[:90] + (1, 2, 3), (7,), LONG[:65]]
apply = jax.jit(Model.apply, static_argnums=0)


def engine(stacked=False, adapters=(), **settings):
    model = dataclasses.replace(BASE, execution=Execution(stacked=stacked))
    params = PARAMS if stacked else model.unstack(PARAMS)
    stack = None
    if adapters:
        model, stack = stack_adapters(model, adapters)
    settings = {"rows": 16, "steps": 4, "chunk": 64} | settings
    return Engine(model, params, stack, vocabulary=VOCABULARY, **settings)


def answers(engine, asked):
    """Tokens and ends of each sample of (prompt, sampling, n, adapter)s, which wait all at once."""
    tokens, ends = {}, {}
    for number, (prompt, sampling, n, adapter) in enumerate(asked):

        def hear(index, new, finish, number=number):
            tokens.setdefault((number, index), []).extend(new)
            if finish:
                ends[number, index] = finish

        engine.submit(prompt, sampling, n, hear, adapter)
    engine.run()
    assert not engine.scheduler.live and not engine.scheduler.waiting and ends.keys() == tokens.keys()
    return tokens, ends


def ids(tokens):
    return {key: [token.id for token in new] for key, new in tokens.items()}


def forced(prompt, tokens, model=BASE, lora=None):
    """Log-probabilities of the tokens by one pass over the whole text."""
    row = jnp.array([[*prompt, *(token.id for token in tokens)]])
    logits = apply(model, PARAMS, lora, row, jnp.ones_like(row), jnp.arange(row.shape[1])[None])[0, :, :VOCABULARY]
    found = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
    return np.array([found[place, token.id] for place, token in enumerate(tokens)])


@pytest.mark.parametrize(("stacked", "chunk"), [(True, 64), (False, 64), (False, 16), (False, 256)])
def test_what_is_drawn_has_the_probability_that_the_model_gives_it(stacked, chunk):
    """For prompts of several lengths at once, some of which begin alike."""
    asked = [(prompt, Sampling(max_tokens=9, seed=number), 3, 0) for number, prompt in enumerate(PROMPTS)]
    tokens, ends = answers(engine(stacked, chunk=chunk), asked)
    assert set(ends.values()) == {Finish.LENGTH} and len(tokens) == 18
    for (number, _), new in tokens.items():
        assert len(new) == 9
        np.testing.assert_allclose([t.logprob for t in new], forced(PROMPTS[number], new), atol=1e-5)


def test_samples_do_not_depend_on_company_order_or_number_of_rows():
    asked = [(prompt, Sampling(max_tokens=7, seed=3, stream=n), 3, 0) for n, prompt in enumerate(PROMPTS)]
    expected = ids(answers(engine(), asked)[0])
    backwards = ids(answers(engine(), asked[::-1])[0])
    assert {(len(asked) - 1 - number, index): new for (number, index), new in backwards.items()} == expected
    assert ids(answers(engine(rows=4, steps=8, chunk=16), asked)[0]) == expected
    for number, one in enumerate(asked):
        assert ids(answers(engine(), [one])[0]) == {(0, i): expected[number, i] for i in range(3)}


def test_one_seed_gives_distinct_samples_and_the_same_again():
    asked = [(LONG[:30], Sampling(max_tokens=12, temperature=1.5, seed=1), 16, 0)]
    first, again = (ids(answers(engine(), asked)[0]) for _ in range(2))
    assert first == again and len(set(map(tuple, first.values()))) == 16
    unseeded = [(LONG[:30], Sampling(max_tokens=12, temperature=1.5), 16, 0)]
    assert ids(answers(engine(), unseeded)[0]) != ids(answers(engine(), unseeded)[0])


def test_an_answer_ends_with_an_id_with_its_length_or_when_its_listener_says_so():
    one = engine(end_ids=[5, 6])
    tokens, ends = answers(one, [(LONG[:9], Sampling(max_tokens=40, temperature=2.0, seed=2), 16, 0)])
    for key, new in tokens.items():
        inside = [token.id in (5, 6) for token in new]
        assert not any(inside[:-1]) and inside[-1] == (ends[key] is Finish.STOP) and (inside[-1] or len(new) == 40)
    assert set(ends.values()) == {Finish.STOP, Finish.LENGTH}
    free = Sampling(max_tokens=40, temperature=2.0, seed=2, ignore_end=True)
    assert set(answers(one, [(LONG[:9], free, 16, 0)])[1].values()) == {Finish.LENGTH}
    heard = []
    one.submit(LONG[:9], free, 1, lambda index, new, finish: heard.extend(new) or len(heard) >= 8)
    one.run()
    assert len(heard) == 8


@pytest.mark.skipif("jax.device_count() == 1", reason="the test below runs it on eight devices")
@pytest.mark.parametrize("tensor", [1, 2])
def test_weights_that_lie_on_several_devices_draw_the_same(tensor):
    """The keys and values of their heads lie there too."""
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": tensor})
    split = jax.tree.map(jax.device_put, PARAMS, param_shardings(BASE.axes, BASE.shapes, mesh))
    asked = [(prompt, Sampling(max_tokens=7, seed=3), 3, 0) for prompt in PROMPTS[:4]]
    model, params, _ = for_sampling(BASE, split, [])
    one = Engine(model, params, None, vocabulary=VOCABULARY, rows=16, steps=4, chunk=64)
    found = ids(answers(one, asked)[0])
    assert found == ids(answers(engine(), asked)[0])
    assert len(one._state.prompts.logits.sharding.device_set) == jax.device_count() > 1


def test_eight_devices_draw_as_one():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "lie_on_several_devices"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "2 passed" in run.stdout, run.stdout + run.stderr


def test_what_is_cancelled_frees_its_row_and_nobody_else_notices():
    asked = [(LONG[:20], Sampling(max_tokens=30, seed=4), 2, 0)]
    expected = ids(answers(engine(), asked)[0])
    one, heard = engine(rows=4), []
    request = one.submit(LONG[:20], Sampling(max_tokens=400), 4, lambda index, new, finish: heard.append(finish))
    for _ in range(3):
        one.step()
    one.cancel(request)
    assert heard[-4:] == [Finish.CANCELLED] * 4 and not one.scheduler.live
    assert ids(answers(one, asked)[0]) == expected


def random_lora(rank, targets, seed):
    lora = LoraConfig(rank, 2.0 * rank, targets)
    rng = np.random.default_rng(seed)
    shapes = dataclasses.replace(BASE, lora=lora).lora_shapes
    return lora, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.mark.parametrize("stacked", [True, False])
def test_several_adapters_in_one_batch_answer_as_each_alone(stacked):
    """Of other ranks and other targets; place 0 is the bare base."""
    adapters = [random_lora(2, ("q", "v"), 1), random_lora(5, ("k", "o", "gate", "up", "down"), 2)]
    asked = [(LONG[:40], Sampling(max_tokens=6, seed=5), 3, place) for place in (0, 1, 2, 1)]
    tokens, _ = answers(engine(stacked, adapters), asked)
    for (number, _), new in tokens.items():
        place = asked[number][3]
        lora, weights = adapters[place - 1] if place else (None, None)
        expected = forced(LONG[:40], new, dataclasses.replace(BASE, lora=lora), weights)
        np.testing.assert_allclose([t.logprob for t in new], expected, atol=2e-5)
    assert ids(tokens)[1, 0] == ids(tokens)[3, 0] != ids(tokens)[2, 0]


def test_an_adapter_of_another_model_is_refused_by_name():
    lora, weights = random_lora(2, ("q",), 1)
    check_adapter(lora, weights, BASE, "mine")
    other = {"layers": {**weights["layers"], "router": weights["layers"]["q"]}}
    with pytest.raises(UserError, match="adapter mine: layers/router/lora_a is of no module of this model"):
        check_adapter(lora, other, BASE, "mine")
    narrow = jax.tree.map(lambda x: x[:, :, :1], weights)
    with pytest.raises(UserError, match="adapter mine: layers/q/lora_a is .* and this model needs"):
        check_adapter(lora, narrow, BASE, "mine")


def test_nothing_compiles_for_new_settings():
    one = engine()
    answers(one, [(LONG[:40], Sampling(max_tokens=8, seed=1), 16, 0)])
    compiled = [programs.decode.compiled(), programs.prefill.compiled(), programs.admit.compiled()]
    for number, sampling in enumerate(
        [
            Sampling(max_tokens=5, temperature=0.0, logprobs=3), Sampling(max_tokens=7, top_k=3, top_p=0.5, min_p=0.1),
            Sampling(max_tokens=8, repetition_penalty=1.3, presence_penalty=1.0, logit_bias={3: 5.0}, stop_ids=(1,)),
        ]
    ):  # fmt: skip
        answers(one, [(LONG[number : 40 + number], sampling, 16, 0)])
    assert compiled == [programs.decode.compiled(), programs.prefill.compiled(), programs.admit.compiled()]


def test_after_an_error_the_engine_can_be_asked_anew(monkeypatch):
    one = engine()
    asked = [(LONG[:20], Sampling(max_tokens=8, seed=6), 16, 0)]
    expected = ids(answers(one, asked)[0])

    def fails(model, params, adapters, state, *_, **__):
        jax.tree.map(lambda x: x.delete(), state)  # as it is when it was given away
        raise MemoryError("too little")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", fails)
        with pytest.raises(MemoryError):
            answers(one, asked)
    assert one.scheduler.idle and ids(answers(one, asked)[0]) == expected


def test_a_model_that_gives_no_numbers_says_so_and_spoils_no_slot():
    lora, weights = random_lora(2, ("v",), 1)
    one = engine(adapters=[(lora, jax.tree.map(lambda x: x * jnp.nan, weights))])
    asked = [(LONG[:20], Sampling(max_tokens=8, seed=6), 16, 0)]
    expected = ids(answers(one, asked)[0])
    assert set(answers(one, [(LONG[:20], Sampling(max_tokens=8), 16, 1)])[1].values()) == {Finish.ERROR}
    assert ids(answers(one, asked)[0]) == expected


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ((), {}, "a prompt has no token to go on from"),
        ((64,), {}, "a prompt has the id 64, which the model does not know"),
        (LONG, {"max_tokens": 400}, "a prompt of 150 tokens and max_tokens=400 exceed the 512 tokens"),
        ((1,), {"stop_ids": (60,)}, "stop_ids has 60; ids are from 0 to 59"),
        ((1,), {"logit_bias": {99: 1.0}}, "logit_bias has the id 99; ids are from 0 to 59"),
    ],
)
def test_what_cannot_be_asked_is_refused(prompt, sampling, message):
    one = engine()
    with pytest.raises(UserError, match=message):
        one.submit(prompt, Sampling(**sampling), 1, lambda *_: None)
    assert one.scheduler.idle
