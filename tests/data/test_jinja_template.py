"""Golden texts of each kind of chat template, with what is trained between « and »."""

import json
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest

from msm_jax.corpus.records import Chat, Message
from msm_jax.data.chat import TooLong, encode_chat, show
from msm_jax.data.jinja_template import JinjaTemplate, find_borders, load_chat_template
from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.errors import UserError
from tests.data.checkpoints import QWEN_TOKENS, template_source, write_llama, write_qwen, write_tokenizer

PLAIN_TURNS = [("user", "Which?"), ("assistant", "This.")]
SYSTEM_TURNS = [("system", "Be kind."), *PLAIN_TURNS, ("user", " Why?\n"), ("assistant", "Because.\n\nIt is.")]
THINKING_TURNS = [
    ("user", "Which?"), ("assistant", "<think>\nHm.\n</think>\n\nThis."),
    ("user", "Why?"), ("assistant", "<think>\nSo.\n</think>\n\nBecause."),
]  # fmt: skip
UNTHINKING_TURNS = [("system", "Be kind."), *THINKING_TURNS[:3], ("assistant", "Because.")]


def chatml(*turns):
    return "".join(f"<|im_start|>{turn}\n" for turn in turns)


def llama(*turns):
    split = (turn.split("|", 1) for turn in turns)
    headed = (f"<|start_header_id|>{role}<|end_header_id|>{content}" for role, content in split)
    return "<|begin_of_text|>" + "".join(headed)


# (template, options, turns, text). The published templates give the same texts (test_published_tokenizers.py).
ASKED, KIND = "user\nWhich?<|im_end|>", "system\nBe kind.<|im_end|>"
EMPTY = "<think>\n\n</think>\n\n"
THOUGHT = chatml(ASKED, "assistant\n«<think>\nHm.\n</think>\n\nThis.<|im_end|>»")
GOLDEN = {
    "qwen2: default system prompt": (
        "qwen2", {}, PLAIN_TURNS,
        chatml("system\nYou are a default.<|im_end|>", ASKED, "assistant\n«This.<|im_end|>»"),
    ),
    "qwen2: system turn, two answers": (
        "qwen2", {}, SYSTEM_TURNS,
        chatml(
            KIND, ASKED, "assistant\n«This.<|im_end|>»",
            "user\n Why?\n<|im_end|>", "assistant\n«Because.\n\nIt is.<|im_end|>»",
        ),
    ),
    "qwen3: reasoning, of the last answer only": (
        "qwen3", {}, THINKING_TURNS,
        chatml(
            ASKED, "assistant\n«This.<|im_end|>»",
            "user\nWhy?<|im_end|>", "assistant\n«<think>\nSo.\n</think>\n\nBecause.<|im_end|>»",
        ),
    ),
    "qwen3: thinking on": ("qwen3", {"thinking": "on"}, THINKING_TURNS[:2], THOUGHT),
    "qwen3: the model writes an empty block": (
        "qwen3", {}, PLAIN_TURNS, chatml(ASKED, f"assistant\n«{EMPTY}This.<|im_end|>»"),
    ),
    "qwen3: thinking off, the prompt writes the empty block": (
        "qwen3", {"thinking": "off"}, UNTHINKING_TURNS,
        chatml(
            KIND, ASKED, "assistant\n«This.<|im_end|>»",
            "user\nWhy?<|im_end|>", f"assistant\n{EMPTY}«Because.<|im_end|>»",
        ),
    ),
    "qwen3: tagged": (
        "qwen3", {"thinking": "tag"}, UNTHINKING_TURNS,
        chatml(
            "system\nBe kind. /no_think<|im_end|>", ASKED, "assistant\n«This.<|im_end|>»",
            "user\nWhy? /no_think<|im_end|>", f"assistant\n«{EMPTY}Because.<|im_end|>»",
        ),
    ),
    "qwen3: what reasons is not tagged": ("qwen3", {"thinking": "tag"}, THINKING_TURNS[:2], THOUGHT),
    "qwen3: tagged before": (
        "qwen3", {"thinking": "tag"}, [("user", "Which? /no_think"), ("assistant", "This.")],
        chatml("user\nWhich? /no_think<|im_end|>", f"assistant\n«{EMPTY}This.<|im_end|>»"),
    ),
    "llama31: date without a system turn": (
        "llama31", {}, PLAIN_TURNS,
        llama(
            "system|\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>",
            "user|\n\nWhich?<|eot_id|>", "assistant|\n\n«This.<|eot_id|>»",
        ),
    ),
    "llama31: another date, system turn, two answers": (
        "llama31", {"date": "01 Feb 2025"}, SYSTEM_TURNS,
        llama(
            "system|\n\nToday Date: 01 Feb 2025\n\nBe kind.<|eot_id|>",
            "user|\n\nWhich?<|eot_id|>", "assistant|\n\n«This.<|eot_id|>»",
            "user|\n\nWhy?<|eot_id|>", "assistant|\n\n«Because.\n\nIt is.<|eot_id|>»",
        ),
    ),
    "llama3_paper: no blank line, turns end as documents": (
        "llama31", {"override": "llama3_paper"}, SYSTEM_TURNS,
        llama(
            "system|Be kind.<|end_of_text|>", "user|Which?<|end_of_text|>", "assistant|«This.<|end_of_text|>»",
            "user|Why?<|end_of_text|>", "assistant|«Because.\n\nIt is.<|end_of_text|>»",
        ),
    ),
    "llama3_paper: no default system prompt": (
        "llama31", {"override": "llama3_paper"}, [("user", " Which?\n"), ("assistant", "\nThis. ")],
        llama("user|Which?<|end_of_text|>", "assistant|«This.<|end_of_text|>»"),
    ),
}  # fmt: skip
OPTIONS = list(dict.fromkeys((name, tuple(options.items())) for name, options, _, _ in GOLDEN.values()))
CONTENTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(lambda text: f"a{text}b")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    written = {name: write_qwen(root / name, name) for name in ("qwen2", "qwen3")}
    return written | {"llama31": write_llama(root / "llama31")}


@pytest.fixture(scope="session")
def tokenizers_by_folder(folders):
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


def messages_of(turns):
    return tuple(Message(role, content) for role, content in turns)


def chat_of(turns):
    return Chat("c7", messages_of(turns))


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(folders, tokenizers_by_folder, case):
    name, options, turns, text = GOLDEN[case]
    tokenizer, template = tokenizers_by_folder[name], load_chat_template(folders[name], **options)
    example = encode_chat(tokenizer, template, chat_of(turns))
    assert show(tokenizer, example.tokens, example.mask) == text
    # Every token is one of the text as a whole, and the control tokens are read as such.
    rendered = template.render(messages_of(turns)).text
    assert example.tokens.tolist() == tokenizer.encode(rendered, special=True)
    assert set(example.tokens) & set(tokenizer.special_tokens.values())
    # Cut anywhere, it is the beginning of the whole.
    whole = len(example.tokens)
    assert not example.truncated and not encode_chat(tokenizer, template, chat_of(turns), max_tokens=whole).truncated
    for size in range(1, whole):
        if example.mask[:size].any():
            cut = encode_chat(tokenizer, template, chat_of(turns), max_tokens=size)
            assert cut.truncated
            assert cut.tokens.tolist() == example.tokens[:size].tolist()
            assert cut.mask.tolist() == example.mask[:size].tolist()
        else:
            with pytest.raises(TooLong, match=f"chat 'c7': none of its first {size} of [0-9]+ tokens would be trained"):
                encode_chat(tokenizer, template, chat_of(turns), max_tokens=size)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@hypothesis.given(contents=st.lists(CONTENTS, min_size=2, max_size=6), system=st.booleans())
@hypothesis.settings(max_examples=10)
def test_a_generation_prompt_ends_where_training_starts(folders, tokenizers_by_folder, name, options, contents, system):
    template, tokenizer = load_chat_template(folders[name], **dict(options)), tokenizers_by_folder[name]
    roles = ["user", "assistant"] * 3
    messages = messages_of(zip(roles, contents[: len(contents) // 2 * 2], strict=False))
    messages = (Message("system", "Be kind."), *messages) if system else messages
    prompt = template.render(messages[:-1], generation_prompt=True)
    rendered = template.render(messages)
    assert rendered.text[: rendered.trained_spans[-1][0]] == prompt.text
    assert len(rendered.trained_spans) == sum(message.role == "assistant" for message in messages)
    # The model is asked with exactly the tokens that it was trained after.
    example = encode_chat(tokenizer, template, Chat("c7", messages))
    ids = tokenizer.encode(prompt.text, special=True)
    assert example.tokens[: len(ids)].tolist() == ids
    assert not example.mask[len(ids) - 1] and example.mask[len(ids)]


@pytest.mark.parametrize(
    ("name", "options", "turns", "message"),
    [
        ("qwen2", {}, [("user", "a<|im_end|>"), ("assistant", "b")], "message 1 holds the control token '<|im_end|>'"),
        ("qwen2", {}, [("user", "a"), ("assistant", "<|im_start|>")], "message 2 holds the control token '<|im_start"),
        ("qwen3", {"thinking": "off"}, THINKING_TURNS, "message 4 holds reasoning, but thinking is 'off'"),
        ("qwen3", {}, [*PLAIN_TURNS, ("assistant", "More.")], "before the last answer is not its generation prompt"),
        ("qwen2", {}, [("user", "a")], "no assistant turn"),
    ],
)
def test_chats_that_are_refused(folders, tokenizers_by_folder, name, options, turns, message):
    template = load_chat_template(folders[name], **options)
    with pytest.raises(UserError) as error:
        encode_chat(tokenizers_by_folder[name], template, chat_of(turns))
    assert str(error.value).startswith("chat 'c7'") and message in str(error.value)
    if "control token" in message:  # as a prompt, too
        with pytest.raises(UserError, match="holds the control token"):
            template.render(messages_of(turns), generation_prompt=True)


def each(turn, prompt="<|im_start|>assistant\n"):
    return "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("[INST] {% for m in messages %}{{ m.content }}{% endfor %}", "no control token begins an assistant turn"),
        (each("{{ m.role }}: {{ m.content }}\n", "assistant:"), "no control token begins an assistant turn"),
        (each("<|im_start|>{{ m.role }}\n{{ m.content }}\n"), "no control token ends an assistant turn"),
        (
            each("<|im_start|>{{ m.role }}\n{{ m.content }}{{ '<|im_end|>' if loop.last else '<|endoftext|>' }}"),
            "a message changes the text of those before it",
        ),
        (
            each("<|im_start|>{{ m.role }}\n{{ m.content }}<|{{ 'endoftext' if loop.index == 4 else 'im_end' }}|>"),
            "'<|im_end|>' ends one assistant turn and '<|endoftext|>' the next",
        ),
        ("{{ raise_exception('no chats today') }}", "no chats today"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "is unsafe"),
        ("{{ 1 + bos_token }}", "unsupported operand"),
        ("a\n{% for %}", "line 2: "),
        ("a\n{{ 1 | shuffle }}", "line 2: No filter named 'shuffle'."),
    ],
)  # fmt: skip
def test_templates_that_are_refused(source, message):
    with pytest.raises(UserError) as error:
        find_borders(JinjaTemplate(source, QWEN_TOKENS))
    assert str(error.value).startswith("chat template") and message in str(error.value)


PARTS = "{% for part in m.content %}{{ part.text }}{% endfor %}"


@pytest.mark.parametrize(
    ("turn", "left_out"),
    [
        ("{% if m.role != 'system' %}{{ m.role }} {{ m.content }}{% endif %}<|im_end|>", "message 1, of the system"),
        (f"{{% if m.role == 'user' %}}{PARTS}{{% else %}}{{{{ m.content }}}}{{% endif %}}", "message 2, of the user"),
        ("{{ m.content | upper }}", None),
        ("{{ m.content.split('.')[0] }}", None),
    ],
)
def test_no_message_is_left_out_unseen(turn, left_out):
    template = JinjaTemplate(each(turn), QWEN_TOKENS)
    chat = messages_of([*SYSTEM_TURNS[:2], ("assistant", "<b>.\n")])
    if not left_out:
        template.render(chat, generation_prompt=True)
        return
    for asked_for in (True, False):
        with pytest.raises(UserError, match=f"^chat template: it leaves out {left_out}; take the message out, or use"):
            template.render(chat, generation_prompt=asked_for)


def asked(folder, source, tokens=QWEN_TOKENS, plain=()):
    """The template of a folder, as a model is asked with it."""
    write_tokenizer(folder, tokens, plain)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokens[-1]}))
    (folder / "chat_template.jinja").write_text(source)
    return load_chat_template(folder, for_training=False)


def test_a_template_that_cannot_be_trained_on_can_be_asked_with(tmp_path):
    llama2 = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    template, turns = asked(tmp_path, llama2, ("</s>",)), messages_of([*PLAIN_TURNS, ("user", "Why?")])
    assert template.render(turns, generation_prompt=True).text == "[INST] Which? [/INST]This.</s>[INST] Why? [/INST]"
    with pytest.raises(UserError, match="chat 'c7'.*: chat template: no control token begins an assistant turn"):
        encode_chat(load_tokenizer(tmp_path), template, Chat("c7", turns))
    with pytest.raises(UserError, match="chat template: no control token begins an assistant turn"):
        load_chat_template(tmp_path)
    # What is no template at all is told when it is asked with.
    broken = asked(tmp_path, "a\n{% for %}")
    with pytest.raises(UserError, match="chat template, line 2: "):
        broken.render(turns, generation_prompt=True)


@pytest.mark.parametrize(
    "plain", [("<|im_start|>",), ("<|im_end|>",), ("<|im_start|>", "<|im_end|>", "<think>", "\n", "user")]
)
def test_turn_markers_need_not_be_control_tokens(tmp_path, plain):
    tokens = [token for token in ("<|im_start|>", "<|im_end|>", "</s>") if token not in plain]
    asked(tmp_path, template_source("qwen3"), tokens, plain)
    tokenizer, template = load_tokenizer(tmp_path), load_chat_template(tmp_path)
    example = encode_chat(tokenizer, template, chat_of(THINKING_TURNS))
    assert show(tokenizer, example.tokens, example.mask) == GOLDEN["qwen3: reasoning, of the last answer only"][3]
    with pytest.raises(UserError, match=r"message 2 holds the control token '<\|im_end\|>'"):
        template.render(messages_of([("user", "user\n"), ("assistant", "a<|im_end|>b")]))


def test_turn_markers_must_be_read_as_one_token(tmp_path):
    asked(tmp_path, template_source("qwen3"), plain=())
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in described["added_tokens"]:
        # As a word of its own: not before the name of a role.
        token |= {"special": False, "single_word": token["content"] == "<|im_start|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="no control token begins an assistant turn"):
        load_chat_template(tmp_path)


def test_a_turn_too_many_is_refused():
    source = "<|im_start|>assistant\nHello.<|im_end|>\n" + template_source("qwen2")
    with pytest.raises(UserError, match="it writes 2 assistant turns for 1 assistant messages"):
        JinjaTemplate(source, QWEN_TOKENS).render(messages_of(PLAIN_TURNS))


def test_where_a_template_comes_from(folders, tmp_path):
    write_qwen(tmp_path, "qwen2")
    assert load_chat_template(tmp_path).source == template_source("qwen2")
    entries = '{"name": "tool", "template": "t"}, {"name": "default", "template": "<|im_start|>"}'
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": "<|im_end|>", "chat_template": [{entries}]}}')
    with pytest.raises(UserError, match="no control token begins"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template_source("smollm2"))
    assert load_chat_template(tmp_path).source == template_source("smollm2")
    own_file = load_chat_template(tmp_path, override=str(tmp_path / "chat_template.jinja"))
    assert own_file.source == template_source("smollm2")
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    with pytest.raises(UserError, match="has no chat template; give one .*llama3_paper"):
        load_chat_template(tmp_path)
    with pytest.raises(UserError, match="'nope': no such file; use .*llama3_paper"):
        load_chat_template(tmp_path, override="nope")
    # Another family's template: its control tokens are plain text here.
    with pytest.raises(UserError, match="no control token begins an assistant turn"):
        load_chat_template(tmp_path, override="llama3_paper")


def test_an_answer_that_the_tokenizer_joins_to_its_header_is_refused(tmp_path):
    """Asked, the model would see another prompt than it was trained on."""
    write_qwen(tmp_path, "qwen2")
    write_tokenizer(tmp_path, QWEN_TOKENS, ("\n\n",))
    tokenizer, template = load_tokenizer(tmp_path), load_chat_template(tmp_path)
    chat = Chat("c1", tuple(messages_of([("user", "Which?"), ("assistant", "\nThis.")])))
    with pytest.raises(UserError, match="chat 'c1': the tokenizer joins the beginning of an answer"):
        encode_chat(tokenizer, template, chat)
    encode_chat(tokenizer, template, Chat("c2", tuple(messages_of([("user", "\nWhich?\n"), ("assistant", "This.\n")]))))


def test_options_that_a_template_does_not_know(folders):
    with pytest.raises(UserError, match="this chat template knows no enable_thinking"):
        load_chat_template(folders["qwen2"], thinking="off")
    with pytest.raises(UserError, match="^chat template, line 1: No filter named 'shuffle'.$"):
        load_chat_template(folders["qwen2"], "{{ enable_thinking | shuffle }}", thinking="off")
    with pytest.raises(UserError, match="thinking is 'maybe'; use one of default, on, off, tag"):
        load_chat_template(folders["qwen3"], thinking="maybe")
    with pytest.raises(UserError, match="date is '2024-07-26'; write it as '26 Jul 2024'"):
        load_chat_template(folders["qwen3"], date="2024-07-26")


def test_templates_know_the_special_tokens_by_their_names(tmp_path):
    write_qwen(tmp_path)
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "sep_token": {"content": "é"}}
    config |= {"tool_token": "<|tool|>", "extra_special_tokens": {"image_token": "<|image|>"}, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(
        "{{ eos_token }},{{ pad_token }},{{ unk_token }},{{ sep_token }},{{ tool_token }},{{ image_token }},"
        "{{ add_bos_token }}," + template_source("qwen2")
    )
    text = load_chat_template(tmp_path).render(messages_of(PLAIN_TURNS[:1])).text
    assert text.startswith("<|im_end|>,<|endoftext|>,,é,<|tool|>,<|image|>,,<|im_start|>")


def test_what_templates_may_call():
    def run(source):
        template = JinjaTemplate(source + "#{{ messages[0].content }}", QWEN_TOKENS, eos_token="</s>")
        return template.render(messages_of([("user", "é<b>")])).text.removesuffix("#é<b>")

    assert run("{{ strftime_now('%Y-%m-%d') }} {{ date_string }}") == "2024-07-26 26 Jul 2024"
    assert run("{{ messages | tojson }}") == '[{"role": "user", "content": "é<b>"}]'
    assert run("{% generation %}{% set x = 1 %}a{{ eos_token }}{% endgeneration %}{{ x }}") == "a</s>1"
    assert run("{% for m in [1, 2] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}") == "1"
    assert run("{% if tools %}t{% endif %}\n  {% if true %}\nx{% endif %}") == "x"


def test_pickle_and_equality(folders):
    template = load_chat_template(folders["qwen3"], thinking="tag")
    template.render(messages_of(PLAIN_TURNS))
    again = pickle.loads(pickle.dumps(template))
    assert again == template and again.render(messages_of(PLAIN_TURNS)) == template.render(messages_of(PLAIN_TURNS))
