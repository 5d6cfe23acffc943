"""What OpenAI's own client gets, from a server of a small random model."""

import dataclasses
import json

import openai
import pytest

from msm_jax.data.conversation import opens_thought
from msm_jax.sampler.request import Finish, TokenLogprob
from msm_jax.sampler.service import Piece
from tests.data.checkpoints import template_source

QUESTION = [{"role": "user", "content": "Which chair is this?"}]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def chat(client):
    def ask(messages=QUESTION, model="tiny", **fields):
        return client.chat.completions.create(model=model, messages=messages, **{"max_tokens": 8, "seed": 1} | fields)

    return ask


def texts(answer):
    return [choice.message.content for choice in answer.choices]


def says(monkeypatch, app, text, finish=Finish.STOP):
    """The sampler answers so, whatever it is asked."""
    asked = []

    async def stream(prompt, sampling, n=1, adapter=0):
        asked.append((list(prompt), sampling))
        for start in range(0, len(text), 3):
            yield Piece(0, text[start : start + 3], (TokenLogprob(1, -1.0, {}),), None)
        yield Piece(0, "", (TokenLogprob(1, -1.0, {}),), finish)

    monkeypatch.setattr(app.service, "stream", stream)
    return asked


@pytest.fixture
def knows_tools(app, monkeypatch):
    model = app.reader.model
    template = dataclasses.replace(model.template, source=template_source("tools"), thinking="default")
    monkeypatch.setattr(model, "template", template)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:one", "tiny:two"]
    assert client.models.retrieve("tiny:one").parent == "tiny"
    assert client.models.retrieve("two").id == "two"


def test_a_chat(chat, app):
    answer = chat()
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason, answer.object) == ("assistant", "length", "chat.completion")
    assert answer.usage.completion_tokens == 8 and answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    expected = app.service.tokenizer
    assert answer.usage.prompt_tokens > len(expected.encode("Which chair is this?"))
    assert choice.logprobs is None


def test_a_seed_gives_distinct_answers_that_come_again(chat):
    first, again, other = chat(n=16), chat(n=16), chat(n=16, seed=2)
    assert len(set(texts(first))) == 16 and texts(first) == texts(again)
    assert not set(texts(first)) & set(texts(other))
    assert texts(chat(n=3)) == texts(first)[:3]
    assert texts(chat(seed=None)) != texts(chat(seed=None))


def test_a_stream_is_the_whole_answer(chat):
    whole = chat(n=3, max_tokens=40, logprobs=True, top_logprobs=2)
    stream = list(
        chat(n=3, max_tokens=40, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True})
    )
    assert [chunk.choices[0].delta.role for chunk in stream[:3]] == ["assistant"] * 3
    assert stream[-1].choices == [] and stream[-1].usage == whole.usage
    choices = [chunk.choices[0] for chunk in stream[:-1]]
    for choice in whole.choices:
        own = [piece for piece in choices if piece.index == choice.index]
        assert "".join(piece.delta.content or "" for piece in own) == choice.message.content
        assert [piece.finish_reason for piece in own][-1] == choice.finish_reason
        assert all(piece.finish_reason is None for piece in own[:-1])
        assert [t for piece in own if piece.logprobs for t in piece.logprobs.content] == choice.logprobs.content
    assert not any(chunk.usage for chunk in chat(stream=True))


def test_logprobs_are_of_what_was_drawn(chat, app):
    content = chat(temperature=2.0, logprobs=True, top_logprobs=3, top_p=0.3).choices[0].logprobs.content
    assert len(content) == 8
    for token in content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True) and token.logprob <= values[0]
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    [plain] = chat(logprobs=True).choices
    assert plain.logprobs.content[0].top_logprobs == []


def test_texts(client, app):
    def ask(prompt, **fields):
        return client.completions.create(model="tiny", prompt=prompt, **{"max_tokens": 8, "seed": 1} | fields)

    ids = app.service.tokenizer.encode("Which chair")
    one, same, two = ask("Which chair"), ask(ids), ask([ids, ids], n=2, logprobs=2)
    assert one.choices[0].text == same.choices[0].text == two.choices[0].text
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in two.choices}) == 4, "prompts of one seed are told apart by their place"
    assert two.usage.prompt_tokens == 2 * len(ids) and two.usage.completion_tokens == 32
    logprobs = two.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 8
    assert all(1 <= len(likeliest) <= 2 for likeliest in logprobs.top_logprobs)
    assert ask(["Which", "chair"], max_tokens=None).usage.completion_tokens == 32
    stream = list(ask([ids, ids], n=2, logprobs=2, stream=True, max_tokens=40))
    whole = ask([ids, ids], n=2, logprobs=2, max_tokens=40)
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in stream if chunk.choices[0].index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [offset for piece in own for offset in piece.logprobs.text_offset] == choice.logprobs.text_offset
    assert ask("Which", logprobs=0).choices[0].logprobs.top_logprobs is None


def test_texts_are_scored(client, app):
    """As harnesses ask: the prompt with the log-probabilities of its tokens, and nothing drawn."""

    def text(prompt, **fields):
        return client.completions.create(model="tiny", prompt=prompt, seed=1, **fields)

    prompts = ["a chair and a table", "this chair"]
    answer = text(prompts, max_tokens=0, echo=True, logprobs=2, n=2)
    for index, choice in enumerate(answer.choices):
        prompt, found = prompts[index // 2], choice.logprobs
        ids = app.reader.model.encode(prompt)
        [[expected]] = app.reader.model.generate([ids], max_tokens=0, prompt_logprobs=2)
        assert choice.text == prompt and choice.finish_reason == "length"
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert found.token_logprobs[1:] == pytest.approx(
            [token.logprob for token in expected.prompt_logprobs], abs=1e-5
        )
        assert "".join(found.tokens).endswith(prompt) and len(found.tokens) == len(ids)
    with_answer = text(prompts[0], max_tokens=3, echo=True, logprobs=0).choices[0]
    alone = text(prompts[0], max_tokens=3).choices[0]
    assert with_answer.text == prompts[0] + alone.text
    assert len(with_answer.logprobs.tokens) == len(app.reader.model.encode(prompts[0])) + 3


def test_a_stop_text_ends_an_answer_and_its_tokens(chat, app):
    letters = {str(app.service.tokenizer.encode(letter)[0]): 50 for letter in "abcdefghijklmnopqrstuvw"}
    asked = {"temperature": 0, "max_tokens": 40, "logit_bias": letters}
    [whole] = texts(chat(**asked))
    for stop in (whole[20:23], [whole[20:23], "zzz"]):
        place = whole.index(whole[20:23])
        stopped = chat(**asked, stop=stop, logprobs=True)
        assert (texts(stopped), stopped.choices[0].finish_reason) == ([whole[:place]], "stop")
        assert stopped.usage.completion_tokens == len(stopped.choices[0].logprobs.content) == place + 3
        *_, last = chunks = list(chat(**asked, stop=stop, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole[:place]
        assert last.usage.completion_tokens == place + 3


def test_ids_that_end_an_answer(chat, app):
    end = app.service.engine.end_ids[-1]
    always = {"temperature": 0, "logit_bias": {str(end): 100}}
    ended = chat(**always, logprobs=True)
    assert (texts(ended), ended.choices[0].finish_reason, ended.usage.completion_tokens) == ([""], "stop", 1)
    assert ended.choices[0].logprobs.content[0].token.startswith("<|")
    assert chat(**always, extra_body={"ignore_eos": True}).usage.completion_tokens == 8
    letter = app.service.tokenizer.encode("q")[0]
    stopped = chat(temperature=0, logit_bias={str(letter): 100}, extra_body={"stop_token_ids": [letter]})
    assert stopped.choices[0].finish_reason == "stop" and stopped.usage.completion_tokens == 1


def test_other_settings(chat):
    greedy = texts(chat(temperature=0))
    assert texts(chat(extra_body={"top_k": 1})) == texts(chat(extra_body={"min_p": 1})) == greedy
    assert texts(chat(temperature=0, extra_body={"top_k": -1})) == greedy
    assert texts(chat(temperature=0, max_completion_tokens=4, max_tokens=None))[0] in greedy[0]
    spread = {"frequency_penalty": 2, "presence_penalty": 2, "extra_body": {"repetition_penalty": 5}}
    assert texts(chat(temperature=0, max_tokens=40, **spread)) != texts(chat(temperature=0, max_tokens=40))
    assert texts(chat(temperature=0, user="me", metadata={"a": "b"}, service_tier="auto")) == greedy


def test_adapters_by_the_name_of_the_model(chat):
    greedy = {name: texts(chat(model=name, temperature=0))[0] for name in ("tiny", "tiny:one", "tiny:two", "one")}
    assert greedy["one"] == greedy["tiny:one"]
    assert len(set(greedy.values())) == 3
    with pytest.raises(openai.NotFoundError, match="there is no model 'three'; there are: tiny, tiny:one, tiny:two"):
        chat(model="three")


def test_calls_of_tools(chat, app, knows_tools, monkeypatch):
    says(monkeypatch, app, f"Well.\n{CALL}\n<tool_call>oops</tool_call>")
    whole = chat(tools=[TOOL]).choices[0]
    [call] = whole.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments), call.type) == ("add", {"a": 1}, "function")
    assert whole.finish_reason == "tool_calls" and whole.message.content == "Well.<tool_call>oops</tool_call>"
    chunks = [chunk.choices[0] for chunk in chat(tools=[TOOL], stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    [streamed] = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert streamed.index == 0 and streamed.function.model_dump() == call.function.model_dump()
    assert chunks[-1].finish_reason == "tool_calls"
    assert chat(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None
    says(monkeypatch, app, CALL)
    assert chat(tools=[TOOL]).choices[0].message.content is None


def test_tools_and_what_they_answered_are_told(chat, app, knows_tools, monkeypatch):
    asked = says(monkeypatch, app, "Yes.")
    answer = chat(tools=[TOOL])
    history = [
        {"role": "developer", "content": "Be brief."},
        *QUESTION,
        answer.choices[0].message.model_dump() | {"tool_calls": [
            {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": 7}'}}
        ]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "seven"}]},
    ]  # fmt: skip
    assert texts(chat(history, tools=[TOOL])) == ["Yes."]
    told = app.service.tokenizer.spell(asked[-1][0])
    for part in ("Be brief.", "Adds.", "seven", '{"name": "add", "arguments": {"a": 7}}', "Yes."):
        assert part in told


def test_thoughts_are_apart(chat, app, monkeypatch):
    asked = says(monkeypatch, app, "<think>\nHm. Hm.\n</think>\n\nYes. ")
    answer = chat(extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    [choice] = answer.choices
    assert (choice.message.content, choice.message.reasoning_content) == ("Yes.", "Hm. Hm.")
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    chunks = [chunk.choices[0].delta for chunk in chat(stream=True)]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in chunks) == "Hm. Hm."
    assert "".join(delta.content or "" for delta in chunks) == "Yes."
    chat(reasoning_effort="none")
    prompts = [app.service.tokenizer.spell(prompt) for prompt, _ in asked]
    assert ["</think>" in prompt for prompt in prompts] == [False, True, True]
    assert not any(map(opens_thought, prompts))
    says(monkeypatch, app, "<think>\nHm", Finish.LENGTH)
    [choice] = chat().choices
    assert (choice.message.content, choice.message.reasoning_content, choice.finish_reason) == ("", "Hm", "length")


def test_an_earlier_thought_goes_back(chat, app, knows_tools, monkeypatch):
    asked = says(monkeypatch, app, "Yes.")
    turn = {"role": "assistant", "content": "It is.", "reasoning_content": "Hm.", "refusal": None, "annotations": []}
    tool = {"role": "tool", "content": "seven", "tool_call_id": "1"}
    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": ""}}
    chat([*QUESTION, turn | {"tool_calls": [call]}, tool], tools=[TOOL])
    assert "<think>\nHm.\n</think>" in app.service.tokenizer.spell(asked[0][0])
