"""What ends an answer, of all files that say something of it."""

import pytest
import transformers

from msm_jax.data.huggingface import read_named_tokens
from msm_jax.data.jinja_template import JinjaTemplate, closing_token
from msm_jax.data.stops import stop_ids
from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.errors import UserError
from tests.data.checkpoints import (
    LLAMA_TOKENS,
    QWEN_TOKENS,
    read_ids,
    template_source,
    write_json,
    write_tokenizer,
)

END, START, TURN = QWEN_TOKENS


def write(folder, files):
    """A tokenizer whose documents end with END; `files` name ids by the texts of their tokens."""

    def ids(value):
        if isinstance(value, list):
            return [ids(one) for one in value]
        return read_ids(folder, value)[0] if isinstance(value, str) else value

    write_tokenizer(folder, QWEN_TOKENS)
    for name, described in ({"tokenizer_config": {"eos_token": END}} | files).items():
        if "eos_token_id" in described:
            described = {"eos_token_id": ids(described["eos_token_id"])}
        if name == "tokenizer_config":
            described = {"tokenizer_class": "PreTrainedTokenizerFast"} | described
        write_json(folder / f"{name}.json", described)
    return folder


DECODED = {"eos_token": START, "added_tokens_decoder": {"0": {"content": "!", "special": False}}}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, [END]),
        ({"tokenizer_config": {"eos_token": TURN}}, [END, TURN]),
        ({"generation_config": {"eos_token_id": [TURN, END]}}, [END, TURN]),
        ({"config": {"eos_token_id": TURN}}, [END, TURN]),
        ({"config": {"eos_token_id": [START, TURN]}}, [END, START, TURN]),
        ({"config": {"eos_token_id": None}, "generation_config": {}}, [END]),
        # A fine-tuning wrote one of the two.
        ({"config": {"eos_token_id": TURN}, "generation_config": {"eos_token_id": END}}, [END, TURN]),
        # LlamaConfig writes 2 where nobody says otherwise; here that is a letter.
        ({"config": {"eos_token_id": "#"}, "generation_config": {"eos_token_id": TURN}}, [END, TURN]),
        ({"config": {"eos_token_id": "#"}}, [END, "#"]),
        ({"generation_config": {"eos_token_id": [-1, 10**6]}}, [END]),
        # transformers asks the map first, but not beside an added_tokens_decoder.
        ({"special_tokens_map": {"eos_token": TURN}}, [END, TURN]),
        ({"special_tokens_map": {"eos_token": {"content": TURN, "lstrip": False}}}, [END, TURN]),
        ({"tokenizer_config": DECODED, "special_tokens_map": {"eos_token": TURN}}, [END, START]),
    ],
)
def test_every_file_that_says_what_ends_an_answer(tmp_path, files, wanted):
    folder = write(tmp_path, files)
    assert stop_ids(load_tokenizer(folder), None, folder) == tuple(sorted(read_ids(folder, *wanted)))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert read_named_tokens(folder)["eos_token"] == theirs.eos_token


def test_an_end_that_is_no_id_or_none_of_the_tokenizers(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, {}))
    for name in ("config.json", "generation_config.json"):
        for value in (True, "2", 2.5, [2, None], {}):
            write_json(tmp_path / name, {"eos_token_id": value})
            with pytest.raises(UserError, match=f"/{name}: eos_token_id is .*; it must be an id, or a list of ids"):
                stop_ids(tokenizer, None, tmp_path)
        (tmp_path / name).unlink()
    # As an adapter's folder may name it without its tokenizer.json.
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>"})
    with pytest.raises(UserError, match=r"names '<\|end\|>' as eos_token, which is no token of this tokenizer"):
        stop_ids(tokenizer, None, tmp_path)
    template = JinjaTemplate(turns("''", "'<|end|>'"), ("<|end|>",))
    with pytest.raises(UserError, match=r"chat template: closes with '<\|end\|>', which is no token of this tokenizer"):
        stop_ids(tokenizer, template)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("both"), (*QWEN_TOKENS, *LLAMA_TOKENS))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|end_of_text|>"})
    return folder


TURNS = "{% for m in messages %}{{ BEFORE }}{{ m['content'] }}{{ AFTER }}{% endfor %}"


def turns(before, after):
    return TURNS.replace("BEFORE", before).replace("AFTER", after)


@pytest.mark.parametrize(
    ("source", "close"),
    [
        (template_source("qwen3"), TURN),
        (template_source("llama31"), "<|eot_id|>"),
        (turns("'<|im_start|>' + m['role'] + '\\n'", "'<|im_end|>\\n'"), TURN),
        (turns("'[' + m['role'] + '] '", "' ' + eos_token"), END),  # no token begins a turn
        (turns("'<|im_start|>' + m['role'] + '\\n'", "'\\n'"), START),  # nothing but the next turn ends one
        (turns("''", "raise_exception('not the user') if m['role'] == 'user' and loop.last else '<|im_end|>'"), TURN),
        # As where an answer goes on in another channel.
        (turns("'<|im_start|>'", "'<|im_end|>' if loop.last else '<|eom_id|>'"), TURN),
        # What is trained ends with the token, whatever stands before it.
        (turns("'<|im_start|>' + m['role'] + '\\n'", "'.\\n[done]<|im_end|>\\n'"), TURN),
        ("{{ messages[0].content }}: " + turns("''", "(m['content'] if loop.first else '') + '<|im_end|>'"), TURN),
        ("{{ raise_exception('a system first') if messages[0].role != 'system' }}" + turns("''", "eos_token"), END),
        (turns("m['role'] + ': '", "'\\n'"), None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_token_with_which_a_template_closes_an_answer(both, source, close):
    template = JinjaTemplate(source, (*QWEN_TOKENS, *LLAMA_TOKENS), eos_token=END)
    assert closing_token(template) == close
    tokenizer = load_tokenizer(both)
    assert set(stop_ids(tokenizer, template)) == {tokenizer.eos_id, *read_ids(both, *filter(None, [close]))}
