"""The three families against transformers and peft, on small random models; and the way there and back."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.families import config_of, decoder_of
from msm_jax.checkpoints.huggingface import adapter_table, base_table, merged, tensors_of
from msm_jax.checkpoints.tensor_files import write_tensors
from msm_jax.errors import UserError
from msm_jax.models import LORA_TARGETS, LoraConfig, Model
from msm_jax.parallel import make_mesh

SIZES = {
    "vocab_size": 132, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 512,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
VARIANTS = {
    "llama": ("Llama", {"num_key_value_heads": 6}),
    "llama grouped": ("Llama", {"num_key_value_heads": 2, "head_dim": 10}),
    "llama 3.1": ("Llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE}),
    "llama 3.2": ("Llama", {"num_key_value_heads": 3, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1}),
    "qwen2 tied": ("Qwen2", {"num_key_value_heads": 3, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 3, "head_dim": 16}),
    "qwen3 tied": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 4, "tie_word_embeddings": True}),
}


@functools.cache
def reference(variant):
    """A model of transformers with weights far from their start, so that nothing is hidden by zeros and ones."""
    family, features = VARIANTS[variant]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | features)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + ("norm" in name))
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    @functools.cache
    def saved(variant, dtype="float32"):
        folder = tmp_path_factory.mktemp(variant.replace(" ", "_"))
        model = reference(variant)
        if dtype != "float32":
            # Casting is in place.
            copy = type(model)(model.config)
            copy.load_state_dict(model.state_dict())
            model = copy.to(getattr(torch, dtype))
        model.save_pretrained(folder)
        return folder

    return saved


@pytest.fixture(scope="session")
def mesh():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def tokens(rows=2, length=40):
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (rows, length)).astype(np.int32)


_apply = jax.jit(Model.apply, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def logits_of(model, params, lora, tokens):
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    return np.asarray(_apply(model, params, lora, tokens, np.ones_like(tokens), positions))


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(saved, mesh, variant):
    stored = weights.open_model(saved(variant), dtype="float32")
    ours = logits_of(stored.model, weights.load(stored, mesh), None, tokens())
    theirs = their_logits(reference(variant), tokens())
    assert np.ptp(theirs) > 5
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def random_adapter(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32), model.lora_shapes)


def save_adapter(folder, model, adapter, base=""):
    from msm_jax.checkpoints.peft import peft_config

    write_tensors(folder, tensors_of(adapter, adapter_table(model.config, model.lora)), "adapter_model")
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(model.lora, base)))


@pytest.mark.parametrize("variant", ["llama 3.1", "qwen2", "qwen3 tied"])
@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q", "down")])
def test_our_adapter_gives_the_same_logits_in_peft(saved, mesh, tmp_path, variant, targets):
    stored = weights.open_model(saved(variant), dtype="float32")
    model = Model(stored.decoder, LoraConfig(4, 12.0, targets))
    adapter = random_adapter(model)
    save_adapter(tmp_path, model, adapter, str(saved(variant)))
    base = transformers.AutoModelForCausalLM.from_pretrained(saved(variant))
    theirs = their_logits(peft.PeftModel.from_pretrained(base, tmp_path).eval(), tokens())
    ours = logits_of(model, weights.load(stored, mesh), adapter, tokens())
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - their_logits(reference(variant), tokens())).max() > 1, "the adapter must do something"


@pytest.mark.parametrize("variant", ["llama grouped", "qwen2", "qwen3"])
def test_an_adapter_of_peft_gives_the_same_logits_here(saved, mesh, tmp_path, variant):
    """In the form of the paper's release: rank 64, alpha 128, seven targets."""
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=64, lora_alpha=128, target_modules=modules, task_type="CAUSAL_LM")
    base = transformers.AutoModelForCausalLM.from_pretrained(saved(variant))
    wrapped = peft.get_peft_model(base, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path)
    stored = weights.open_model(saved(variant), dtype="float32")
    adapter = weights.open_adapter(tmp_path, stored)
    assert adapter.lora == LoraConfig(64, 128.0, LORA_TARGETS)
    ours = logits_of(adapter.model, weights.load(stored, mesh), weights.load(adapter, mesh), tokens())
    np.testing.assert_allclose(ours, their_logits(wrapped, tokens()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["llama 3.1", "qwen2 tied", "qwen3"])
def test_gradients_of_a_lora_step_equal_those_of_peft(saved, mesh, tmp_path, variant):
    from msm_jax.train.step import targets_and_weights

    stored = weights.open_model(saved(variant), dtype="float32")
    model = Model(stored.decoder, LoraConfig(4, 8.0, LORA_TARGETS))
    params, adapter, ids = weights.load(stored, mesh), random_adapter(model), tokens()
    mask = np.random.default_rng(1).random(ids.shape) < 0.5

    def loss(adapter):
        positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
        targets, weight = targets_and_weights(ids, np.ones_like(ids), mask)
        return model.loss(params, adapter, ids, np.ones_like(ids), positions, targets, weight)[0] / weight.sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(adapter)
    save_adapter(tmp_path, model, adapter)
    base = transformers.AutoModelForCausalLM.from_pretrained(saved(variant))
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    labels = torch.tensor(np.where(mask, ids, -100).astype(np.int64))
    theirs = wrapped(torch.tensor(ids.astype(np.int64)), labels=labels).loss
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    named = {name.replace(".default", ""): p.grad.numpy() for name, p in wrapped.named_parameters() if "lora_" in name}
    table = adapter_table(model.config, model.lora)
    ours = {name: read() for name, _, _, read in tensors_of(gradients, table)}
    assert named.keys() == ours.keys()
    for name, gradient in named.items():
        assert np.linalg.norm(ours[name] - gradient) <= 1e-3 * np.linalg.norm(gradient), name


def bytes_of(folder, stem="model"):
    return {name: array.tobytes() for name, array in load_file(folder / f"{stem}.safetensors").items()}


@pytest.mark.parametrize("variant", ["llama 3.2", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_there_and_back_is_bit_exact(saved, mesh, tmp_path, variant, dtype):
    source = saved(variant, dtype)
    stored = weights.open_model(source)
    params = weights.load(stored, mesh, dtype=None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    write_tensors(tmp_path, tensors_of(params, base_table(stored.decoder)))
    assert bytes_of(tmp_path) == bytes_of(source)


@pytest.mark.parametrize("variant", ["llama 3.1", "qwen2", "qwen3 tied"])
def test_merged_equals_base_and_adapter(saved, mesh, tmp_path, variant):
    stored = weights.open_model(saved(variant), dtype="float32")
    model = Model(stored.decoder, LoraConfig(4, 8.0, ("q", "v", "down")))
    params, adapter = weights.load(stored, mesh), random_adapter(model)
    write_tensors(tmp_path, merged(params, adapter, model.lora, base_table(model.config)))
    (tmp_path / "config.json").write_text(json.dumps(config_of(model.config)))
    theirs = their_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokens())
    np.testing.assert_allclose(logits_of(model, params, adapter, tokens()), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_json_there_and_back(saved, variant):
    config = json.loads((saved(variant) / "config.json").read_text())
    decoder = decoder_of(config)
    assert decoder_of(config_of(decoder)) == decoder


@pytest.fixture
def copy_of(saved, tmp_path):
    """A folder with a change of its tensors."""

    def copy_of(variant, change=lambda tensors: None):
        folder = tmp_path / "copy"
        folder.mkdir()
        tensors = load_file(saved(variant) / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text((saved(variant) / "config.json").read_text())
        return folder

    return copy_of


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda t: t.update({"model.extra.weight": np.zeros(3)}), "tensor model.extra.weight has no place"),
        (
            lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": np.zeros((16, 47), np.float32)}),
            r"tensor model.layers.1.self_attn.k_proj.weight has shape \[16, 47\], and the model needs \[16, 48\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(48, np.int64)}), "model.norm.weight is int64; weights are"),
        (lambda t: t.update({"model.norm.weight": np.ones(48)}), "model.norm.weight is float64; weights are bfloat16"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((80, 48), np.float16)}),
            None,
        ),
    ],
)
def test_tensors_of_another_model_are_an_error(copy_of, mesh, change, message):
    stored = weights.open_model(copy_of("llama 3.1", change))
    if message is None:  # one layer in another dtype: fine where it is cast, an error where dtypes are kept
        weights.load(stored, mesh)
        with pytest.raises(UserError, match="up_proj.weight is float16, and that of layer 0 is float32"):
            weights.load(stored, mesh, dtype=None)
        return
    with pytest.raises(UserError, match=message) as raised:
        weights.load(stored, mesh)
    assert "\n" not in str(raised.value)


def test_a_tied_head_that_is_saved_all_the_same_is_passed_over(copy_of, mesh):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    stored = weights.open_model(copy_of("llama 3.2", change), dtype="float32")
    ours = logits_of(stored.model, weights.load(stored, mesh), None, tokens())
    np.testing.assert_allclose(ours, their_logits(reference("llama 3.2"), tokens()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors"])
def test_an_index_may_name_a_tied_head_that_no_file_holds(copy_of, mesh, file):
    """In a file that is there, or in one that held nothing else."""
    folder = copy_of("llama 3.2")
    stored = weights.open_model(folder)
    whole = weights.load(stored, mesh)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = load_file(folder / "model.safetensors")
    owners = {name: names[place % 2] for place, name in enumerate(sorted(tensors))}
    for part in names:
        save_file({name: tensors[name] for name, owner in owners.items() if owner == part}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": owners | {"lm_head.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, weights.load(stored, mesh), whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match="tensor lm_head.weight is missing"):
        weights.load(weights.open_model(folder), mesh)


def test_a_tied_head_of_its_own_is_an_error(copy_of, mesh):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][-1, -1] += 1

    stored = weights.open_model(copy_of("llama 3.2", change))
    with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight, and config.json says"):
        weights.load(stored, mesh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 4.7}, "r is 4.7; it must be a whole number above 0"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"r": 8}, r"lora_A.weight has shape \[4, 48\], and the model needs \[8, 48\]"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a number above 0"),
        ({"target_modules": ["q_proj"]}, "is in the tensors, not target_modules"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj is in target_modules"),
        ({"target_modules": ["c_attn"]}, "target_modules has no module of the base"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5; it must be a path or id"),
        ({"some_new_option": 3}, "some_new_option is 3"),
    ],
)
def test_adapters_that_are_not_what_they_say_are_errors(saved, mesh, tmp_path, change, message):
    stored = weights.open_model(saved("llama"))
    model = Model(stored.decoder, LoraConfig(4, 8.0, ("q", "v")))
    save_adapter(tmp_path, model, random_adapter(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as raised:
        weights.load(weights.open_adapter(tmp_path, stored), mesh)
    assert "\n" not in str(raised.value)


def test_an_adapter_for_another_model_is_an_error(saved, mesh, tmp_path):
    stored = weights.open_model(saved("llama"))
    model = Model(stored.decoder, LoraConfig(4, 8.0, ("q", "v")))
    save_adapter(tmp_path, model, random_adapter(model))
    with pytest.raises(UserError, match=r"v_proj.lora_B.weight has shape \[48, 4\], and the model needs \[8, 4\]"):
        weights.load(weights.open_adapter(tmp_path, weights.open_model(saved("qwen2"))), mesh)


@pytest.mark.parametrize("ways", [{"data": 2, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 2, "tensor": 2}])
def test_shards_hold_what_one_device_holds(saved, ways):
    """In a process with four devices, every parameter equals the one read whole."""
    script = f"""
import jax, numpy as np
from msm_jax.checkpoints import weights
from msm_jax.parallel import make_mesh
stored = weights.open_model({str(saved("qwen2"))!r}, dtype="float32")
one = weights.load(stored, make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1]))
count = {np.prod(list(ways.values()))}
many = weights.load(stored, make_mesh({ways}, jax.devices()[:count]))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_array_equal(a, b)
"""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


MEMORY = """
import pathlib, sys
from msm_jax.checkpoints import weights
from msm_jax.models import DecoderConfig, count_parameters
from msm_jax.parallel import make_mesh
from tests.memory import peak_of, write_model

folder = pathlib.Path(sys.argv[1])
sizes = dict(num_heads=4, num_kv_heads=4, head_size=128, tied_head=True)
write_model(folder / "small", DecoderConfig(vocab_size=64, num_layers=1, width=64, mlp_width=64, **sizes))
write_model(folder / "big", DecoderConfig(vocab_size=32768, num_layers=20, width=512, mlp_width=4096, **sizes))
mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2})
weights.load(weights.open_model(folder / "small"), mesh)  # so that the runtime has what it needs
stored = weights.open_model(folder / "big")
peak = peak_of(lambda: weights.load(stored, mesh, dtype=None))
print(peak, 4 * count_parameters(stored.model.shapes), 4 * 32768 * 512)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_host_memory_is_that_of_the_shards_and_two_tensors(tmp_path):
    """A stack of layers is 160 MiB here, so one that is built on the host first would be seen."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PATH": "/usr/bin:/bin"}
    command, root = [sys.executable, "-c", MEMORY, str(tmp_path)], pathlib.Path(__file__).parents[2]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peak, shards, largest = map(int, result.stdout.split())
    assert shards <= peak <= shards + 2 * largest
    shutil.rmtree(tmp_path / "big")
