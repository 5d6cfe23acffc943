"""adapter_config.json of the library `peft` <-> `LoraConfig`."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from msm_jax.checkpoints.huggingface import PEFT_MODULES, PEFT_PREFIX, peft_module
from msm_jax.errors import UserError
from msm_jax.models.linear import LORA_TARGETS, LoraConfig

# Which modules are adapted, and how: fields, with the kinds of value that they have, None aside.
_MODULES = {
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), str | list),
    **{"layers_to_transform": int | list, "rank_pattern": dict, "alpha_pattern": dict},
}
_READ = {"peft_type", "r", "lora_alpha", "bias", "init_lora_weights", *_MODULES}
# About how the adapter was made or is kept. Every other field must be empty: set, it makes the adapter another function
# than x W + (alpha / r) x A B, or trains more than it.
_HARMLESS = {
    *("base_model_name_or_path", "inference_mode", "task_type", "revision", "auto_mapping", "peft_version"),
    *("lora_dropout", "megatron_core", "runtime_config", "qalora_group_size"),
    # Of starts, which `init_lora_weights` names; of the backward pass; of tied layers, which are refused.
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "ensure_weight_tying"),
}
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# They take from the base what they put in the adapter, which then fits another base.
_STARTS_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MATRIX = re.compile(re.escape(PEFT_PREFIX) + r"(.+)\.lora_[AB]\.weight")
# What else adapters hold: how it is named, and what it is.
_OTHER_TENSORS = {
    r".*_orig_mod\..*": "was saved from a compiled model; save the adapter of the model that was compiled",
    rf"(?!{re.escape(PEFT_PREFIX)}).*lora_[AB]\..*": f"does not begin with {PEFT_PREFIX}, as peft writes it; save the "
    "adapter by save_pretrained",
    r".*\.lora_[AB]\.(?!weight$|bias$).*": "has the adapter's own name in it; save the adapter by save_pretrained",
    r".*(embed_tokens|lm_head)\.(base_layer\.)?weight": "is the embedding or the head, saved beside the adapter, and "
    "may be trained; save the adapter by save_pretrained(save_embedding_layers=False), or merge it into the base",
}


def lora_of(config: Mapping[str, Any], tensor_names: Collection[str], num_layers: int, folder: str = ".") -> LoraConfig:
    """What `config`, a parsed adapter_config.json, and the names in adapter_model.safetensors describe: an adapter of
    a base of `num_layers`. `folder` names the files in errors.

    Raises: UserError for another method than LoRA, for a field that is not built here, for a tensor that is no matrix
        of plain LoRA, for modules that `config` and the tensors do not share, and for an adapter of some layers only.
    """
    where = f"{folder}/adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type is {config.get('peft_type')!r}; only LORA is known here")
    for field, value in config.items():
        if field not in _READ and field not in _HARMLESS and value:
            raise UserError(f"{where}: {field} is {value!r}; plain LoRA is all that is built here")
        if value is not None and not isinstance(value, _MODULES.get(field, object)):
            raise UserError(f"{where}: {field} is {value!r}, which peft never writes; fetch the file anew")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        of_base = str(start).lower().startswith(_STARTS_OF_THE_BASE)
        reason = "changes the base as well; save it as plain LoRA" if of_base else "is not known here"
        raise UserError(f"{where}: init_lora_weights is {start!r}, which {reason}")
    if config.get("bias", "none") != "none":
        raise UserError(f"{where}: bias is {config['bias']!r}; only 'none' is known here")
    try:
        modules = _adapted_modules(config, tensor_names, num_layers, folder)
        rank = _of_all(modules, config, "r", "rank_pattern", (int,), where)
        alpha = _of_all(modules, config, "lora_alpha", "alpha_pattern", (int, float), where)
    except re.error as error:
        raise UserError(f"{where}: a pattern of modules cannot be read ({error}); fetch the file anew") from None
    adapted = {_last(module) for module in modules}
    return LoraConfig(rank, float(alpha), tuple(target for target in LORA_TARGETS if peft_module(target) in adapted))


def _adapted_modules(
    config: Mapping[str, Any], tensor_names: Collection[str], num_layers: int, folder: str
) -> list[str]:
    """The modules of the base that have an adapter: some kinds, each of them in every layer."""
    where, file = f"{folder}/adapter_config.json", f"{folder}/adapter_model.safetensors"
    layers = {f"model.layers.{i}.{path}": path for i in range(num_layers) for path in PEFT_MODULES}
    kinds = ", ".join(map(_last, PEFT_MODULES))
    held: dict[str, str] = {}  # module -> one of its tensors
    for name in sorted(tensor_names, key=lambda name: ("lora_" not in name, name)):
        found = _MATRIX.fullmatch(name)
        reason = next((reason for form, reason in _OTHER_TENSORS.items() if re.fullmatch(form, name)), None)
        if reason or not found:
            raise UserError(f"{file}: tensor {name} {reason or 'is no matrix of plain LoRA, all that is built here'}")
        if found[1] not in layers:
            raise UserError(
                f"{file}: tensor {name} has no place here: adapted are {kinds} of the base's {num_layers} layers; this "
                "is an adapter of more than them, or of another model"
            )
        held.setdefault(found[1], name)
    # Names of no module of the base are passed over, as peft does: many lists are made for several architectures.
    known, named = [*layers, "model.embed_tokens", "lm_head"], config.get("target_modules")
    targeted = held if named is None else {module for module in known if is_target(config, module)}
    if not held or not targeted:
        lacking = "target_modules has no module of the base" if held else "the file of tensors is empty"
        raise UserError(f"{where}: {lacking}; the adapter is of another model or damaged, and would change nothing")
    if odd := [module for module in known if (module in held) != (module in targeted)]:
        place = "the tensors, not target_modules"
        if odd[0] not in held:
            place = "target_modules, and the file of tensors has none"
        raise UserError(f"{where}: {odd[0]} is in {place}; config and tensors are of two adapters, or another model")
    for module, path in layers.items():
        other = next((tensor for one, tensor in held.items() if layers[one] == path), None)
        if other and module not in held:
            raise UserError(
                f"{file}: tensor {other} has none beside it for {module}: an adapter of some layers only, and only "
                "those of all layers are built here"
            )
    return list(held)


def is_target(config: Mapping[str, Any], module: str) -> bool:
    """Whether `peft` adapts `module`, of a full name such as model.layers.0.mlp.up_proj, or the head or embedding."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    if re.fullmatch(excluded, module) if isinstance(excluded, str) else _ends_in(module, excluded):
        return False
    if isinstance(targets, str):
        all_linear = r"model\.layers\..*"
        return bool(re.fullmatch(all_linear if targets.lower() == "all-linear" else targets, module))
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or r"[^.]*"
    if layers is None or layers == [] or module in targets or not _ends_in(module, targets):
        return _ends_in(module, targets)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    layer = next((found for form in patterns if (found := re.match(rf"(?:^|.*?\.){form}\.(\d+)\.", module))), None)
    return layer is not None and int(layer[1]) in ([layers] if isinstance(layers, int) else layers)


def _ends_in(module: str, names: Iterable[str]) -> bool:
    return any(f".{module}".endswith(f".{name}") for name in names)


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def _of_all(
    modules: list[str], config: Mapping[str, Any], field: str, pattern: str, kinds: tuple[type, ...], where: str
) -> int | float:
    """The rank or alpha that all `modules` have."""
    forms, found = config.get(pattern) or {}, {}
    for module in modules:
        value = next((forms[form] for form in forms if re.match(rf"(.*\.)?({form})$", module)), config.get(field))
        if type(value) not in kinds or not 0 < value < math.inf:
            raise UserError(f"{where}: {field} is {value!r}; it must be a {'whole ' * (field == 'r')}number above 0")
        found.setdefault(value, module)
    if len(found) > 1:
        differing = " and ".join(f"{value} for {module}" for value, module in found.items())
        raise UserError(f"{where}: {pattern} is {forms!r}, so {field} is {differing}; one for all is built here")
    return value


def peft_config(lora: LoraConfig, base: str, revision: str | None = None) -> dict[str, Any]:
    """An adapter_config.json. `base` is where `peft` shall look for the base: a folder, or a Hugging Face id with its
    `revision`."""
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision},
        **{"r": lora.rank, "lora_alpha": alpha, "lora_dropout": 0.0},
        "target_modules": [peft_module(target) for target in lora.targets],
        **{"bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True},
        **{"modules_to_save": None, "use_dora": False, "use_rslora": False},
    }
