"""adapter_config.json of the library `peft` <-> `LoraConfig`."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from msm_jax.errors import UserError
from msm_jax.models.huggingface import PEFT_TARGETS, peft_module
from msm_jax.models.linear import LORA_TARGETS, LoraConfig

_READ = {"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"}
# About how the adapter was made or is kept. Every other field must be empty: set, it makes the adapter another function
# than x W + (alpha / r) x A B, or trains more than it.
_HARMLESS = {
    *("base_model_name_or_path", "inference_mode", "task_type", "revision", "auto_mapping", "peft_version"),
    *("loftq_config", "lora_dropout", "megatron_core", "runtime_config", "qalora_group_size"),
}
# Of the other starts, some take from the base what they put in the adapter, which then fits another base.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")


def lora_of(config: Mapping[str, Any], tensor_names: Collection[str], where: str = "adapter_config.json") -> LoraConfig:
    """The adapter that `config`, a parsed adapter_config.json, describes.

    Args:
      tensor_names: those of adapter_model.safetensors, by which targets are known: `target_modules` may be a pattern.
      where: names the file in errors.

    Raises: UserError for another method than LoRA, for a field that is not built here, and for targets that the
        file of tensors contradicts.
    """
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type is {config.get('peft_type')!r}; only LORA is known here")
    for field, value in config.items():
        if field not in _READ | _HARMLESS and value:
            raise UserError(f"{where}: {field} is {value!r}; plain LoRA is all that is built here")
    if config.get("init_lora_weights") not in _INITIALISATIONS:
        raise UserError(
            f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base as well"
        )
    if config.get("bias", "none") != "none":
        raise UserError(f"{where}: bias is {config['bias']!r}; only 'none' is known here")
    for field in ("r", "lora_alpha"):
        value = config.get(field)
        kinds = (int,) if field == "r" else (int, float)
        if type(value) not in kinds or not 0 < value < math.inf:
            raise UserError(f"{where}: {field} is {value!r}; it must be a {'whole ' * (field == 'r')}number above 0")
    found = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensor_names}
    named = config.get("target_modules")
    targets = set(named) if isinstance(named, list | tuple) else found
    for module in sorted(found | targets):
        if module not in PEFT_TARGETS:
            raise UserError(f"{where}: target {module} is none of {', '.join(PEFT_TARGETS)}")
    if found != targets:
        odd = sorted(found ^ targets)[0]
        place = (
            "target_modules, and the file of tensors has none" if odd in targets else "the tensors, not target_modules"
        )
        raise UserError(f"{where}: {odd} is in {place}; config and tensors are of two adapters")
    ours = tuple(target for target in LORA_TARGETS if peft_module(target) in targets)
    return LoraConfig(rank=int(config["r"]), alpha=float(config["lora_alpha"]), targets=ours)


def peft_config(lora: LoraConfig, base: str, revision: str | None = None) -> dict[str, Any]:
    """An adapter_config.json. `base` is where `peft` shall look for the base: a folder, or a Hugging Face id with its
    `revision`."""
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": [peft_module(target) for target in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
