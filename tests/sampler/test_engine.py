"""The engine draws what the model says, from one copy of each prompt, in any company."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import make_mesh, param_shardings
from msm_jax.sampler import programs, scheduler
from msm_jax.sampler.adapters import check_adapter, for_sampling, join_adapters
from msm_jax.sampler.engine import Engine
from msm_jax.sampler.request import Finish, Sampling
from msm_jax.sampler.state import Shape

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


def engine(stacked=False, adapters=(), **sizes):
    model = dataclasses.replace(BASE, execution=Execution(stacked=stacked))
    params = PARAMS if stacked else model.unstack(PARAMS)
    joined = None
    if adapters:
        model, joined = join_adapters(model, adapters)
    sizes = {"rows": 16, "steps": 4, "chunk": 64} | sizes
    return Engine(model, params, joined, vocabulary=VOCABULARY, **sizes)


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


@pytest.mark.parametrize(
    ("chunk", "lengths"), [(256, [511, 512, 513, 1024, 1025]), (600, [100]), (600, [599, 601]), (96, [95, 97, 128])]
)
def test_prompts_at_the_borders_of_chunks_and_buckets_are_read_whole(chunk, lengths):
    """And chunks that are no power of two."""
    base = Model(dataclasses.replace(CONFIG, max_length=None))
    model = dataclasses.replace(base, execution=Execution(stacked=False))
    one = Engine(model, model.unstack(PARAMS), None, vocabulary=VOCABULARY, rows=16, steps=4, chunk=chunk)
    rng = np.random.default_rng(8)
    prompts = [tuple(int(i) for i in rng.integers(0, VOCABULARY, length)) for length in lengths]
    tokens, _ = answers(one, [(prompt, Sampling(max_tokens=2, seed=1), 1, 0) for prompt in prompts])
    for (number, _), new in tokens.items():
        np.testing.assert_allclose([t.logprob for t in new], forced(prompts[number], new, base), atol=1e-5)


@pytest.mark.parametrize("stacked", [True, False])
def test_prompts_in_8_bits_draw_nearly_the_same(stacked):
    """However they are read and wherever they lie: what is kept of a token depends on its own numbers alone."""
    asked = [(prompt, Sampling(max_tokens=9, seed=number), 3, 0) for number, prompt in enumerate(PROMPTS)]
    coarse = engine(stacked, int8_prompts=True)
    tokens, _ = answers(coarse, asked)
    kept = jax.tree.leaves(coarse._state.prompts.keys_and_values)
    assert {x.dtype.name for x in kept} == {"int8", "float32"}
    differences = []
    for (number, _), new in tokens.items():
        differences.append([t.logprob for t in new] - forced(PROMPTS[number], new))
    assert 1e-5 < np.abs(differences).max() < 0.1
    for chunk in (16, 256):
        other, _ = answers(engine(stacked, int8_prompts=True, chunk=chunk), asked)
        for key, new in other.items():
            if ids({key: new}) == ids({key: tokens[key]}):
                np.testing.assert_allclose([t.logprob for t in new], [t.logprob for t in tokens[key]], atol=2e-2)
        assert sum(ids(other)[key] == ids(tokens)[key] for key in tokens) >= len(tokens) - 2


def test_stacked_and_separate_layers_draw_the_same():
    asked = [(prompt, Sampling(max_tokens=9, seed=number), 3, 0) for number, prompt in enumerate(PROMPTS)]
    (first, _), (other, _) = (answers(engine(stacked), asked) for stacked in (True, False))
    assert ids(first) == ids(other)
    for key, new in first.items():
        np.testing.assert_allclose([t.logprob for t in new], [t.logprob for t in other[key]], atol=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_beginning_that_is_copied_is_as_if_it_were_read(monkeypatch, penalty):
    """At two levels: what was copied is copied again. Penalties know the tokens that were copied."""
    prompts = [LONG[:70], LONG[:40] + (3,) * 60, LONG[:40] + (3,) * 40 + (4,) * 20, LONG[:40], LONG[:20]]
    sampling = Sampling(max_tokens=8, seed=1, repetition_penalty=penalty)
    copies, copy = [], programs.copy_prompts

    def remember(state, sources, targets, lengths, **settings):
        copies.extend(lengths[targets < len(state.prompts.length)].tolist())
        return copy(state, sources, targets, lengths, **settings)

    monkeypatch.setattr(programs, "copy_prompts", remember)
    asked = [(prompt, sampling, 1, 0) for prompt in prompts]
    copied, _ = answers(engine(), asked)
    assert {40, 80} <= set(copies)
    copies.clear()
    monkeypatch.setattr(scheduler, "_WORTH_COPYING", 10**9)
    anew, _ = answers(engine(), asked)
    assert not copies and ids(anew) == ids(copied)
    for key, new in anew.items():
        np.testing.assert_allclose([t.logprob for t in new], [t.logprob for t in copied[key]], atol=1e-5)


def test_the_next_request_goes_on_from_a_prompt_that_is_there_still():
    one = engine()
    for prompt in (LONG[:90], LONG[:60], LONG[:100], LONG[:60] + (9,), LONG[:90]):
        asked = [(prompt, Sampling(max_tokens=4, seed=2), 4, 0)]
        tokens, _ = answers(one, asked)
        for new in tokens.values():
            np.testing.assert_allclose([t.logprob for t in new], forced(prompt, new), atol=1e-5)


@settings(max_examples=12)
@given(
    order=st.permutations(range(5)),
    company=st.sampled_from([{}, {"temperature": 0.0}, {"top_k": 2, "logprobs": 5}, {"presence_penalty": 2.0}]),
    late=st.integers(0, 3),
    anew=st.booleans(),
)
def test_a_sample_is_the_same_bit_for_bit_in_any_slot_order_and_company(shared, order, company, late, anew):
    """Within one shape, of a prompt that was read; whatever the others ask, and whether they are there when it begins.
    If the prompt is read anew, in other company, the tokens are the same and their log-probabilities nearly so."""
    one, expected = shared

    def hear(found, number):
        return lambda index, new, finish: found.setdefault((number, index), []).extend(new)

    found, others = {}, Sampling(max_tokens=24, seed=77, **company)
    if anew:
        one.scheduler.groups = [None] * 16
    for place, number in enumerate(order):
        if place == late:
            for _ in range(late):
                one.step()
            one.submit(LONG[50:90], others, 1, lambda *_: None)
        sampling = Sampling(max_tokens=12, seed=number, logprobs=2)
        one.submit(LONG[number : number + 50], sampling, 3, hear(found, number))
    one.run()
    assert ids(found) == ids(expected)
    for key, new in found.items():
        np.testing.assert_allclose([t.logprob for t in new], [t.logprob for t in expected[key]], atol=1e-5)
    if not anew:
        assert found == expected
    expected.update(found)  # of the prompts as they were read last


@pytest.fixture(scope="module")
def shared():
    """An engine whose shape stays as it is, and what each of five requests hears of it alone."""
    one, expected = engine(), {}
    one.scheduler.wanted = lambda: Shape(16, 1, 64, 128)
    for number in range(5):
        asked = [(LONG[number : number + 50], Sampling(max_tokens=12, seed=number, logprobs=2), 3, 0)]
        expected |= {(number, index): new for (_, index), new in answers(one, asked)[0].items()}
    return one, expected


def test_samples_do_not_depend_on_company_order_or_number_of_rows():
    asked = [(prompt, Sampling(max_tokens=7, seed=3, stream=n), 3, 0) for n, prompt in enumerate(PROMPTS)]
    expected = ids(answers(engine(), asked)[0])
    backwards = ids(answers(engine(), asked[::-1])[0])
    assert {(len(asked) - 1 - number, index): new for (number, index), new in backwards.items()} == expected
    assert ids(answers(engine(rows=4, steps=8, chunk=16), asked)[0]) == expected
    for number, one in enumerate(asked):
        assert ids(answers(engine(), [one])[0]) == {(0, i): expected[number, i] for i in range(3)}


@pytest.mark.parametrize("behind", [1, 2])
def test_a_host_that_reads_blocks_later_hears_the_same(behind):
    """Of answers that end with an id, with their length, by their listener, or cancelled; and of what is asked then."""

    def play(one):
        heard, ends, cut = {}, {}, []

        def hear(number, index, new, finish):
            heard.setdefault((number, index), []).extend(token.id for token in new)
            if finish:
                ends[number, index] = finish
            if finish and number < 3 and not index:
                ask(number + 10, LONG[number : number + 20], Sampling(max_tokens=5, seed=number), 1)
            return number == 4 and len(heard[number, index]) > 5

        def ask(number, prompt, sampling, n):
            return one.submit(prompt, sampling, n, functools.partial(hear, number))

        for number, prompt in enumerate(PROMPTS):
            ask(number, prompt, Sampling(max_tokens=3 + 5 * number, seed=number, temperature=2.0), 4)
        cut.append(ask(99, LONG[:30], Sampling(max_tokens=200, seed=1, ignore_end=True), 3))
        for _ in range(4):
            one.step()
        one.cancel(cut[0])
        one.run()
        assert one.idle and not one.scheduler.live
        return {key: ids for key, ids in heard.items() if key[0] not in (4, 99)}, ends

    sizes = {"end_ids": [5, 6], "rows": 8}
    (expected, ends), (heard, ends_later) = play(engine(**sizes)), play(engine(**sizes, behind=behind))
    assert heard == expected and ends_later == ends
    assert {Finish.STOP, Finish.LENGTH, Finish.CANCELLED} == set(ends.values())


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


MESHES = [{"data": 8, "fsdp": 1, "tensor": 1}, {"data": 4, "fsdp": 1, "tensor": 2}, {"data": 1, "fsdp": 4, "tensor": 2}]


@pytest.mark.skipif("jax.device_count() == 1", reason="the test below runs it on eight devices")
@pytest.mark.parametrize(("sizes", "adapted"), [*((sizes, False) for sizes in MESHES), (MESHES[1], True)], ids=str)
def test_weights_that_lie_on_several_devices_draw_the_same(sizes, adapted):
    """The keys and values of their heads lie there too. The last mesh is that of `load`."""
    mesh = make_mesh(sizes)
    split = jax.tree.map(jax.device_put, PARAMS, param_shardings(BASE.axes, BASE.shapes, mesh))

    def placed(lora, weights):
        axes = dataclasses.replace(BASE, lora=lora).lora_axes
        return jax.tree.map(jax.device_put, weights, param_shardings(axes, weights, mesh))

    adapters = [random_lora(2, ("q", "v", "down"), 1), random_lora(4, ("k", "o", "gate", "up"), 2)] if adapted else []
    asked = [
        (prompt, Sampling(max_tokens=7, seed=3), 3, k % 3 if adapted else 0) for k, prompt in enumerate(PROMPTS[:4])
    ]
    model, params, joined = for_sampling(BASE, split, [(lora, placed(lora, weights)) for lora, weights in adapters])
    one = Engine(model, params, joined, vocabulary=VOCABULARY, rows=16, steps=4, chunk=64)
    found = ids(answers(one, asked)[0])
    assert found == ids(answers(engine(adapters=adapters), asked)[0])
    assert len(one._state.prompts.logits.sharding.device_set) == jax.device_count() > 1


def test_eight_devices_draw_as_one():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "lie_on_several_devices"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "4 passed" in run.stdout, run.stdout + run.stderr


def test_an_answer_may_end_with_its_first_token():
    one = engine()
    assert [len(new) for new in answers(one, [(LONG[:9], Sampling(max_tokens=1), 3, 0)])[0].values()] == [1] * 3
    greedy = Sampling(max_tokens=9, temperature=0.0)
    [whole] = ids(answers(one, [(LONG[:9], greedy, 1, 0)])[0]).values()
    ending = dataclasses.replace(greedy, stop_ids=(whole[0],))
    tokens, ends = answers(one, [(LONG[:9], ending, 1, 0)])
    assert ids(tokens) == {(0, 0): whole[:1]} and ends == {(0, 0): Finish.STOP}
    bias = dataclasses.replace(greedy, logit_bias={whole[0]: -100.0})
    assert ids(answers(one, [(LONG[:9], bias, 1, 0)])[0])[0, 0][0] != whole[0]


def test_what_waits_can_be_cancelled_and_what_has_ended_cannot():
    one, heard = engine(rows=4), []
    asked = [one.submit(LONG[:9], Sampling(max_tokens=8), 4, lambda *said: heard.append(said[2])) for _ in range(3)]
    one.step()
    one.cancel(asked[1])
    one.cancel(asked[1])
    assert heard.count(Finish.CANCELLED) == 4
    one.run()
    one.cancel(asked[0])
    assert heard.count(Finish.CANCELLED) == 4 and heard.count(Finish.LENGTH) == 8


def test_a_listener_may_cancel_and_ask_anew():
    one, heard, left = engine(rows=4), [], []

    def hear(index, new, finish):
        if not left:
            left.append(index)
            one.cancel(asked)
            one.submit(LONG[:9], Sampling(max_tokens=8), 2, lambda *said: heard.append(said[2]))
        heard.append(finish)

    asked = one.submit(LONG[:9], Sampling(max_tokens=100), 4, hear)
    one.run()
    assert heard.count(Finish.LENGTH) == 2 and heard.count(Finish.CANCELLED) == 4 and not one.scheduler.live


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
@pytest.mark.parametrize("others", [0, 5])
def test_several_adapters_in_one_batch_answer_as_each_alone(stacked, others):
    """Of other ranks and other targets, in groups that are more or fewer than the adapters; 0 is the bare base."""
    adapters = [random_lora(2, ("q", "v"), 1), random_lora(5, ("k", "o", "gate", "up", "down"), 2)]
    adapters += [random_lora(3, ("q",), 3 + number) for number in range(others)]
    asked = [(LONG[:40], Sampling(max_tokens=6, seed=5), 3, place) for place in (0, 1, 2, 1)]
    tokens, _ = answers(engine(stacked, adapters), asked)
    for (number, _), new in tokens.items():
        place = asked[number][3]
        lora, weights = adapters[place - 1] if place else (None, None)
        expected = forced(LONG[:40], new, dataclasses.replace(BASE, lora=lora), weights)
        np.testing.assert_allclose([t.logprob for t in new], expected, atol=2e-5)
    assert ids(tokens)[1, 0] == ids(tokens)[3, 0] != ids(tokens)[2, 0]
    bare = ids(answers(engine(stacked), asked[:1])[0])
    assert {key: new for key, new in ids(tokens).items() if key[0] == 0} == bare


def test_an_adapter_of_another_model_is_refused_by_name():
    lora, weights = random_lora(2, ("q",), 1)
    check_adapter(lora, weights, BASE, "mine")
    other = {"layers": {**weights["layers"], "router": weights["layers"]["q"]}}
    with pytest.raises(UserError, match="adapter mine: layers/router/lora_a is of no module of this model"):
        check_adapter(lora, other, BASE, "mine")
    narrow = jax.tree.map(lambda x: x[:, :, :1], weights)
    with pytest.raises(UserError, match="adapter mine: layers/q/lora_a is .* and this model needs"):
        check_adapter(lora, narrow, BASE, "mine")


def test_nothing_compiles_for_new_settings(compilations):
    """Nor for prompts and answers of other lengths in one bucket."""
    one = engine()
    for prompt in (LONG[:40], LONG[1:60]):
        answers(one, [(prompt, Sampling(max_tokens=8, seed=1), 16, 0)])
    compilations.clear()
    asked = [
        Sampling(max_tokens=5, temperature=0.0, logprobs=3),
        Sampling(max_tokens=7, top_k=3, top_p=0.5, min_p=0.1, seed=2**40, stream=9),
        Sampling(max_tokens=8, repetition_penalty=1.3, presence_penalty=1.0, logit_bias={3: 5.0}, stop_ids=(1,)),
    ]
    for number, sampling in enumerate(asked):
        answers(one, [(LONG[number : 33 + 9 * number], sampling, 16, 0)])
    assert compilations == []
    answers(one, [(LONG[:100], Sampling(max_tokens=8), 16, 0)])
    assert compilations, "another bucket is compiled, and counted"


@pytest.fixture
def compilations():
    found = []
    listener = lambda event, *_, **__: found.append(event) if event.endswith("backend_compile_duration") else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield found
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize("placed", ["by default", "by intent", "as on a mesh"])
def test_each_program_is_compiled_once(compilations, placed):
    """Wherever the weights lie: loaded ones lie on the mesh of one device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    where = {"by intent": jax.devices()[0], "as on a mesh": NamedSharding(mesh, PartitionSpec())}.get(placed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PARAMS", PARAMS if where is None else jax.device_put(PARAMS, where))
        one, other = engine(stacked=True, chunk=32), engine(stacked=True, chunk=32, rows=4)
    for number in range(3):
        prompt = tuple((token + number) % VOCABULARY for token in LONG[:100])
        compilations.clear()
        answers(one, [(prompt, Sampling(max_tokens=8, seed=1), 16, 0)])
        if number:
            assert compilations == []
    chunks = []
    real = programs.prefill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            programs, "prefill", lambda *args, **more: chunks.append(len(compilations)) or real(*args, **more)
        )
        answers(other, [(LONG[:96], Sampling(max_tokens=8, seed=1), 4, 0)])
    assert len(chunks) == 3 and chunks[1] == chunks[2], "the second chunk compiles nothing"


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
    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", fails)
        heard = []
        lost = one.submit(LONG[:20], Sampling(max_tokens=8), 4, lambda _, tokens, finish: heard.append(finish))
        with pytest.raises(MemoryError):
            one.run()
    assert heard == [Finish.CANCELLED] * 4, "others than who goes on may have asked"
    one.cancel(lost)  # as `generate` does, and nobody else loses a row by it
    assert ids(answers(one, asked)[0]) == expected


def test_a_model_that_gives_no_numbers_says_so_and_spoils_no_slot():
    lora, weights = random_lora(2, ("v",), 1)
    one = engine(adapters=[(lora, jax.tree.map(lambda x: x * jnp.nan, weights))])
    asked = [(LONG[:20], Sampling(max_tokens=8, seed=6), 16, 0)]
    expected = ids(answers(one, asked)[0])
    tokens, ends = answers(one, [(LONG[:20], Sampling(max_tokens=8), 16, 1)])
    assert set(ends.values()) == {Finish.ERROR}
    assert not any(tokens.values())  # what is drawn from no numbers may be an id that no tokenizer has
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


@pytest.mark.parametrize("place", [-1, 2])
def test_an_adapter_that_is_not_there_is_refused(place):
    for one in (engine(), engine(adapters=[random_lora(2, ("q",), 1)])):
        with pytest.raises(UserError, match=f"adapter {place} is not on the devices; choose from 0, the bare base, to"):
            one.submit((1,), Sampling(), 1, lambda *_: None, place)


@pytest.mark.parametrize(("stacked", "chunk"), [(True, 64), (False, 64), (False, 16)])
def test_log_probabilities_of_a_prompt_are_those_of_one_pass_over_it(stacked, chunk):
    """From any token on, for prompts that begin alike, beside answers that are drawn."""
    one, requests = engine(stacked, chunk=chunk), []
    asked = [(prompt, first) for prompt in PROMPTS for first in (1, max(1, len(prompt) - 2))]
    for again in range(2):  # the second time from what is there still
        for number, (prompt, first) in enumerate(asked):
            sampling = Sampling(max_tokens=(0, 3)[number % 2], prompt_logprobs=(0, 4)[number // 2 % 2], seed=1)
            requests.append(one.submit(prompt, sampling, 1 + number % 2, lambda *_: None, scored_from=first))
        one.submit(LONG[:70], Sampling(max_tokens=9), 5, lambda *_: None)
        one.run()
        assert one.scheduler.idle, again
    for request, (prompt, first) in zip(requests, asked * 2, strict=True):
        row = jnp.array([prompt])
        logits = apply(BASE, PARAMS, None, row, jnp.ones_like(row), jnp.arange(len(prompt))[None])[0, :, :VOCABULARY]
        expected = jax.nn.log_softmax(logits)[first - 1 : -1]
        found = request.prompt_logprobs
        assert [token.id for token in found] == list(prompt[first:])
        np.testing.assert_allclose(
            [token.logprob for token in found], [expected[i, token.id] for i, token in enumerate(found)], atol=1e-5
        )
        for place, token in enumerate(found):
            best = sorted(expected[place].tolist(), reverse=True)[: request.sampling.prompt_logprobs]
            np.testing.assert_allclose(list(token.likeliest.values()), best, atol=1e-5)


def test_many_short_prompts_are_read_in_few_calls(monkeypatch):
    calls, prefill = [], programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *args, **kw: calls.append(args[5].shape) or prefill(*args, **kw))
    prompts = [tuple(RNG.integers(0, VOCABULARY, 10)) for _ in range(64)]
    asked = [(prompt, Sampling(max_tokens=4, seed=number), 1, 0) for number, prompt in enumerate(prompts)]
    tokens, _ = answers(engine(rows=64), asked)
    assert calls == [(16, 16)] * 4
    for (number, _), new in tokens.items():
        np.testing.assert_allclose([t.logprob for t in new], forced(prompts[number], new), atol=1e-5)
