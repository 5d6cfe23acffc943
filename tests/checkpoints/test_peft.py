"""Adapters of `peft`: what its configuration says of modules, and what it saves, against `peft` itself."""

import json

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.numpy import load_file, save_file

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.peft import is_target
from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.parallel import make_mesh
from tests.tiny_checkpoints import SIZES

LAYERS = SIZES["num_hidden_layers"]
KINDS = [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
MODULES = [f"model.layers.{layer}.{kind}" for layer in range(12) for kind in KINDS]
MODULES += ["model.embed_tokens", "lm_head"]
NAMES = st.sampled_from(
    [*MODULES[:9], *KINDS, "q_proj", "down_proj", "proj", "1.mlp.up_proj", "lm_head", "embed_tokens", "layers"]
)
PATTERNS = st.sampled_from(
    [r".*", r".*\.(q|up)_proj", r"model\.layers\.[02]\..*q_proj", "q_proj", r".*mlp.*", "lm_head"]
)
ANY_NAMES = st.lists(NAMES, max_size=4) | PATTERNS


@hypothesis.given(
    targets=ANY_NAMES,
    excluded=st.none() | ANY_NAMES,
    layers=st.none() | st.integers(0, 11) | st.lists(st.integers(0, 11), max_size=3),
    pattern=st.sampled_from([None, "layers", "h", ["h", "layers"], ["h"], []]),
)
@hypothesis.settings(max_examples=30)
def test_modules_are_those_that_peft_adapts(targets, excluded, layers, pattern):
    config = {"target_modules": targets, "exclude_modules": excluded}
    if isinstance(targets, list):  # else peft refuses both
        config |= {"layers_to_transform": layers, "layers_pattern": None if layers is None else pattern}
    theirs = peft.LoraConfig(**config)
    for module in MODULES:
        wanted = check_target_module_exists(theirs, module)
        assert is_target(config, module) == (bool(wanted) and "Excluded" not in type(wanted).__name__), module


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SIZES | {"head_dim": 8})
    transformers.Qwen3ForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """Saves a random adapter as `peft` does, once for each configuration: its folder, and what it is wrapped around."""
    made = {}

    def saved(saving=None, **arguments):
        if (key := repr((saving, arguments))) not in made:
            torch.manual_seed(1)
            model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
            wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **defaults | arguments)).eval()
            folder = tmp_path_factory.mktemp("adapter")
            wrapped.save_pretrained(folder, **saving or {})
            made[key] = folder, wrapped
        return made[key]

    return saved


@pytest.fixture
def save(saved, tmp_path):
    def save(edit=lambda config, tensors: None, **arguments):
        folder, wrapped = saved(**arguments)
        config = json.loads((folder / "adapter_config.json").read_text()) | {"init_lora_weights": True}
        tensors = load_file(folder / "adapter_model.safetensors")
        edit(config, tensors)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return tmp_path, wrapped

    return save


def one_device():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def all_layers(*kinds):
    return [f"model.layers.{layer}.{kind}" for layer in range(LAYERS) for kind in kinds]


def config(**fields):
    return {"edit": lambda config, tensors: config.update(fields)}


def tensors(change, **fields):
    return {"edit": lambda config, tensors: (change(tensors), config.update(fields))}


def renamed(old, new):
    return tensors(lambda tensors: [tensors.update({name.replace(old, new): tensors.pop(name)}) for name in [*tensors]])


QV = ("q", "v")
ALL = ("q", "k", "v", "o", "gate", "up", "down")
ONE_FOR_ALL = {"rank_pattern": {"q_proj": 4, "self_attn.v_proj": 4}, "alpha_pattern": {".*": 8}}
PLAIN = {
    "full names": ({"target_modules": all_layers("self_attn.q_proj", "self_attn.v_proj")}, QV),
    "parts of names": ({"target_modules": ["self_attn.q_proj", "self_attn.v_proj"]}, QV),
    "a pattern": ({"target_modules": r".*self_attn\.(q|v)_proj"}, QV),
    "more names than peft keeps": ({"target_modules": all_layers(*KINDS)}, ALL),
    "all-linear, which peft spells out": ({"target_modules": "all-linear"}, ALL),
    "all-linear": ({"target_modules": "all-linear", **config(target_modules="all-linear")}, ALL),
    "no targets told": (config(target_modules=None), QV),
    "the head excluded": ({"exclude_modules": ["lm_head"]}, QV),
    "excluded by a pattern": ({"target_modules": r".*_proj", "exclude_modules": r".*\.(mlp\..*|[ko]_proj)"}, QV),
    "layers named, which are all": ({"layers_to_transform": [*range(LAYERS)], "layers_pattern": "layers"}, QV),
    "one rank by patterns": ({"r": 16, "lora_alpha": 5, **ONE_FOR_ALL}, QV),
    "names of other models' modules too": ({"target_modules": ["q_proj", "query_key_value", "v_proj", "c_attn"]}, QV),
    "a pattern of no module": ({"rank_pattern": {"up_proj": 2}}, QV),
    **{start: (config(init_lora_weights=start), QV) for start in ("gaussian", "orthogonal", "mica")},
    "eva": (config(init_lora_weights="eva", eva_config={"rho": 2.0}), QV),
    "settings of another start": (config(corda_config={"cache_file": None}), QV),
    "ties of layers that it leaves alone": ({"ensure_weight_tying": True}, QV),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_lora_in_any_spelling_is_what_peft_adds(save, base, case):
    arguments, targets = PLAIN[case]
    folder, wrapped = save(**arguments)
    adapter = weights.open_adapter(folder, weights.open_model(base))
    assert adapter.lora == LoraConfig(4, 8.0, targets)
    ours = weights.load(adapter, one_device())["layers"]
    added = {name: layer for name, layer in wrapped.named_modules() if isinstance(layer, LoraLayer)}
    assert len(added) == LAYERS * len(targets)
    for name, layer in added.items():
        number, target = int(name.split(".")[4]), name.split(".")[-1].removesuffix("_proj")
        a, b = (np.asarray(ours[target][f"lora_{x}"][number]) for x in "ab")
        np.testing.assert_allclose(8 / 4 * a @ b, layer.get_delta_weight("default").detach().T, atol=1e-5)


Q0, V0 = (f"model.layers.0.self_attn.{x}_proj" for x in "qv")
A0 = f"base_model.model.{Q0}.lora_A"
SOME = "an adapter of some layers only"
OF_BASE = "which changes the base as well"
REFUSED = {
    "a pattern of some layers": ({"target_modules": r".*layers\.0\..*\.q_proj"}, f"tensor {A0}.*layers.1.*{SOME}"),
    "layers_to_transform": ({"layers_to_transform": [0]}, f"tensor {A0}.weight .*{SOME}"),
    "names of one layer": ({"target_modules": ["model.layers.1.mlp.up_proj"]}, f"tensor .*1.mlp.up_proj.*{SOME}"),
    "a layer excluded": ({"exclude_modules": ["1.self_attn.v_proj"]}, f"tensor .*layers.0.*v_proj.*{SOME}"),
    "two ranks": ({"rank_pattern": {"v_proj": 2}}, f"rank_pattern is .*, so r is 4 for {Q0} and 2 for {V0}; one for"),
    "two alphas": (
        {"alpha_pattern": {r".*1\..*q_proj": 6}},
        "lora_alpha is 8 for .* and 6 for model.layers.1.self_att",
    ),
    "rank-stabilised": ({"use_rslora": True}, "use_rslora is True; plain LoRA"),
    "embeddings saved": (
        {"saving": {"save_embedding_layers": True}},
        "tensor base_model.model.lm_head.weight is the embedding or the head, saved beside the adapter",
    ),
    "the head trained": ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]; plain LoRA"),
    "the head adapted": ({"target_modules": ["q_proj", "lm_head"]}, "tensor .*lm_head.lora_A.weight has no place here"),
    "the embedding adapted": ({"target_modules": ["embed_tokens"]}, "embed_tokens.lora_embedding_A is no matrix of"),
    "of a compiled model": (
        renamed("base_model.model.", "base_model.model._orig_mod."),
        f"tensor base_model.model._orig_mod.{Q0}.lora_A.weight was saved from a compiled model",
    ),
    "a name in its keys": (
        renamed("A.weight", "A.default.weight"),
        f"tensor {A0}.default.weight has the adapter's own",
    ),
    "of no wrapper": (
        renamed("base_model.model.", ""),
        f"tensor {Q0}.lora_A.weight does not begin with base_model.mod",
    ),
    "wrapped twice": (renamed("base_", "base_model.model.base_"), f"tensor base_model.model.{A0}.weight has no place"),
    "a deeper model": (renamed("layers.1.", "layers.2."), "tensor .*layers.2.*lora_A.weight has no place .*another mo"),
    "one matrix gone": (tensors(lambda t: t.pop(f"{A0}.weight")), f"tensor {A0}.weight is missing"),
    "no tensors": (tensors(dict.clear), "the file of tensors is empty; .* would change nothing"),
    "all excluded": (config(exclude_modules=["q_proj", "v_proj"]), "target_modules has no module of the base"),
    "a target more": (config(target_modules=".*(q|v|o)_proj"), "o_proj is in target_modules, and the file of tensors"),
    "no pattern": (config(target_modules="(q_proj"), r"a pattern of modules cannot be read \(missing \)"),
    "no names": (config(target_modules=5), "target_modules is 5, which peft never writes"),
    "pissa": (config(init_lora_weights="pissa_niter_4"), f"init_lora_weights is 'pissa_niter_4', {OF_BASE}"),
    **{
        start: (config(init_lora_weights=start), f"init_lora_weights is '{start}', {OF_BASE}")
        for start in ("OLoRA", "corda", "loftq", "lora_ga")
    },
    "a later start": (config(init_lora_weights="new"), "init_lora_weights is 'new', which is not known here"),
    "a rank of parts": (config(r=4.7), "r is 4.7; it must be a whole number above 0"),
    "another rank": (config(r=8), r"lora_A.weight has shape \[4, 32\], and the model needs \[8, 32\]"),
    "no alpha": (config(lora_alpha=0), "lora_alpha is 0"),
    "true for alpha": (config(lora_alpha=True), "lora_alpha is True"),
    "no number for alpha": (config(lora_alpha=float("nan")), "lora_alpha is nan; it must be a number above 0"),
    "a target less": (config(target_modules=["q_proj"]), "v_proj is in the tensors, not target_modules"),
    "dora": (config(use_dora=True), "use_dora is True"),
    "biases": (config(bias="all"), "bias is 'all'"),
    "another method": (config(peft_type="IA3"), "peft_type is 'IA3'"),
    "no base": (config(base_model_name_or_path=5), "base_model_name_or_path is 5; it must be a path or id"),
    "a new option": (config(some_new_option=3), "some_new_option is 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_told_by_its_name(save, base, case):
    arguments, message = REFUSED[case]
    folder, _ = save(**arguments)
    with pytest.raises(UserError, match=message) as raised:
        weights.load(weights.open_adapter(folder, weights.open_model(base)), one_device())
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(folder))


def test_an_adapter_of_ours_that_adapts_nothing_is_refused(tmp_path):
    model = Model(DecoderConfig(384, 2, 16, 24, 4, 2, 4), LoraConfig(4, 8.0, ()))
    weights.write_description(tmp_path, model, base="base")
    with pytest.raises(UserError, match="model.json: lora.targets is empty, so it would be the base alone"):
        weights.open_model(tmp_path)
