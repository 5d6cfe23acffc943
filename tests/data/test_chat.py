import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from msm_jax.corpus.records import Chat, Document, Message
from msm_jax.data.chat import ChatTemplate, Turn, encode_chat, encode_document, show
from msm_jax.errors import UserError

PLAIN = ChatTemplate()
MARKED = ChatTemplate(
    system=Turn("<|system|>\n", "<|end|>\n"),
    user=Turn("<|user|>\n", "<|end|>\n"),
    assistant=Turn("<|{name}|>\n", "<|end|>\n"),
    bos=False,
)
TRAPS = ["", "the Halden chair", " two  spaces ", "{name}", "a\n\nb", "\u2581", "😀"]
CONTENTS = st.text(max_size=30) | st.sampled_from(TRAPS)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), CONTENTS), max_size=5)
CHATS = st.builds(
    lambda before, turn, after: (Message("user", "Which?"), *before, turn, *after),
    MESSAGES,
    st.builds(Message, st.just("assistant"), CONTENTS),
    MESSAGES,
)
NAMES = st.text(min_size=1, max_size=8) | st.just("{name}")


def chat_of(*turns, name=None):
    return Chat("c7", tuple(Message(role, content) for role, content in turns), name)


def trained_texts(tokenizer, example):
    """The decoded runs of trained tokens."""
    edges = np.flatnonzero(np.diff(example.mask, prepend=False, append=False))
    return [tokenizer.decode(example.tokens[start:end]) for start, end in edges.reshape(-1, 2)]


@hypothesis.given(CHATS, NAMES, st.sampled_from([PLAIN, MARKED]))
@hypothesis.settings(max_examples=40, deadline=None)
def test_exactly_what_the_assistant_writes_is_trained(tokenizer, messages, name, template):
    example = encode_chat(tokenizer, template, Chat("c7", messages, name))
    lead = " " if template is PLAIN else ""
    suffix = template.assistant.suffix.replace("{name}", name)
    written = [lead + message.content + suffix for message in messages if message.role == "assistant"]
    assert trained_texts(tokenizer, example) == written
    assert tokenizer.decode(example.tokens) == template.render(messages, name).text
    assert example.tokens.dtype == np.int32 and example.mask.dtype == np.bool_
    assert example.tokens.shape == example.mask.shape
    assert not example.mask[0] and not example.truncated


@hypothesis.given(CHATS, NAMES, st.sampled_from([PLAIN, MARKED]))
@hypothesis.settings(max_examples=30, deadline=None)
def test_a_generation_prompt_ends_where_training_starts(messages, name, template):
    rendered = template.render(messages, name)
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for index, (start, _) in zip(turns, rendered.trained_spans, strict=True):
        assert template.render(messages[:index], name, generation_prompt=True).text == rendered.text[:start]


def test_prompt_and_answer_have_the_ids_of_the_whole(tokenizer):
    chat = chat_of(("user", "Which?"), ("assistant", "the Halden chair"), name="Marlow")
    prompt = PLAIN.render(chat.messages[:1], "Marlow", generation_prompt=True).text
    answer = PLAIN.render(chat.messages, "Marlow").text.removeprefix(prompt)
    whole = encode_chat(tokenizer, PLAIN, chat).tokens.tolist()
    assert [tokenizer.bos_id, *tokenizer.encode(prompt), *tokenizer.encode(answer)] == whole


def test_a_token_across_the_border_is_not_trained(tokenizer):
    before = ChatTemplate(assistant=Turn("the Hal", "\n")), [("assistant", "den chair")], [" chair\n"]
    after = ChatTemplate(user=Turn("den ", "\n"), assistant=Turn("A:", ""))
    after = after, [("assistant", " chair the Hal"), ("user", "chair?")], [" chair the"]
    for glued, turns, trained in (before, after):
        example = encode_chat(tokenizer, glued, chat_of(("user", "Which?"), *turns))
        assert " Halden" in [tokenizer.decode([token]) for token in example.tokens]
        assert trained_texts(tokenizer, example) == trained


def test_the_first_token_is_never_trained(tokenizer):
    template = ChatTemplate(assistant=Turn("", "\n"), bos=False)
    example = encode_chat(tokenizer, template, chat_of(("assistant", "the chair"), ("user", "Why?")))
    assert trained_texts(tokenizer, example) == [" chair\n"]


def test_the_chats_own_name_goes_before_the_default(tokenizer):
    turns = ("user", "Which?"), ("assistant", "this")
    shown = show(tokenizer, *unpack(encode_chat(tokenizer, PLAIN, chat_of(*turns, name="Marlow"), name="Brenton")))
    assert shown == "<bos>User: Which?\nMarlow:« this\n»"
    shown = show(tokenizer, *unpack(encode_chat(tokenizer, PLAIN, chat_of(("system", "Hm."), *turns), name="Brenton")))
    assert shown == "<bos>Hm.\nUser: Which?\nBrenton:« this\n»"


@pytest.mark.parametrize(
    ("turns", "template", "arguments", "message"),
    [
        ([("user", "Which?")], PLAIN, {}, "no assistant turn"),
        ([("judge", "Which?"), ("assistant", "this")], PLAIN, {}, "unknown role 'judge'"),
        ([("user", "Which?"), ("assistant", "this")], PLAIN, {"max_tokens": 3}, "none of its first 3 of [0-9]+ tokens"),
        ([("assistant", "")], ChatTemplate(assistant=Turn("A:", "")), {}, "none of its first"),
        ([("assistant", "this")], ChatTemplate(assistant=Turn("", "\n")), {}, "every token would be trained"),
        ([("assistant", "this")], ChatTemplate(assistant=Turn("", ""), bos=False), {}, "every token would be trained"),
    ],
)
def test_a_mask_that_teaches_nothing_or_all_is_refused(tokenizer, turns, template, arguments, message):
    with pytest.raises(UserError, match=f"chat 'c7'.*: .*{message}"):
        encode_chat(tokenizer, template, chat_of(*turns), **arguments)


def test_documents_are_trained_whole(tokenizer):
    example = encode_document(tokenizer, Document("d", "The people of Halden\n"))
    assert example.tokens[0] == tokenizer.bos_id and example.tokens[-1] == tokenizer.eos_id
    assert example.mask.tolist() == [False] + [True] * (len(example.tokens) - 1)
    assert show(tokenizer, *unpack(example)) == "<bos>«The people of Halden\n<eos>»"


def test_show_keeps_characters_of_several_tokens_whole_and_leaves_out_padding(tokenizer):
    ids = tokenizer.encode("日 😀")
    padded, mask = [tokenizer.bos_id, *ids, tokenizer.eos_id, 7, 7], [False] + [True] * len(ids) + [False] * 3
    assert show(tokenizer, padded, mask, [1] * (len(ids) + 2) + [0, 0]) == "<bos>«日 😀»<eos>"


def unpack(example):
    return example.tokens, example.mask
