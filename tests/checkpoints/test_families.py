"""config.json of the three families: what is read, and what is refused."""

import pytest

from msm_jax.checkpoints.families import decoder_of
from msm_jax.checkpoints.presets import PRESETS, preset
from msm_jax.errors import UserError
from msm_jax.models import LoraConfig, Model, count_parameters


def test_presets_have_the_known_numbers_of_parameters():
    counts = {name: count_parameters(Model(preset(name)).shapes) for name in PRESETS}
    assert counts == {
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
        "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
        "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
        "Qwen/Qwen3-14B": 14_768_307_200,
        "Qwen/Qwen3-32B": 32_762_123_264,
        "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    }
    adapters = [count_parameters(Model(preset(name), LoraConfig()).lora_shapes) for name in PRESETS]
    assert (adapters[:3], adapters[4]) == ([167_772_160, 275_251_200, 536_870_912], 536_870_912)
    with pytest.raises(UserError, match="no preset 'gpt2'; there are meta-llama/Llama-3.1-8B"):
        preset("gpt2")


LLAMA3 = PRESETS["meta-llama/Llama-3.1-8B"]["rope_scaling"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type is 'mixtral'; the models known here are llama, qwen2, qwen3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is LlamaForSequenceClassification"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.high_freq_factor is missing"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
        ({"attention_chunk_size": 8}, "unknown field attention_chunk_size"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_fac"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "rope_scaling.factor is unknown"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_parameters and rope_scaling say different things"),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 1e4}}, "rope_theta is 500000.0 and rope_parameters.rope_theta"),
        ({"rope_scaling": LLAMA3 | {"factor": None}}, "rope_scaling.factor is None; it must be a number"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]; it must be an object"),
        ({"rope_scaling": LLAMA3 | {"rope_theta": "x"}}, "rope_scaling.rope_theta is 'x'; it must be a number"),
        ({"rope_theta": "x"}, "rope_theta is 'x'; it must be a number above 0"),
        ({"layer_types": 3}, "layer_types is 3; it must be a list"),
        ({"model_type": []}, r"model_type is \[\]; the models known here"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number above 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole number above 0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; it must be a number above 0"),
        ({"num_key_value_heads": 5}, "num_attention_heads=32 is not a multiple of num_key_value_heads=5"),
        ({"head_dim": 5}, "head_dim is 5; rotary embeddings need an even head size"),
        ({"hidden_size": 4100}, "hidden_size / num_attention_heads is 128.125; rotary"),
        ({"hidden_size": 16}, "hidden_size / num_attention_heads is 0.5; rotary"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"auto_map": {"AutoModel": "code.py"}}, "auto_map is"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta is 0; it must be a number above 0"),
        ({"rope_parameters": {"rope_theta": True}}, "rope_parameters.rope_theta is True; it must be a number"),
        ({"rope_scaling": {"rope_type": "default", "type": "linear"}}, "rope_type is 'default' and .*type is 'linear'"),
        ({"rope_scaling": LLAMA3 | {"type": "yarn"}}, "rope_scaling.rope_type is 'llama3' and rope_scaling.type is"),
    ],
)
def test_what_is_not_built_is_an_error_that_names_the_field(change, message):
    config = dict(PRESETS["meta-llama/Llama-3.1-8B"]) | change
    with pytest.raises(UserError, match=message):
        decoder_of(config)


def test_a_window_that_is_not_used_is_no_window():
    config = dict(PRESETS["Qwen/Qwen2.5-32B-Instruct"])
    decoder = decoder_of(config)
    extra = {"sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 64, "use_mrope": False}
    assert decoder_of(config | extra) == decoder
    with pytest.raises(UserError, match="sliding_window"):
        decoder_of(config | extra | {"use_sliding_window": True})
