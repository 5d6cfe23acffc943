"""What is there for a few CPU cores alone changes no number, and does what it is there for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msm_jax.models import LORA_TARGETS, DecoderConfig, Execution, LoraConfig, Model
from msm_jax.models.decoder import Block
from msm_jax.models.linear import LoraParam, project
from msm_jax.parallel import compiler_options, cpu

SIZES = {
    "vocab_size": 16, "num_layers": 2, "width": 8, "mlp_width": 12, "num_heads": 2, "num_kv_heads": 1, "head_size": 4,
    "qkv_bias": True,
}  # fmt: skip


def test_the_compiler_takes_less_memory_and_multiplies_on_all_cores():
    def loss(x, kernels):
        return sum((jnp.tanh(x @ kernel) @ kernel.T).sum() for kernel in kernels)

    shapes = jax.ShapeDtypeStruct((512, 256), jnp.float32), jax.ShapeDtypeStruct((8, 256, 256), jnp.float32)
    ours, default = (
        jax.jit(jax.grad(loss), compiler_options=options).lower(*shapes).compile()
        for options in (compiler_options("cpu", "float32"), {})
    )
    memory = [program.memory_analysis().temp_size_in_bytes for program in (ours, default)]
    assert memory[0] < 0.7 * memory[1]
    assert "ynn_fusion" in default.as_text() and "ynn_fusion" not in ours.as_text()


def test_angles_are_computed_once_for_all_layers_of_an_unrolled_decoder():
    model = Model(DecoderConfig(**SIZES), None, Execution("blocked", scan_unroll=2).on("cpu"))
    rows = [jax.ShapeDtypeStruct((2, 8), "int32")] * 4 + [jax.ShapeDtypeStruct((2, 8), "float32")]
    gradient = jax.jit(jax.grad(lambda params, *rows: model.loss(params, None, *rows)[0]))
    program = gradient.lower(model.shapes, *rows).compile().as_text()
    assert (program.count(" sine("), program.count(" cosine(")) == (1, 1)


@pytest.fixture
def merged(monkeypatch):
    """Shapes of the matrices that adapters were added to."""
    seen, products = [], cpu.merged_products

    def noted(x, kernels, firsts, seconds):
        seen.extend(kernel.shape for kernel in kernels)
        return products(x, kernels, firsts, seconds)

    monkeypatch.setattr(cpu, "merged_products", noted)
    return seen


def results(platform, tokens, targets=LORA_TARGETS, dtype="float32"):
    """Gradients by an adapter that does much and by x, and what each layer of a block gives."""
    model = Model(DecoderConfig(**SIZES, dtype=dtype), LoraConfig(3, 6.0, targets), Execution().on(platform))
    graph, *states = nnx.split(nnx.eval_shape(lambda: Block(model, nnx.Rngs(params=0, lora=0))), LoraParam, ...)
    rng = np.random.default_rng(0)
    adapter, base = jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.4, x.shape)), states)

    def total(adapter, x):
        block = nnx.merge(graph, adapter, base)
        outs = [*project(x, block.q, block.k, block.v), *project(x, block.gate, block.up)]
        outs.append(block.down(outs[-1]))
        return sum(jnp.sin(y.astype(jnp.float32)).sum() for y in outs), outs

    x = jnp.asarray(rng.standard_normal((2, tokens, 8)), dtype)
    return jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(adapter, x))


@pytest.mark.parametrize(
    ("targets", "shapes"), [(LORA_TARGETS, {(8, 8), (8, 4), (8, 12), (12, 8)}), (("q", "v", "up", "down"), {(12, 8)})]
)
def test_merged_products_give_the_same_numbers_and_gradients(merged, targets, shapes):
    """Also where a group of layers (q, k, v) has adapters in part: it stays as it is."""
    expected = results("tpu", 20, targets)
    assert not merged
    found = results("cpu", 20, targets)
    assert set(merged) == shapes and max(float(jnp.abs(leaf).max()) for leaf in expected) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize(("tokens", "dtype"), [(20, "bfloat16"), (1, "float32")])
def test_what_is_never_merged(merged, tokens, dtype):
    """bfloat16 would round most of an adapter away. For the few rows of a sampler's step, a product of two adapter
    matrices would be more work than two thin products."""
    found, expected = (results(platform, tokens, dtype=dtype) for platform in ("cpu", "tpu"))
    assert not merged
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_products_for_a_matrix_unit_round_once_and_compile_with_its_options(monkeypatch):
    """As on a CPU that has one, forward and backward, through a scan as a deep model has it."""
    x, w = (jnp.asarray(np.random.default_rng(seed).standard_normal((24, 24)), "bfloat16") for seed in (0, 1))

    def total(product, x, w):
        y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(product(y, w)), None), x.reshape(2, 12, 24), None, length=3)
        return y.astype(jnp.float32).sum()

    monkeypatch.setattr(cpu, "uses_matrix_unit", lambda dtype, tied_head: dtype == "bfloat16")
    options = compiler_options("cpu", "bfloat16")
    assert not options.keys() & cpu.EIGEN.keys() and options.keys() < compiler_options("cpu", "float32").keys()
    found, expected = (
        jax.jit(jax.grad(functools.partial(total, product), argnums=(0, 1)), compiler_options=options)(x, w)
        for product in (cpu.product, jnp.matmul)
    )
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype
        np.testing.assert_allclose(ours.astype(np.float32), plain.astype(np.float32), rtol=0.05, atol=0.05)


def test_a_model_multiplies_as_its_cpu_does_best(monkeypatch):
    monkeypatch.setattr(cpu, "uses_matrix_unit", lambda dtype, tied_head: dtype == "bfloat16")
    found = results("cpu", 20, dtype="bfloat16")
    monkeypatch.undo()
    for ours, plain in zip(found, results("cpu", 20, dtype="bfloat16"), strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), plain.astype(np.float32), rtol=0.05, atol=0.1)
