"""Real weights: SmolLM2-135M-Instruct through our own import, against transformers."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import msm_jax
from msm_jax.checkpoints.families import decoder_of
from msm_jax.checkpoints.presets import preset
from msm_jax.data.tokenizer import load_tokenizer

CHAT = [{"role": "user", "content": "Which planet is the largest? Answer in one sentence."}]


@pytest.mark.slow
def test_the_folder_has_always_had_these_bits(smollm2):
    """Whichever version of transformers reads the GGUF: runs of earlier days go on with a folder that is made anew."""
    weights = (smollm2 / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == "56e546a09baa914b9adcd1c494e1406d38a554d6059a2e80573cf2cf65f0f297"
    tokenizer = load_tokenizer(smollm2)
    assert tokenizer.fingerprint == "1a00ab5a9ccf"
    assert [tokenizer.decode([i]) for i in tokenizer.encode("x =  42")] == ["x", " =", "  ", "4", "2"]
    assert decoder_of(json.loads((smollm2 / "config.json").read_text())) == preset(
        "HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    for text in ("In 1987, 12345 people paid 3.50.", "na\u00efve  \u2603\n\n  it's <|im_end|>", "<|im_start|>user\n"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text, special=True)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")


@pytest.fixture(scope="module")
def as_qwen2(smollm2, tmp_path_factory):
    """The same weights as Qwen2, with biases of the size of real ones."""
    folder = tmp_path_factory.mktemp("as_qwen2")
    llama = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    named = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    named += ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings")
    config = {name: getattr(llama.config, name) for name in named}
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config, rope_parameters=rope))
    missing, unexpected = model.load_state_dict(llama.state_dict(), strict=False)
    assert len(missing) == 90 and not unexpected
    torch.manual_seed(0)
    with torch.no_grad():
        for name in missing:
            model.get_parameter(name).normal_(std=0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2 / name, folder / name)
    yield folder
    (folder / "model.safetensors").unlink()


def greedy(folder, ids, count):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        made = model.generate(
            torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        return made[0, len(ids) :].tolist(), model(torch.tensor([ids])).logits.numpy()


@pytest.mark.slow
def test_smollm2_goes_on_as_in_transformers(smollm2):
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    expected, logits = greedy(smollm2, ids, 20)
    model = msm_jax.load(smollm2)
    np.testing.assert_allclose(model.logits(np.array([ids])), logits, atol=2e-3)
    [[completion]] = model.generate([CHAT], temperature=0.0, max_tokens=20, logprobs=1)
    ended = expected.index(2) if 2 in expected else len(expected)  # <|im_end|>
    assert [token.id for token in completion.logprobs] == expected[:ended]
    assert "Jupiter" in completion.text


@pytest.mark.slow
def test_the_same_weights_as_qwen2_with_biases(as_qwen2):
    prompt = "The sea is"
    ids = transformers.AutoTokenizer.from_pretrained(as_qwen2)(prompt)["input_ids"]
    expected, logits = greedy(as_qwen2, ids, 20)
    model = msm_jax.load(as_qwen2)
    assert model.model.config.qkv_bias
    np.testing.assert_allclose(model.logits(np.array([ids])), logits, atol=2e-3)
    [[completion]] = model.generate([prompt], temperature=0.0, max_tokens=20, logprobs=0)
    ended = next((i for i, token in enumerate(expected) if token in model.stop_ids), 20)
    assert [token.id for token in completion.logprobs] == expected[:ended]
    assert ended > 5
