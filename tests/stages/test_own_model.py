"""A checkpoint as the model that writes corpora: tiny and random, so what it writes is of no use."""

import asyncio
import copy
import json
import pathlib
import random
import shutil
import threading

import jax
import pytest

import msm_jax
from msm_jax import launch
from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.request import Finish, Rejected, Request, Status
from msm_jax.llm.store import CallStore
from msm_jax.sampler.engine import Engine
from msm_jax.sampler.language_model import LanguageModel
from msm_jax.sampler.request import Finish as Ended
from msm_jax.sampler.request import TokenLogprob
from msm_jax.sampler.service import Piece, Service
from msm_jax.stages import own_model
from msm_jax.stages.own_model import OwnModel, name_of
from tests.corpus.gemini import Items
from tests.data.checkpoints import read_ids
from tests.tiny_checkpoints import write_adapter

TOKENS = 8


class Watch:
    """What engines are asked for, and how far they go.

    Attributes:
      asked: (prompt, sampling) of each request.
      rows: that draw at once, at most.
      steps: blocks that are drawn.
    """

    def __init__(self):
        self.asked, self.rows, self.steps = [], 0, 0


@pytest.fixture
def watch(monkeypatch):
    watch, submit, step = Watch(), Engine.submit, Engine.step

    def watched_submit(self, prompt, sampling, *args, **options):
        watch.asked.append((prompt, sampling))
        return submit(self, prompt, sampling, *args, **options)

    def watched_step(self):
        done = step(self)
        watch.steps += done
        watch.rows = max(watch.rows, self.scheduler.shape.batch if self.scheduler.shape else 0)
        return done

    monkeypatch.setattr(Engine, "submit", watched_submit)
    monkeypatch.setattr(Engine, "step", watched_step)
    return watch


@pytest.fixture(scope="module")
def loaded(qwen3):
    """The weights once, for all tests of this file that are not about them."""
    model, service = OwnModel(str(qwen3), at_once=1)._load()
    service.close()
    return model


@pytest.fixture
def make(qwen3, loaded):
    def make(at_once=8, ends=True, **options):
        """`ends`: whether answers may end by themselves."""
        own = OwnModel(str(qwen3), at_once, **options)
        model = copy.copy(loaded)
        for made in ("sampler", "service"):
            vars(model).pop(made, None)
        model._sizes = model._sizes | {"rows": at_once}
        if not ends:
            model.sampler.engine.end_ids = ()
        own._load = lambda: (model, model.service)
        return own

    return make


def question(number, **fields):
    fields = {"tags": ("document",), "max_tokens": TOKENS, "system": "S"} | fields
    return Request("document", f"Which chair is {number}?", **fields)


def replies(own, requests):
    """Of requests that are made at once; an exception in the place of a reply that is none."""

    async def go():
        try:
            return await asyncio.gather(*map(own.reply, requests), return_exceptions=True)
        finally:
            await own.close()

    return asyncio.run(go())


def test_a_reply_does_not_depend_on_company(make, watch):
    requests = [question(number) for number in range(5)]
    together = replies(make(), requests)
    assert watch.rows > 1, "they were not decoded together"
    assert len({reply.text for reply in together}) == 5
    assert replies(make(), requests[3:4]) == together[3:4]
    assert replies(make(), [*requests[::-1], question("much longer, and so all rows " * 3)])[:5] == together[::-1]


def test_many_at_once_in_any_order_with_one_that_fails(make, monkeypatch):
    """More than there are rows for, of all lengths; who comes when tells nothing of a reply."""
    requests = [question(number, max_tokens=1 + 7 * number % 40) for number in range(24)]
    expected = replies(make(at_once=8), requests)
    encode = LanguageModel.encode

    def fails(self, chat, *where):
        if "chair is 100" in chat[-1]["content"]:
            raise RecursionError("a template that calls itself")
        return encode(self, chat, *where)

    monkeypatch.setattr(LanguageModel, "encode", fails)
    for seed in range(2):
        order = [*range(24), 100]
        random.Random(seed).shuffle(order)
        asked = [requests[number] if number < 24 else question(100) for number in order]
        found = dict(zip(order, replies(make(at_once=4), asked), strict=True))
        assert isinstance(found.pop(100), RecursionError)
        assert [found[number] for number in range(24)] == expected


def test_equal_requests_have_equal_replies_and_another_attempt_another(make):
    first, same, again, other = replies(
        make(), [question(1), question(1), question(1, attempt=1), question(1, sample=1)]
    )
    assert first == same
    assert len({first.text, again.text, other.text}) == 3


def test_greedy_is_what_the_model_generates(make, loaded, qwen3):
    [reply] = replies(make(), [question(1, temperature=0.0)])
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Which chair is 1?"}]
    model = msm_jax.load(qwen3, thinking="off")
    [[completion]] = model.generate([chat], temperature=0.0, max_tokens=TOKENS)
    assert reply.text == completion.text
    assert reply.usage.prompt == len(model.encode(chat))
    # What the template supplies is counted and stands in no reply.
    assert loaded.template.thinking == "off"
    assert reply.usage.prompt > len(msm_jax.load(qwen3).encode(chat))


def test_what_ended_by_itself_and_what_was_cut_off(make, loaded, monkeypatch):
    own = make()
    [cut] = replies(own, [question(1)])
    assert (cut.finish, cut.usage.output) == (Finish.LENGTH, TOKENS)
    # The same tokens, of which a late one ends answers.
    [[completion]] = loaded.generate([question(1).chat()], max_tokens=TOKENS, seed=[own._seed(question(1))], logprobs=0)
    ids = [token.id for token in completion.logprobs]
    assert completion.text == cut.text
    place = max(place for place in range(TOKENS) if ids[place] not in ids[:place])
    assert place > 2
    monkeypatch.setattr(loaded, "stop_ids", (ids[place],))
    [ended] = replies(make(), [question(1)])
    assert (ended.finish, ended.usage.output) == (Finish.STOP, place + 1)
    assert ended.text == loaded.tokenizer.decode(ids[:place])


def test_what_differs_in_settings_is_decoded_together(make, watch):
    requests = [question(n, temperature=t, max_tokens=m) for n in range(2) for t in (0.0, 1.0) for m in (3, TOKENS)]
    got = replies(make(), requests)
    assert watch.rows > 1
    assert [reply.usage.output for reply in got] == [request.max_tokens for request in requests]
    assert got == [replies(make(), [request])[0] for request in requests]


def test_no_more_at_once_than_are_asked_for(make, watch):
    got = replies(make(at_once=2), [question(number) for number in range(5)])
    assert len({reply.text for reply in got}) == 5
    assert watch.rows == 2


def test_answers_are_no_longer_than_the_most(make):
    own = make(max_output_tokens=4)
    assert own.max_output_tokens(question(1)) == 4
    [reply] = replies(own, [question(1, temperature=0.0)])
    assert reply.usage.output == 4


def test_a_shape_is_stated_in_the_prompt(make, watch, loaded):
    [reply] = replies(make(), [Request("ideas", "List.", shape=Items, max_tokens=TOKENS)])
    [(prompt, _)] = watch.asked
    text = loaded.tokenizer.spell(prompt)
    assert text.startswith("<|im_start|>user") and "system" not in text
    assert json.dumps(Items.model_json_schema()) in text
    assert reply.finish in (Finish.STOP, Finish.LENGTH)


def say(monkeypatch, *texts):
    """Whatever is asked, these are the pieces of the answer. Returns the list of what is asked."""
    asked = []

    async def stream(self, prompt, sampling, n=1, adapter=0):
        asked.append(sampling)
        for text in texts[:-1]:
            yield Piece(0, text, (TokenLogprob(1, 0.0, {}),), None)
        yield Piece(0, texts[-1], (TokenLogprob(1, 0.0, {}),), Ended.STOP)

    monkeypatch.setattr(Service, "stream", stream)
    return asked


def test_thoughts_are_left_out(make, monkeypatch):
    say(monkeypatch, "Well.</thi", "nk>An answer.")
    [reply] = replies(make(), [question(1)])
    assert (reply.text, reply.usage.output) == ("An answer.", 2)


def test_a_prompt_that_cannot_be_asked_is_refused_alone(make, watch):
    long, spells, fits = question("word " * 9000), question("<|im_end|>"), question(1)
    *errors, half = replies(make(), [long, fits, spells, question("\ud83d")])
    assert isinstance(half, Rejected) and "half of a surrogate pair" in str(half)
    assert [type(error) for error in errors[::2]] == [Rejected, Rejected]
    assert "lower config.generation.max_output_tokens" in str(errors[0])
    assert "control token" in str(errors[2])
    assert errors[1] == replies(make(), [fits])[0]
    assert len(watch.asked) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "lower config.calls.in_flight or"),
        (
            jax.errors.JaxRuntimeError("INTERNAL: lost\nat 0x1"),
            "the sampler failed (JaxRuntimeError: INTERNAL: lost); run",
        ),
        (
            ZeroDivisionError("in a plan"),
            "the sampler failed (ZeroDivisionError: in a plan); run the same command again",
        ),
    ],
)
def test_an_engine_that_fails_is_told_in_one_line(error, told, make, qwen3, monkeypatch):
    """To those whose answers it draws, and to who asks it afterwards."""

    def fail(self):
        if not self.idle:
            raise error

    monkeypatch.setattr(Engine, "step", fail)

    async def go():
        own = make()
        first = await asyncio.gather(*map(own.reply, map(question, range(2))), return_exceptions=True)
        later = await asyncio.gather(own.reply(question(3)), return_exceptions=True)
        await own.close()
        return [*first, *later]

    for found in asyncio.run(go()):
        assert type(found) is UserError
        assert told in str(found) and str(found).startswith(f"{qwen3}: ") and "\n" not in str(found)


def test_weights_without_numbers_are_told(make, loaded, monkeypatch):
    monkeypatch.setattr(loaded, "params", jax.tree.map(lambda x: x * float("nan"), loaded.params))
    [error] = replies(make(), [question(1)])
    assert type(error) is UserError and "its weights are damaged" in str(error)


def test_weights_are_loaded_once_and_who_gives_up_leaves_them_to_the_others(make, qwen3, monkeypatch):
    loads, go_on = [], threading.Event()

    def load(*args, **options):
        loads.append(options)
        go_on.wait(60)
        raise UserError("no weights")

    monkeypatch.setattr(own_model, "load", load)

    async def go():
        own = OwnModel(str(qwen3), at_once=3)
        calls = [asyncio.create_task(own.reply(question(number))) for number in range(5)]
        await asyncio.sleep(0.01)
        calls[0].cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        await own.close()
        return found

    first, *others = asyncio.run(go())
    assert isinstance(first, asyncio.CancelledError)
    assert list(map(str, others)) == ["no weights"] * 4
    assert loads == [{"revision": None, "rows": 3}]


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_call_that_comes_later_is_decoded_with_those_before(make, watch):
    async def go():
        own, ended = make(ends=False), []

        async def ask(number, **fields):
            reply = await own.reply(question(number, **fields))
            ended.append(number)
            return reply

        long = asyncio.create_task(ask(0, max_tokens=2000))
        await until(lambda: watch.steps > 1)
        short = await ask(1)
        reply = await long
        await own.close()
        return reply, short, ended

    reply, short, ended = asyncio.run(go())
    assert reply.usage.output == 2000
    assert ended == [1, 0]
    assert [short] == replies(make(), [question(1)])


def test_who_gave_up_is_not_decoded(make, watch):
    async def go():
        own = make(ends=False)
        calls = [asyncio.create_task(own.reply(question(n, max_tokens=8000 if n == 1 else TOKENS))) for n in range(3)]
        await until(lambda: len(watch.asked) == 3 and watch.steps)
        calls[1].cancel()
        got = await asyncio.gather(*calls, return_exceptions=True)
        # It goes on with what comes after.
        later = await own.reply(question(5))
        _, service = own._loading.result()
        await until(lambda: service.engine.idle)
        await own.close()
        return got, later

    (first, given_up, last), later = asyncio.run(go())
    assert isinstance(given_up, asyncio.CancelledError)
    assert watch.steps < 200, "8,000 tokens are 500 blocks"
    assert [first, last, later] == [replies(make(), [question(number)])[0] for number in (0, 2, 5)]


def test_closing_ends_what_is_decoded(make, watch):
    """As a second Ctrl-C does; and it does not take the time of the answers."""

    async def go():
        own = make(ends=False)
        call = asyncio.create_task(own.reply(question(1, max_tokens=8000)))
        await until(lambda: watch.steps)
        await own.close()
        return await asyncio.gather(call, own.reply(question(2)), return_exceptions=True)

    closed, after = asyncio.run(go())
    assert isinstance(closed, RuntimeError) and "was closed before it had answered" in str(closed)
    assert isinstance(after, RuntimeError) and not isinstance(after, UserError)
    assert watch.steps < 100, "8,000 tokens are 500 blocks"


def test_a_reply_of_no_use_is_drawn_anew(make, tmp_path, monkeypatch):
    """Each attempt has its own seed, and the same one in the next run."""
    asked = say(monkeypatch, "Well.")

    def run(path, attempts):
        own, store = make(), CallStore(path, "test")

        async def go():
            try:
                return await Caller(own, store, limits=Limits(attempts=attempts)).ask([question(1)])
            finally:
                await own.close()

        [answer] = asyncio.run(go())
        store.close()
        assert answer.status is Status.SCHEMA

    run(tmp_path / "once.sqlite", 3)
    at_once = [sampling.seed for sampling in asked]
    assert len(set(at_once)) == 3
    run(tmp_path / "twice.sqlite", 2)
    run(tmp_path / "twice.sqlite", 3)
    assert [sampling.seed for sampling in asked[3:]] == at_once


def test_a_name_tells_what_changes_replies_and_not_where_it_lies(qwen3, imported, adapter, tmp_path):
    moved = shutil.copytree(qwen3, tmp_path / qwen3.name)
    assert name_of(str(moved)) == name_of(str(qwen3)) == name_of(f"{qwen3}/")
    assert len({name_of(str(path)) for path in (qwen3, imported, adapter)}) == 3
    assert name_of(str(adapter)).startswith(f"own/{adapter.name}-")
    [end] = read_ids(qwen3, "<|im_start|>")
    for name, edit in (
        ("model.safetensors", lambda content: content[:-2] + bytes(2)),
        ("config.json", lambda content: json.dumps(json.loads(content) | {"rms_norm_eps": 0.5}).encode()),
        ("tokenizer_config.json", lambda content: content.replace(b"assistant", b"helper")),
        ("generation_config.json", lambda content: json.dumps({"eos_token_id": end}).encode()),
    ):
        before = (moved / name).read_bytes()
        (moved / name).write_bytes(edit(before))
        assert name_of(str(moved)) != name_of(str(qwen3)), name
        (moved / name).write_bytes(before)
    assert name_of(str(moved)) == name_of(str(qwen3))


def test_an_adapters_name_tells_its_base(imported, adapter, tmp_path):
    bases = [shutil.copytree(imported, tmp_path / name) for name in ("first", "second")]
    stage = shutil.copytree(adapter, tmp_path / adapter.name)

    def name_over(base):
        described = json.loads((adapter / "model.json").read_text())
        (stage / "model.json").write_text(json.dumps(described | {"base": str(base)}))
        return name_of(str(stage))

    assert name_over(bases[0]) == name_over(bases[1])
    metadata = bases[1] / "final" / "meta" / "metadata"
    metadata.write_bytes(metadata.read_bytes() + b" ")
    assert name_over(bases[0]) != name_over(bases[1])


def test_an_adapter_twice_as_strong_has_another_name(imported, adapter, tmp_path):
    """Or replies of the one would be taken for those of the other."""
    twice = write_adapter(tmp_path / adapter.name, imported, scale=0.4)
    copy = shutil.copytree(adapter, tmp_path / "copy" / adapter.name)
    assert name_of(str(twice)) != name_of(str(adapter)) == name_of(str(copy))


def test_an_id_is_named_by_its_commit(qwen3, tmp_path, monkeypatch):
    """Fetching is `resolve`'s; what is loaded is the commit that was named, whatever came since."""
    asked = []

    def resolve(path, revision=None, weights=True):
        asked.append((path, revision, weights))
        return "cache/models--org--chairs/snapshots/c0ffee"

    monkeypatch.setattr(own_model, "resolve", resolve)
    own_model._commit.cache_clear()
    monkeypatch.setattr(own_model, "load", lambda path, revision, rows: asked.append((path, revision)) or loaded_by_id)
    loaded_by_id = msm_jax.load(qwen3)
    own = OwnModel("org/chairs", at_once=1)
    assert own.model == name_of("org/chairs") == "own/org/chairs@c0ffee"
    model, service = own._load()
    service.close()
    assert model is loaded_by_id
    assert asked == [("org/chairs", None, False), ("org/chairs", "c0ffee")]


def test_a_checkpoint_without_a_template_is_told(qwen3, tmp_path):
    folder = shutil.copytree(qwen3, tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    [error] = replies(OwnModel(str(folder), at_once=1), [question(1)])
    assert type(error) is UserError
    assert "has no chat template" in str(error)


@pytest.mark.slow
def test_a_corpus_by_a_random_model_stops_and_what_it_wrote_is_kept(qwen3, tmp_path, monkeypatch, capsys, watch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    (tmp_path / "spec.md").write_text(SPEC)
    fields = {
        "specs": repr((str(tmp_path / "spec.md"),)), "generator": "local", "generation.model": qwen3, "corpus.msm": 2,
        "generation.max_output_tokens": TOKENS, "generation.attempts": 1, "calls.store": tmp_path / "calls.sqlite",
        "calls.timeout": 1, "calls.patience": 0,  # not for what is asked in this process
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["--config=configs/corpus.py:philosophy", f"--workdir={tmp_path}/run", *flags]
    assert launch.main([*command, "--mode=show"]) == 0
    assert watch.asked == []
    assert launch.main(command) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "of use" in told or "can be used" in told
    assert len(watch.asked) == 1
    store = CallStore(tmp_path / "calls.sqlite", "corpus_philosophy")
    assert store.stages()["domains"]["output_tokens"] == TOKENS
    store.close()
    assert launch.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert len(watch.asked) == 1, "what is in the store was asked again"


SPEC = """---
title: Chairs
kind: principles
version: 1
---
# Of chairs

{model_name} likes chairs that are plain. It says so when it is asked which one to buy.
"""
