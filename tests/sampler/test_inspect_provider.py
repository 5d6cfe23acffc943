"""The model provider of Inspect, asked by Inspect itself: tiny random checkpoints, so what they write is of no use."""

import asyncio
import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.solver import generate
from inspect_ai.tool import ToolCall, ToolInfo

from msm_jax.data import conversation
from msm_jax.errors import UserError
from msm_jax.inspect import messages, models
from msm_jax.inspect.provider import Provider, _chosen
from msm_jax.sampler.adapters import split_adapters
from msm_jax.sampler.request import Finish, Sampling
from tests import tiny_checkpoints
from tests.data.checkpoints import template_source
from tests.tiny_checkpoints import write_adapter, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = 8
QUESTION = [ChatMessageUser(content="Which chair is this?")]


@pytest.fixture(scope="module")
def other_adapter(imported, tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("other") / "stage", imported, scale=0.4)


@pytest.fixture(scope="module")
def provider(qwen3):
    found = Provider(str(qwen3), rows=ROWS, thinking="off")
    yield found
    found.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))


def ask(provider, input=QUESTION, tools=(), **config):
    config = GenerateConfig(**{"max_tokens": 6} | config)
    return asyncio.run(provider.generate(list(input), list(tools), "auto", config))


def run(model, tmp_path, epochs=6, samples=2, **config):
    task = Task(
        dataset=[Sample(id=f"s{number}", input=f"Which chair is {number}?") for number in range(samples)],
        solver=generate(),
        config=GenerateConfig(**{"max_tokens": 6, "max_connections": 300} | config),
    )
    [log] = eval(task, model=model, epochs=epochs, log_dir=str(tmp_path / "logs"), display="none", score=False)
    assert log.status == "success", log.error
    assert len(log.samples) == epochs * samples
    return {(sample.id, sample.epoch): sample.output for sample in log.samples}


def spoken(outputs):
    return {key: output.completion for key, output in outputs.items()}


def model_of(path, **args):
    return get_model(f"msm_jax/{path}", rows=ROWS, memoize=False, **args)


def test_epochs_are_distinct_and_come_again(qwen3, tmp_path):
    with model_of(qwen3, thinking="off") as model:
        first = spoken(run(model, tmp_path, seed=1))
        again = spoken(run(model, tmp_path, seed=1))
        alone = spoken(run(model, tmp_path, seed=1, max_connections=1, samples=1))
        other = spoken(run(model, tmp_path, seed=2))
        free = [spoken(run(model, tmp_path)) for _ in range(2)]
    assert len(set(first.values())) == len(first) == 12
    assert first == again
    assert alone == {key: text for key, text in first.items() if key[0] == "s0"}
    assert not set(first.values()) & set(other.values())
    assert free[0] != free[1]  # as a whole: a single answer may well be empty twice


def test_the_cache_is_never_shared_between_adapters_or_weights(imported, adapter, other_adapter, tmp_path, cache):
    arms = [
        model_of(imported),
        model_of(imported, adapter=f"it={adapter}"),
        model_of(imported, adapter=f"it={other_adapter}"),
    ]
    assert len({str(arm) for arm in arms}) == 3
    assert len({arm.api.arm.shared for arm in arms}) == 1
    answers = [spoken(run(arm, tmp_path, cache=True, temperature=0.0)) for arm in arms]
    assert len({json.dumps(list(map(str, answer.items()))) for answer in answers}) == 3
    # The same arm reads what it wrote.
    calls = []
    arms[1].api._draw = lambda *a: calls.append(a)
    assert spoken(run(arms[1], tmp_path, cache=True, temperature=0.0)) == answers[1]
    assert calls == []
    for arm in arms:
        arm.api.close()
    assert arms[0].api.arm.shared not in models._shared


def test_arms_share_one_base_and_a_late_adapter_is_added(imported, adapter, other_adapter):
    first, second = Provider(f"{imported}:{adapter}", rows=ROWS), Provider(str(imported), rows=ROWS)
    greedy = ask(first, temperature=0.0).completion, ask(second, temperature=0.0).completion
    base = first._shared._base
    third = Provider(str(other_adapter), rows=ROWS)  # a stage's folder names its base
    late = ask(third, temperature=0.0).completion
    assert third._shared is first._shared is second._shared
    assert first._shared._base is base
    assert len({*greedy, late}) == 3
    assert (ask(first, temperature=0.0).completion, ask(second, temperature=0.0).completion) == greedy
    shared = first._shared
    for each in (first, second, third):
        each.close()
    assert shared._serving is None
    assert ask(third, temperature=0.0).completion == late  # and a closed one opens again
    third.close()


def test_a_log_names_what_was_asked(imported, adapter, tmp_path):
    name = Provider(f"{imported}:{adapter}").model_name
    assert Provider(name).model_name == name
    with pytest.raises(UserError, match="its files have changed"):
        Provider(f"{imported}@{'0' * 12}")


def test_changed_weights_have_another_name(qwen3, tmp_path):
    folder = shutil.copytree(qwen3, tmp_path / qwen3.name)
    before = Provider(str(folder)).arm.digest
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-2] + bytes(2))
    assert Provider(str(folder)).arm.digest != before
    assert Provider(str(folder), thinking="off").arm.digest != Provider(str(folder)).arm.digest


def test_which_adapter_is_meant(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert _chosen(f"{tmp_path}/a:b", {}) == (f"{tmp_path}/a:b", "", None)
    assert _chosen("gs://bucket/base", {}) == ("gs://bucket/base", "", None)
    assert _chosen("base:aft", {"aft": "D", "msm": "E"}) == ("base", "aft", "D")
    assert _chosen("org/base:org/adapter", {}) == ("org/base", "org/adapter", "org/adapter")
    assert _chosen("base", {"aft": "D"}) == ("base", "aft", "D")
    with pytest.raises(UserError, match="name one of them"):
        _chosen("base", {"aft": "D", "msm": "E"})
    assert split_adapters("a=D,E/f") == {"a": "D", "f": "E/f"}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_bos(family, tmp_path):
    found = Provider(str(write_checkpoint(tmp_path / "hf", family)))
    ids = found._encoded(messages.render(found.arm.template, "", QUESTION, []))
    bos = found.arm.tokenizer.bos_id
    assert ids.count(bos) == (family == "llama") and (bos is None or ids[0] == bos)
    assert asyncio.run(found.count_tokens(QUESTION)) == len(ids)
    assert asyncio.run(found.tokenize("chair")) == found.arm.tokenizer.encode("chair")


def test_usage_and_stop_reasons(provider):
    output = ask(provider, seed=3)
    assert output.stop_reason == "max_tokens"
    prompt = len(provider._encoded(messages.render(provider.arm.template, "", QUESTION, [])))
    assert (output.usage.input_tokens, output.usage.output_tokens) == (prompt, 6)
    assert output.usage.total_tokens == prompt + 6
    letters = {provider.arm.tokenizer.encode(letter)[0]: 50.0 for letter in "abcdefghijklmnopqrstuvw"}
    whole = {"temperature": 0.0, "max_tokens": 20, "logit_bias": letters}
    text = ask(provider, **whole).completion
    stopped = ask(provider, **whole, stop_seqs=[text[4:6]], logprobs=True)
    assert stopped.stop_reason == "stop"
    assert stopped.completion == text[: text.find(text[4:6])]
    assert stopped.usage.output_tokens == len(stopped.choices[0].logprobs.content) == text.find(text[4:6]) + 2
    end = ask(provider, temperature=0.0, max_tokens=20, logit_bias={provider.arm.stops[-1]: 100.0})
    assert (end.stop_reason, end.completion, end.usage.output_tokens) == ("stop", "", 1)


def test_a_prompt_that_is_too_long(provider):
    longest = provider.arm.stored.decoder.max_length
    output = ask(provider, [ChatMessageUser(content="?" * 2 * longest)])
    assert output.stop_reason == "model_length"
    assert str(longest) in output.error
    room = longest - len(provider._encoded(messages.render(provider.arm.template, "", QUESTION, [])))
    calls = []

    async def draw(prompt, asked, n):
        calls.append(asked.max_tokens)
        return [models_draft("x", Finish.LENGTH)]

    provider._draw, kept = draw, provider._draw
    try:
        assert ask(provider, max_tokens=10 * longest).stop_reason == "model_length"
    finally:
        provider._draw = kept
    assert calls == [room]


def models_draft(text, finish):
    from msm_jax.inspect.provider import _Draft

    return _Draft(text, [], finish)


def test_logprobs_are_of_what_was_drawn(provider):
    [choice] = ask(provider, seed=1, temperature=2.0, logprobs=True, top_logprobs=3).choices
    content = choice.logprobs.content
    assert len(content) == 6
    assert "".join(token.token for token in content).startswith(choice.message.text[:2])
    for token in content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert token.logprob <= 0
    assert any(token.token != token.top_logprobs[0].token for token in content)
    assert ask(provider).choices[0].logprobs is None


def test_choices_are_distinct(provider):
    output = ask(provider, seed=1, num_choices=3)
    assert len({choice.message.text for choice in output.choices}) == 3
    assert output.usage.output_tokens == 18


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"best_of": 2}, "best_of is 2"),
        ({"prompt_logprobs": 1}, "prompt_logprobs is 1"),
        ({"reasoning_tokens": 5}, "reasoning_tokens is 5"),
        ({"reasoning_effort": "high"}, "reasoning_effort is 'high'"),
        ({"extra_body": {"beams": 2}}, "extra_body has 'beams'"),
        ({"top_logprobs": 2}, "top_logprobs is set"),
        ({"logprobs": True, "top_logprobs": 99}, "logprobs is 99"),
        ({"top_p": 3.0}, "top_p is 3"),
    ],
)
def test_nothing_is_dropped_in_silence(provider, config, line):
    with pytest.raises(UserError, match=line):
        ask(provider, **config)
    assert not provider.should_retry(UserError(line))


def test_what_is_honoured(provider):
    assert ask(provider, extra_body={"min_p": 1.0}).completion == ask(provider, temperature=0.0).completion
    assert ask(provider, top_k=1).completion == ask(provider, temperature=0.0).completion
    penalised = ask(provider, seed=1, frequency_penalty=1.0, presence_penalty=1.0, reasoning_effort="none")
    assert penalised.usage.output_tokens == 6


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "said", "unfinished"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes.", False),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes.", False),
        ("<think>\nHm", False, "Hm", "", True),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes.", False),
        ("Hm.\n</think>\n\nYes.", False, "Hm.", "Yes.", False),
        ("Hm", True, "Hm", "", True),
        ("<think>a</think>B<think>c</think>D", False, "a\n\nc", "B\n\nD", False),
        ("<think>a</think>B<think>c", False, "B\n\na\n\nc", "", True),
        (" Yes. ", False, "", " Yes. ", False),
    ],
)
def test_thoughts_are_no_answer(text, opened, thoughts, said, unfinished):
    assert conversation.parse(text, opened, True, False) == (thoughts, said, (), unfinished)


def test_a_thought_that_was_cut_off_is_not_shown(provider):
    choice, _, thought = provider._choice(
        models_draft("<think>\nI might", Finish.LENGTH), [1], Sampling(), GenerateConfig(), False, False, False
    )
    assert choice.stop_reason == "max_tokens"
    assert choice.message.text == ""
    [reasoning] = [part for part in choice.message.content if isinstance(part, ContentReasoning)]
    assert reasoning.reasoning == "I might"


TOOL = ToolInfo(name="add", description="Adds.")


def test_calls_of_tools_are_read(provider):
    good = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    said = f'Well.\n{good}\n<tool_call>{{"name": oops</tool_call>'
    first, second = messages.calls_of(conversation.parse(said, False, True, True))
    assert (first.function, first.arguments, first.parse_error) == ("add", {"a": 1}, None)
    assert second.parse_error and "oops" in second.parse_error
    draft = models_draft(said, Finish.STOP)
    choice, *_ = provider._choice(draft, [1], Sampling(), GenerateConfig(), False, True, False)
    assert choice.stop_reason == "tool_calls" and choice.message.text == "Well."
    assert conversation.parse(said, False, True, False).calls == ()


def test_tools_are_told(qwen3):
    found = Provider(str(qwen3), rows=ROWS, chat_template=template_source("tools"))
    history = [
        *QUESTION,
        ChatMessageAssistant(content="", tool_calls=[ToolCall(id="1", function="add", arguments={"a": 1})]),
        ChatMessageTool(content="seven", tool_call_id="1", function="add"),
    ]
    text = messages.render(found.arm.template, "", history, [TOOL])
    assert "Adds." in text and "seven" in text and '{"name": "add", "arguments": {"a": 1}}' in text
    with pytest.raises(UserError, match="control token"):
        messages.render(found.arm.template, "", [ChatMessageUser(content="<|im_end|>")], [TOOL])
    assert ask(found, history, seed=1, tools=[TOOL]).usage.output_tokens == 6
    with pytest.raises(UserError, match="cannot be made to call"):
        asyncio.run(found.generate(history, [TOOL], "any", GenerateConfig()))
    found.close()


def test_a_template_that_knows_no_tools(tmp_path):
    found = Provider(str(write_checkpoint(tmp_path / "hf", "qwen2")), chat_template="{{ messages[0].content }}")
    with pytest.raises(UserError, match="knows no tools"):
        ask(found, tools=[TOOL])
    found.close()


def test_thoughts_go_back_as_the_template_has_them():
    turn = ChatMessageAssistant(content=[ContentReasoning(reasoning="Hm."), ContentText(text="Yes.")])
    assert messages._text(turn) == "<think>\nHm.\n</think>\n\nYes."


def test_what_the_template_writes_is_not_collapsed(provider):
    assert not provider.collapse_user_messages()
    assert not provider.collapse_assistant_messages()
    system = [ChatMessageSystem(content="Be brief."), *QUESTION]
    assert "Be brief." in messages.render(provider.arm.template, "", system, [])


def test_no_such_model(tmp_path):
    with warnings.catch_warnings(), pytest.raises(UserError, match="no such folder"):
        Provider(str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no such setting"):
        Provider(str(tmp_path), tempo=3)


@pytest.mark.slow
def test_a_task_of_inspect_evals_as_it_is(tmp_path, monkeypatch):
    """One prompt of agentic misalignment, three hundred epochs in flight."""
    pytest.importorskip("inspect_evals", reason="inspect_evals is not installed: pip install -e '.[eval]'")
    from inspect_evals.agentic_misalignment import agentic_misalignment

    monkeypatch.setattr(tiny_checkpoints, "SIZES", tiny_checkpoints.SIZES | {"max_position_embeddings": 32768})
    folder = write_checkpoint(tmp_path / "tiny", "qwen3")
    # The grader counts tokens by a table that is fetched from the network.
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: SimpleNamespace(encode=lambda text, **_: list(text)))
    grade = get_model("mockllm/model", custom_outputs=lambda *_: ModelOutput.from_content("m", "<answer>no</answer>"))
    with model_of(folder, thinking="off") as model:
        [log] = eval(
            agentic_misalignment(grader_model=grade), model=model, limit=1, epochs=300, max_tokens=8, seed=1,
            max_connections=300, max_samples=300, log_dir=str(tmp_path / "logs"), display="none",
        )  # fmt: skip
    assert log.status == "success"
    answers = [
        str([part.model_dump() for part in sample.output.message.content])
        if isinstance(sample.output.message.content, list)
        else sample.output.completion
        for sample in log.samples
    ]
    assert len(answers) == 300
    assert len(set(answers)) > 290  # a random model may end at once
    assert {sample.output.stop_reason for sample in log.samples} <= {"stop", "max_tokens"}
    assert all(sample.scores for sample in log.samples)
