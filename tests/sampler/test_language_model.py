"""What `generate` and `encode` are asked: refused in one line where a corpus would be, before any weight is touched."""

import re

import pytest

from msm_jax.data.jinja_template import load_chat_template
from msm_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from msm_jax.errors import UserError
from msm_jax.sampler.language_model import LanguageModel
from tests.data.checkpoints import write_qwen

USER = {"role": "user", "content": "Why?"}
HALF = "hi \ud83d"
IS_HALF = "holds half of a surrogate pair (\\ud800 to \\udfff)"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_qwen(tmp_path_factory.mktemp("qwen"), "qwen2")
    return LanguageModel(None, None, None, load_tokenizer(folder), load_chat_template(folder))


def turn(content="Because.", **fields):
    return {"role": "assistant", "content": content, **fields}


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([[USER, turn("", tool_calls=[{"name": "f"}])]], "1: message 2: unknown field 'tool_calls'; a message holds"),
        ([[USER], [USER | {"name": "Ann"}]], "2: message 1: unknown field 'name'; a message holds only role and"),
        ([[USER | {"a\nb": 1}]], "1: message 1: unknown field 'a\\nb'; a message holds only role and content"),
        ([[{"role": "user"}]], "1: message 1: no field 'content'"),
        ([[{"role": "tool", "content": "7"}]], "1: message 1: unknown role 'tool'; use one of system, user, assistant"),
        ([[{"role": HALF, "content": "a"}]], f"1: message 1: field 'role' {IS_HALF}"),
        ([[{"role": "user", "content": " \n"}]], "1: message 1: field 'content' is empty; fill it or delete the line"),
        ([[turn([{"type": "text"}])]], "1: message 1: field 'content' must be text, not a list"),
        ([[USER, turn(HALF)]], f"1: message 2: field 'content' {IS_HALF}"),
        (["hi", HALF], f"2 {IS_HALF}"),
        (["\ud83d\ude00"], f"1 {IS_HALF}"),
    ],
)
def test_prompts_are_checked_as_corpora_are(model, prompts, line):
    with pytest.raises(UserError, match=re.escape(f"generate: prompt {line}")):
        model.generate(prompts)
    with pytest.raises(UserError, match=re.escape(line.partition(" ")[2])):
        for prompt in prompts:
            model.encode(prompt)


def test_a_stop_string_that_no_text_can_hold(model):
    with pytest.raises(UserError, match="generate: stop holds half of a surrogate pair"):
        model.generate(["hi"], stop=["\ude00"])


def test_an_empty_system_prompt_is_none(model):
    system = {"role": "system", "content": ""}
    asked = model.tokenizer.spell(model.encode([system, USER]))
    assert asked == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_tokenizers_take_no_half_of_a_surrogate_pair(model, tmp_path):
    ours = train_sentencepiece(["which chair is this " * 20, "the people say"], tmp_path, 400)
    for tokenizer in (model.tokenizer, ours):
        for encode in (tokenizer.encode, tokenizer.encode_with_spans):
            with pytest.raises(UserError, match="text holds half of a surrogate pair"):
                encode(HALF)
