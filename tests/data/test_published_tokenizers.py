"""Qwen3, Llama 3 and SmolLM2 as they are published, against tiktoken and transformers."""

import base64
import functools
import random
import unicodedata

import gguf
import pytest
import transformers

from msm_jax.corpus.records import Chat
from msm_jax.data import chat, jinja_template
from msm_jax.data.stops import stop_ids
from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.errors import UserError
from tests.artefacts import artefact
from tests.data.checkpoints import write_json, write_qwen
from tests.data.test_jinja_template import GOLDEN, PLAIN_TURNS, SYSTEM_TURNS, THINKING_TURNS, llama, messages_of

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = {
    "english": "The people of Halden don't say THEY'LL prefer 1234567 chairs, do they?",
    "combining marks": "e\u0301 a\u0327\u0301 a\u0301\u0327 Z\u0351\u036b\u0343 \u1112\u1161\u11ab \u2126",
    "emoji": "😀 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇳🇴 👍🏽 ❤️",
    "chinese, japanese, korean": "我喜欢这把椅子。 日本語のテキスト、カタカナ 안녕하세요 𠮷",
    "right to left": "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "other scripts": "नमस्ते สวัสดี Привет გამარჯობა ₿ ½ ² ﬁ 豈",
    "spaces": " a  b\t\tc \u00a0 d\u2003e\u3000f \u200b g\ufeff \r\n\r\n \n  h \x0b \x0c \x85 \u2028 i   ",
    "odd characters": "\0 \x01 \x7f \ufffd \ufffe \U0010ffff \ue000",
    "python": "def f(x):\n    return {k: v**2 for k, v in x.items() if v != 0}  # noqa\n\n\n\tif a<=b:\r\n\t\tpass",
    "json and markup": '{"a": [1, 2.50, null], "b": "\\u00e9\\n"}\n<div class="x">&nbsp;</div>\n```sh\n$ ls -l\n```',
    "control tokens in words": "a <|im_end|> b<|eot_id|><|endoftext|> c <|end_of_text|><|begin_of_text|> <think>",
    "a long word": "a" * 300 + "ß" * 50,
}


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """A published tokenizer is read in a second and more, and each template asks for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja_template, "load_tokenizer", functools.cache(load_tokenizer))
        yield


@pytest.fixture(scope="module")
def tokenizers(read_once):
    return {name: jinja_template.load_tokenizer(artefact(f"{name}-tokenizer")) for name in ("qwen3", "llama3")}


def read_tiktoken(path, pattern, special_tokens):
    import tiktoken

    lines = [line.split() for line in path.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)


@pytest.fixture(scope="module")
def references(tokenizers):
    # Qwen3 added <think> and others to the file's tokens later, as tokens that are read out of any text.
    added = {"<think>": 151667, "</think>": 151668}
    tokens = {name: tokenizer.special_tokens for name, tokenizer in tokenizers.items()}
    qwen3 = read_tiktoken(artefact("qwen-tiktoken"), _WORDS % "", {**tokens["qwen3"], **added})
    llama3 = read_tiktoken(artefact("llama3-tiktoken"), _WORDS % "{1,3}", tokens["llama3"])

    def encode_qwen3(text, special):
        allowed = "all" if special else set(added)
        return qwen3.encode(unicodedata.normalize("NFC", text), allowed_special=allowed, disallowed_special=())

    def encode_llama3(text, special):
        return llama3.encode(text, allowed_special="all" if special else set(), disallowed_special=())

    return {"qwen3": encode_qwen3, "llama3": encode_llama3}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_ids_are_those_of_tiktoken(tokenizers, references, name, special):
    tokenizer = tokenizers[name]
    for text in TEXTS.values():
        ids, spans = tokenizer.encode_with_spans(text, special=special)
        assert ids == references[name](text, special)
        assert (spans[:, 0] < spans[:, 1]).all() and spans[0, 0] == 0 and spans[-1, 1] == len(text)
        whole = text if name == "llama3" else unicodedata.normalize("NFC", text)
        assert special or tokenizer.decode(ids) == whole


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_ids_of_random_characters_are_those_of_tiktoken(tokenizers, references, name):
    drawn = random.Random(0)
    # Letters that newer Unicode versions added are split by the age of each library, so only the oldest planes.
    letters = [chr(i) for i in range(0x3000) if unicodedata.category(chr(i)) != "Cn"]
    for _ in range(300):
        text = "".join(drawn.choices(letters, k=20)) + "".join(drawn.choices(" \n\tab1'", k=20))
        assert tokenizers[name].encode(text) == references[name](text, False), repr(text)


def test_what_ends_what(tokenizers):
    qwen3, llama3 = tokenizers["qwen3"], tokenizers["llama3"]
    assert (qwen3.bos_id, qwen3.eos_id, qwen3.pad_id, qwen3.vocab_size) == (None, 151643, 151643, 151669)
    assert stop_ids(qwen3, None, artefact("qwen3-tokenizer")) == (151643, 151645)
    assert (llama3.bos_id, llama3.eos_id, llama3.vocab_size) == (128000, 128001, 128256)
    assert stop_ids(llama3, None, artefact("llama3-tokenizer")) == (128001, 128009)


# Without the date that the small template of the tests tells.
_OWN = llama(
    "system|\n\nBe kind.<|eot_id|>",
    "user|\n\nWhich?<|eot_id|>", "assistant|\n\n«This.<|eot_id|>»",
    "user|\n\nWhy?<|eot_id|>", "assistant|\n\n«Because.\n\nIt is.<|eot_id|>»",
)  # fmt: skip
_GOLDEN = {case: golden for case, golden in GOLDEN.items() if golden[0] == "qwen3" or "override" in golden[1]}
_GOLDEN["llama3"] = ("llama31", {}, SYSTEM_TURNS, _OWN)


@pytest.mark.parametrize("case", _GOLDEN)
def test_golden(tokenizers, references, case):
    name, options, turns, text = _GOLDEN[case]
    name = {"llama31": "llama3"}.get(name, name)
    template = jinja_template.load_chat_template(artefact(f"{name}-tokenizer"), **options)
    example = chat.encode_chat(tokenizers[name], template, Chat("c", messages_of(turns)))
    assert chat.show(tokenizers[name], example.tokens, example.mask) == text
    assert example.tokens.tolist() == references[name](template.render(messages_of(turns)).text, True)


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_texts_are_those_of_transformers(name):
    folder = artefact(f"{name}-tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for switch in ("default", "on", "off") if name == "qwen3" else ("default",):
        ours = jinja_template.load_chat_template(folder, thinking=switch, date="01 Feb 2025")
        options = {"date_string": "01 Feb 2025"} | ({} if switch == "default" else {"enable_thinking": switch == "on"})
        for turns in (PLAIN_TURNS, SYSTEM_TURNS, THINKING_TURNS[:3], SYSTEM_TURNS[:4]):
            rows = [{"role": role, "content": content} for role, content in turns]
            for generation in (False, True):
                text = theirs.apply_chat_template(rows, tokenize=False, add_generation_prompt=generation, **options)
                assert ours.render(messages_of(turns), generation_prompt=generation).text == text


def test_llama3_with_only_a_tiktoken_file(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(artefact("llama3-tiktoken").read_bytes())
    with pytest.raises(UserError, match="not a SentencePiece model; put the checkpoint's tokenizer.json there"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_smollm2s_own_template(tmp_path):
    fields = gguf.GGUFReader(artefact("smollm2-gguf")).fields
    write_qwen(tmp_path)
    config = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    config |= {"chat_template": fields["tokenizer.chat_template"].contents()}
    write_json(tmp_path / "tokenizer_config.json", config)
    tokenizer, template = load_tokenizer(tmp_path), jinja_template.load_chat_template(tmp_path)
    example = chat.encode_chat(tokenizer, template, Chat("c", messages_of(PLAIN_TURNS)))
    assert chat.show(tokenizer, example.tokens, example.mask) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n«This.<|im_end|>»\n"
    )
