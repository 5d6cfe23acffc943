"""Hugging Face's config.json <-> `DecoderConfig`, for the families llama, qwen2 and qwen3.

Every field of a config.json is read, known to change nothing here, or an error: a field that is passed over in silence
is a model that computes something else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from msm_jax.errors import UserError
from msm_jax.models.attention import RopeScaling
from msm_jax.models.decoder import DecoderConfig

# model_type -> architecture, and what its layers have.
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
}

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
_READ = {
    *_SIZES,
    *("architectures", "model_type", "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"),
    *("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"),
}
_LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Fields that this decoder has in one value alone. None is what they are when they are absent.
_OFF = (
    # Of llama and qwen3, where it would also add one to the output projection.
    "attention_bias",
    *("mlp_bias", "use_sliding_window", "use_mrope", "add_cross_attention", "is_encoder_decoder"),
    *("tie_encoder_decoder", "rope_interleaved"),
)
_ONLY = {
    **dict.fromkeys(_OFF, (False, None)),
    **dict.fromkeys(("attention_dropout", "embd_pdrop", "resid_pdrop"), (0, None)),
    **dict.fromkeys(("quantization_config", "no_rope_layers", "auto_map"), (None,)),
    **{"pretraining_tp": (1, None), "partial_rotary_factor": (1, None), "pruned_heads": (None, {})},
    **{"hidden_act": ("silu",), "is_decoder": (False, True, None)},
}
# Read by tokenizers, samplers and savers, or a record of how the file was made.
_HARMLESS = {
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "unk_token_id"),
    *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation"),
    *("max_window_layers", "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "name_or_path"),
    *("chunk_size_feed_forward", "tokenizer_class", "torchscript", "use_bfloat16", "prefix", "unsloth_version"),
    *("unsloth_fixed", "transformers.js_config", "tf_legacy_loss", "tp_plan", "output_scores", "is_llama_config"),
}


def decoder_of(config: Mapping[str, Any], where: str = "config.json", **numerics: Any) -> DecoderConfig:
    """The decoder that `config`, a parsed config.json, describes. `where` names the file in errors; `numerics` is the
    dtype to compute in, of which a config.json says nothing.

    Raises: UserError for another architecture, for a field that this decoder does not have, or for one that is missing.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{where}: model_type is {family!r}; the models known here are {', '.join(FAMILIES)}")
    architecture, features = FAMILIES[family]
    _check_kinds(config, where)
    for name in config.get("architectures") or ():
        if name != architecture:
            raise UserError(
                f"{where}: architectures is {name}; of model_type {family} only {architecture} is known here"
            )
    _check_fields(config, family, where)
    missing = [field for field in (*_SIZES, "rms_norm_eps") if config.get(field) is None]
    if missing:
        raise UserError(f"{where}: has no {missing[0]}; this is not the whole config.json of a checkpoint")
    sizes = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    theta, scaling = _rope(config, where)
    head_size = config.get("head_dim") or (128 if family == "qwen3" else sizes["width"] / sizes["num_heads"])
    if head_size % 2:
        named = "head_dim" if config.get("head_dim") else "hidden_size / num_attention_heads"
        raise UserError(f"{where}: {named} is {head_size:g}; rotary embeddings need an even head size")
    num_kv_heads = config.get("num_key_value_heads") or sizes["num_heads"]
    if sizes["num_heads"] % num_kv_heads:
        raise UserError(
            f"{where}: num_attention_heads={sizes['num_heads']} is not a multiple of num_key_value_heads={num_kv_heads}"
        )
    return DecoderConfig(
        **sizes,
        num_kv_heads=num_kv_heads,
        head_size=int(head_size),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config["rms_norm_eps"],
        tied_head=bool(config.get("tie_word_embeddings", False)),
        max_length=config.get("max_position_embeddings"),
        **features,
        **numerics,
    )


def config_of(decoder: DecoderConfig) -> dict[str, Any]:
    """A config.json for a decoder that was pretrained here. Raises: UserError if no family has its features."""
    features = {name: True for name in ("qkv_bias", "qk_norm") if getattr(decoder, name)}
    family = next((family for family, (_, has) in FAMILIES.items() if has == features), None)
    if family is None:
        raise UserError(f"no Hugging Face family known here has {' and '.join(features)}; it cannot be exported")
    c = decoder
    rope = c.rope_scaling and dict(zip(_LLAMA3_ROPE, dataclasses.astuple(c.rope_scaling), strict=True))
    return {
        "architectures": [FAMILIES[family][0]],
        "model_type": family,
        **{theirs: getattr(c, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_size,
        "rms_norm_eps": c.norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": c.tied_head,
        "max_position_embeddings": c.max_length or 2048,
        # As versions of transformers before 5 have them; later ones read both forms.
        "rope_theta": c.rope_theta,
        "rope_scaling": {"rope_type": "llama3", **rope} if rope else None,
    }


def _check_kinds(config: Mapping[str, Any], where: str) -> None:
    whole = (*_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings")
    for kind, what, fields in (
        (int, "a whole number above 0", whole),
        (int | float, "a number above 0", ("rms_norm_eps", "rope_theta")),
        (list, "a list", ("architectures", "layer_types")),
        (dict, "an object", ("rope_scaling", "rope_parameters")),
        (bool, "true or false", ("tie_word_embeddings",)),
    ):
        for field in fields:
            value = config.get(field)
            right = isinstance(value, kind) and (kind in (list, dict, bool) or _is_positive(value))
            if value is not None and not right:
                raise UserError(f"{where}: {field} is {value!r}; it must be {what}")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _check_fields(config: Mapping[str, Any], family: str, where: str) -> None:
    for field, value in config.items():
        if field in _READ or field in _HARMLESS:
            continue
        if field == "sliding_window":
            # Qwen's files name a window, and beside it that it is not used.
            if value is not None and not (family != "llama" and config.get("use_sliding_window") is False):
                raise UserError(f"{where}: sliding_window is {value}; sliding windows of attention are not built")
        elif field not in _ONLY:
            raise UserError(f"{where}: unknown field {field}; if it changes nothing of the computation, take it out")
        elif value not in _ONLY[field]:
            raise UserError(f"{where}: {field} is {value!r}; only {_ONLY[field][0]!r} is known here")
    for kind in config.get("layer_types") or ():
        if kind != "full_attention":
            raise UserError(f"{where}: layer_types has {kind}; only full_attention is known here")


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies, from either of the two forms in which files have them, or both."""
    fields = [field for field in ("rope_parameters", "rope_scaling") if config.get(field)]
    places = {"rope_theta": config.get("rope_theta")}
    places |= {f"{field}.rope_theta": config[field].get("rope_theta") for field in fields}
    places = {place: value for place, value in places.items() if value is not None}
    for place, value in places.items():
        if not _is_positive(value):
            raise UserError(f"{where}: {place} is {value!r}; it must be a number above 0")
        first = next(iter(places))
        if value != places[first]:
            raise UserError(f"{where}: {first} is {places[first]!r} and {place} is {value!r}; make them the same")
    if not places and config["model_type"] != "llama":
        raise UserError(f"{where}: has no rope_theta; this is not the whole config.json of a checkpoint")
    theta = next(iter(places.values()), 10_000.0)  # files of the first Llamas leave it out
    found = {_rope_scaling(config[field], field, where) for field in fields} or {None}
    if len(found) > 1:
        raise UserError(f"{where}: rope_parameters and rope_scaling say different things; take one of them out")
    return float(theta), found.pop()


def _rope_scaling(rope: Mapping[str, Any], field: str, where: str) -> RopeScaling | None:
    rope = {name: value for name, value in rope.items() if name != "rope_theta"}
    part = rope.pop("partial_rotary_factor", 1)
    if part != 1:
        raise UserError(f"{where}: {field}.partial_rotary_factor is {part!r}; only 1 is known here")
    old, kind = rope.pop("type", None), rope.pop("rope_type", None)
    if None not in (old, kind) and old != kind:
        raise UserError(f"{where}: {field}.rope_type is {kind!r} and {field}.type is {old!r}; make them the same")
    kind = kind or old or "default"
    if kind == "default":
        if rope:
            raise UserError(f"{where}: {field}.{min(rope)} is unknown; rope_type 'default' has none but rope_theta")
        return None
    if kind != "llama3":
        raise UserError(f"{where}: {field}.rope_type is {kind!r}; only 'default' and 'llama3' are known here")
    if odd := sorted(set(rope) ^ set(_LLAMA3_ROPE)):
        state = "unknown" if odd[0] in rope else "missing"
        raise UserError(f"{where}: {field}.{odd[0]} is {state}; llama3 has {', '.join(_LLAMA3_ROPE)}")
    for name in _LLAMA3_ROPE:
        if not _is_positive(rope[name]):
            raise UserError(f"{where}: {field}.{name} is {rope[name]!r}; it must be a number above 0")
    return RopeScaling(*(rope[name] for name in _LLAMA3_ROPE))
