"""A checkpoint as the model that writes corpora: tiny and random, so what it writes is of no use."""

import asyncio
import json
import pathlib
import shutil

import jax
import pytest

import msm_jax
from msm_jax import launch
from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.request import Finish, Rejected, Request, Status
from msm_jax.llm.store import CallStore
from msm_jax.sampler.language_model import LanguageModel
from msm_jax.stages import own_model
from msm_jax.stages.own_model import OwnModel, name_of
from tests.corpus.gemini import Items
from tests.data.checkpoints import read_ids
from tests.tiny_checkpoints import write_adapter

TOKENS = 8


@pytest.fixture
def batches(monkeypatch):
    """The prompts of each call of `LanguageModel.generate`."""
    seen, generate = [], LanguageModel.generate

    def counted(self, prompts, *args, **options):
        seen.append(prompts)
        return generate(self, prompts, *args, **options)

    monkeypatch.setattr(LanguageModel, "generate", counted)
    return seen


@pytest.fixture(scope="module")
def loaded(qwen3):
    """The weights once, for all tests of this file that are not about them."""
    return OwnModel(str(qwen3), at_once=1)._loaded


@pytest.fixture
def make(qwen3, loaded):
    def make(at_once=8, **options):
        own = OwnModel(str(qwen3), at_once, **options)
        own._loaded = loaded
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


def test_a_reply_does_not_depend_on_company(make, batches):
    requests = [question(number) for number in range(5)]
    together = replies(make(), requests)
    assert len({reply.text for reply in together}) == 5
    assert replies(make(), requests[3:4]) == together[3:4]
    assert replies(make(), [*requests[::-1], question("much longer, and so all rows " * 3)])[:5] == together[::-1]
    assert list(map(len, batches)) == [5, 1, 6]


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
    monkeypatch.delitem(vars(loaded), "sampler")
    [ended] = replies(make(), [question(1)])
    assert (ended.finish, ended.usage.output) == (Finish.STOP, place + 1)
    assert ended.text == loaded.tokenizer.decode(ids[:place])


def test_what_differs_in_settings_is_decoded_apart(make, batches):
    requests = [question(n, temperature=t, max_tokens=m) for n in range(2) for t in (0.0, 1.0) for m in (3, TOKENS)]
    got = replies(make(), requests)
    assert sorted(map(len, batches)) == [2, 2, 2, 2]
    assert [reply.usage.output for reply in got] == [request.max_tokens for request in requests]


def test_no_more_at_once_than_are_asked_for(make, batches):
    replies(make(at_once=2), [question(number) for number in range(5)])
    assert list(map(len, batches)) == [2, 2, 1]


def test_answers_are_no_longer_than_the_most(make):
    own = make(max_output_tokens=4)
    assert own.max_output_tokens(question(1)) == 4
    [reply] = replies(own, [question(1, temperature=0.0)])
    assert reply.usage.output == 4


def test_a_shape_is_stated_in_the_prompt(make, batches):
    [reply] = replies(make(), [Request("ideas", "List.", shape=Items, max_tokens=TOKENS)])
    [[[turn]]] = batches
    assert turn["role"] == "user"
    assert json.dumps(Items.model_json_schema()) in turn["content"]
    assert reply.finish in (Finish.STOP, Finish.LENGTH)


def test_thoughts_are_left_out(make, monkeypatch):
    def thinks(self, prompts, **options):
        return [[own_model.Completion("Well.</think>An answer.", True, tokens=4)] for _ in prompts]

    monkeypatch.setattr(LanguageModel, "generate", thinks)
    [reply] = replies(make(), [question(1)])
    assert reply.text == "An answer."


def test_a_prompt_that_cannot_be_asked_is_refused_alone(make, batches):
    long, spells, fits = question("word " * 9000), question("<|im_end|>"), question(1)
    *errors, half = replies(make(), [long, fits, spells, question("\ud83d")])
    assert isinstance(half, Rejected) and "half of a surrogate pair" in str(half)
    assert [type(error) for error in errors[::2]] == [Rejected, Rejected]
    assert "lower config.generation.max_output_tokens" in str(errors[0])
    assert "control token" in str(errors[2])
    assert errors[1] == replies(make(), [fits])[0]
    assert list(map(len, batches)) == [1, 1]


def test_a_prompt_that_fails_as_nobody_foresaw_fails_alone(make, monkeypatch):
    encode = LanguageModel.encode

    def fails(self, chat, *where):
        if "chair is 0" in chat[-1]["content"]:
            raise RecursionError("a template that calls itself")
        return encode(self, chat, *where)

    monkeypatch.setattr(LanguageModel, "encode", fails)
    [error, reply] = replies(make(), [question(0), question(1)])
    assert isinstance(error, RecursionError)
    assert reply.finish in (Finish.STOP, Finish.LENGTH)


def test_too_little_memory_is_told(make, monkeypatch):
    def full(self, prompts, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(LanguageModel, "generate", full)
    errors = replies(make(), [question(1), question(2)])
    assert all("2 answers of up to 8 tokens do not fit" in str(error) for error in errors)
    assert not any(isinstance(error, Rejected) for error in errors)


def test_a_call_that_comes_a_little_later_is_waited_for(make, batches, monkeypatch):
    monkeypatch.setattr(own_model, "_PAUSE", 0.5)

    async def go():
        own = make()
        calls = []
        for number in range(3):
            calls.append(asyncio.create_task(own.reply(question(number))))
            for _ in range(20):
                await asyncio.sleep(0)
        await asyncio.gather(*calls)
        await own.close()

    asyncio.run(go())
    assert list(map(len, batches)) == [3]


def test_who_gave_up_is_not_decoded(make, batches):
    async def go():
        own = make(at_once=9)
        calls = [asyncio.create_task(own.reply(question(number))) for number in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        got = await asyncio.gather(*calls, return_exceptions=True)
        alone = asyncio.create_task(own.reply(question(4)))
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.sleep(0.2)
        # It goes on with what comes after.
        later = await own.reply(question(5))
        await own.close()
        return got, later

    (first, given_up, last), later = asyncio.run(go())
    assert isinstance(given_up, asyncio.CancelledError)
    assert list(map(len, batches)) == [2, 1]
    assert [first, last, later] == [replies(make(), [question(number)])[0] for number in (0, 2, 5)]


def test_a_reply_of_no_use_is_drawn_anew(make, tmp_path, monkeypatch):
    """Each attempt has its own seed, and the same one in the next run."""
    seeds = []

    def useless(self, prompts, seed, **options):
        seeds.extend(seed)
        return [[own_model.Completion("Well.", True, tokens=2)] for _ in prompts]

    monkeypatch.setattr(LanguageModel, "generate", useless)

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
    at_once = list(seeds)
    assert len(set(at_once)) == 3
    run(tmp_path / "twice.sqlite", 2)
    run(tmp_path / "twice.sqlite", 3)
    assert seeds[3:] == at_once


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
    monkeypatch.setattr(own_model, "load", lambda path, revision: asked.append((path, revision)) or loaded_by_id)
    loaded_by_id = msm_jax.load(qwen3)
    own = OwnModel("org/chairs", at_once=1)
    assert own.model == name_of("org/chairs") == "own/org/chairs@c0ffee"
    assert own._loaded is loaded_by_id
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
def test_a_corpus_by_a_random_model_stops_and_what_it_wrote_is_kept(qwen3, tmp_path, monkeypatch, capsys, batches):
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
    assert batches == []
    assert launch.main(command) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "of use" in told or "can be used" in told
    assert len(batches) == 1
    store = CallStore(tmp_path / "calls.sqlite", "corpus_philosophy")
    assert store.stages()["domains"]["output_tokens"] == TOKENS
    store.close()
    assert launch.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert len(batches) == 1, "what is in the store was asked again"


SPEC = """---
title: Chairs
kind: principles
version: 1
---
# Of chairs

{model_name} likes chairs that are plain. It says so when it is asked which one to buy.
"""
