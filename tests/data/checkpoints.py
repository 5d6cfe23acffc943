"""Folders as Hugging Face has them, with small tokenizers, so that tests need no download."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

# Words, numbers, spaces and signs apart, as GPT-4, Qwen and Llama 3 do it.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
)  # fmt: skip
_TEXTS = ["Which chair is this? The people say that the chair is best.\n\nWhy? Because."] * 4
TEMPLATES = pathlib.Path(__file__).with_name("templates")


def write_tokenizer(folder, special_tokens=(), plain_tokens=(), *, bos=None, normalizer=None, trim=False):
    """Writes `folder/tokenizer.json`: byte-level BPE."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(tokenizers.Regex(_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(special_tokens))
    tokenizer.add_tokens([tokenizers.AddedToken(token, special=False, normalized=False) for token in plain_tokens])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    if bos:
        begin = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, begin])
    # As tokenizer.json is saved by who trained with cut and padded texts.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value))


def template_source(name):
    return (TEMPLATES / f"{name}.jinja").read_text()


def write_qwen(folder, template="qwen3"):
    write_tokenizer(folder, QWEN_TOKENS, ("<think>", "</think>"), normalizer=normalizers.NFC())
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    config |= {"chat_template": template_source(template), "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", config)
    return folder


def write_llama(folder, template="llama31"):
    write_tokenizer(folder, LLAMA_TOKENS, bos="<|begin_of_text|>", trim=True)
    config = {"eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"}, "bos_token": "<|begin_of_text|>"}
    config |= {"clean_up_tokenization_spaces": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", config)
    end, eom = read_ids(folder, "<|end_of_text|>", "<|eom_id|>")
    write_json(folder / "generation_config.json", {"eos_token_id": [end, eom]})
    (folder / "chat_template.jinja").write_text(template_source(template))
    return folder


def read_ids(folder, *tokens):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.token_to_id(token) for token in tokens]
