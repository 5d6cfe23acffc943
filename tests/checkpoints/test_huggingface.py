"""The three families against transformers and peft, on small random models; and the way there and back."""

import functools
import json
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
from msm_jax.checkpoints.peft import peft_config
from msm_jax.checkpoints.tensor_files import write_tensors
from msm_jax.errors import UserError
from msm_jax.models import LORA_TARGETS, LoraConfig, Model
from msm_jax.parallel import make_mesh
from msm_jax.train.step import targets_and_weights

SIZES = {
    "vocab_size": 132, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 512,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
VARIANTS = {
    "llama": ("Llama", {"num_key_value_heads": 2, "head_dim": 10}),
    "llama 3.1": ("Llama", {"num_key_value_heads": 6, "rope_parameters": LLAMA3_ROPE}),
    "llama 3.2": ("Llama", {"num_key_value_heads": 3, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 3, "head_dim": 16, "tie_word_embeddings": True}),
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
    assert decoder_of(config_of(stored.decoder), dtype="float32") == stored.decoder


@pytest.mark.parametrize(
    ("variant", "targets"), [("llama 3.1", LORA_TARGETS), ("qwen2", ("q", "down")), ("qwen3", ("q", "v", "down"))]
)
def test_an_adapter_is_the_same_in_peft_and_merged(saved, mesh, tmp_path, variant, targets):
    """Its logits, the loss of a step and its gradients."""
    stored = weights.open_model(saved(variant), dtype="float32")
    model = Model(stored.decoder, LoraConfig(4, 12.0, targets))
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda x: jnp.float32(0.1 * rng.standard_normal(x.shape)), model.lora_shapes)
    params, ids, table = weights.load(stored, mesh), tokens(), adapter_table(model.config, model.lora)
    write_tensors(tmp_path, tensors_of(adapter, table), "adapter_model")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(model.lora, str(saved(variant)))))
    base = transformers.AutoModelForCausalLM.from_pretrained(saved(variant))
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    ours, theirs = logits_of(model, params, adapter, ids), their_logits(wrapped, ids)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - their_logits(reference(variant), ids)).max() > 1, "the adapter must do something"

    mask = rng.random(ids.shape) < 0.5

    def loss(adapter):
        positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
        targets, weight = targets_and_weights(ids, np.ones_like(ids), mask)
        return model.loss(params, adapter, ids, np.ones_like(ids), positions, targets, weight)[0] / weight.sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(adapter)
    labels = torch.tensor(np.where(mask, ids, -100).astype(np.int64))
    theirs = wrapped(torch.tensor(ids.astype(np.int64)), labels=labels).loss
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    named = {name.replace(".default", ""): p.grad.numpy() for name, p in wrapped.named_parameters() if "lora_" in name}
    found = {name: read() for name, _, _, read in tensors_of(gradients, table)}
    assert named.keys() == found.keys()
    for name, gradient in named.items():
        assert np.linalg.norm(found[name] - gradient) <= 1e-3 * np.linalg.norm(gradient), name

    write_tensors(tmp_path / "merged", merged(params, adapter, model.lora, base_table(model.config)))
    (tmp_path / "merged/config.json").write_text(json.dumps(config_of(model.config)))
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(ours, their_logits(whole, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("variant", "dtype"), [("llama 3.2", "bfloat16"), ("qwen2", "float32")])
def test_there_and_back_is_bit_exact(saved, mesh, tmp_path, variant, dtype):
    stored = weights.open_model(saved(variant, dtype))
    params = weights.load(stored, mesh, dtype=None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    write_tensors(tmp_path, tensors_of(params, base_table(stored.decoder)))
    before, after = (load_file(folder / "model.safetensors") for folder in (saved(variant, dtype), tmp_path))
    assert {name: x.tobytes() for name, x in after.items()} == {name: x.tobytes() for name, x in before.items()}


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
            lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": np.zeros((48, 47), np.float32)}),
            r"tensor model.layers.1.self_attn.k_proj.weight has shape \[48, 47\], and the model needs \[48, 48\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(48, np.int64)}), "model.norm.weight is int64; weights are"),
        (lambda t: t.update({"model.norm.weight": np.ones(48)}), "model.norm.weight is float64; weights are bfloat16"),
        (lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((80, 48), np.float16)}), None),
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


def test_a_tied_head_that_is_saved_all_the_same_must_be_the_embedding(copy_of, mesh):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    folder = copy_of("llama 3.2", change)
    weights.load(weights.open_model(folder), mesh)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="lm_head.weight differs from .*set tie_word_embeddings to false"):
        weights.load(weights.open_model(folder), mesh)


def test_shards_hold_what_one_device_holds(saved):
    """In a process with four devices, every parameter equals the one read whole."""
    script = f"""
import jax, numpy as np
from msm_jax.checkpoints import weights
from msm_jax.parallel import make_mesh
stored = weights.open_model({str(saved("qwen2"))!r}, dtype="float32")
one = weights.load(stored, make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1]))
for ways in (dict(data=2, fsdp=1, tensor=1), dict(data=1, fsdp=2, tensor=2)):
    many = weights.load(stored, make_mesh(ways, jax.devices()[: np.prod(list(ways.values()))]))
    jax.tree.map(np.testing.assert_array_equal, one, many)
"""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
