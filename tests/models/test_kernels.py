"""Attention kernels, interpreted on a CPU, against the reference; and that they compile for what they are made for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model, Segments, attention, kernels
from msm_jax.models.kernels import check_row_length, flash_attention, kernel_for, kernel_of

ROWS, TOKENS, HEADS, KEY_HEADS, SIZE = 2, 256, 4, 2, 32


@pytest.fixture(scope="module")
def packed():
    """Segments that begin and end inside of tiles of 128, padding, and a row of one segment."""
    ids = [[1] * 100 + [2] * 130 + [0] * 26, [1] * TOKENS]
    positions = [[*range(100), *range(130), *range(26)], [*range(TOKENS)]]
    return jnp.asarray(ids, jnp.int32), jnp.asarray(positions, jnp.int32)


@pytest.mark.parametrize("kernel", ["blocked", "splash", "triton"])
def test_kernels_equal_the_reference(packed, kernel):
    """Values and all three gradients, where there is no padding."""
    ids, positions = packed
    rng = np.random.default_rng(0)
    q, cotangent = (jnp.asarray(rng.standard_normal((ROWS, TOKENS, HEADS, SIZE)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.standard_normal((ROWS, TOKENS, KEY_HEADS, SIZE)), jnp.float32) for _ in range(2))
    cotangent *= (ids > 0)[..., None, None]

    def results(function):
        def scalar(q, k, v):
            out = function(q, k, v)
            return (out * cotangent).sum(), out * (ids > 0)[..., None, None]

        return jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    expected = results(lambda q, k, v: attention(q, k, v, Segments.of_rows(ids, positions)))
    found = results(lambda q, k, v: flash_attention(q, k, v, ids, kernel=kernel, block=128, interpret=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_the_decoder_takes_the_kernel_that_it_is_told(packed, monkeypatch):
    """And rows that it cannot cut, as an evaluation has them, go in blocks of queries."""
    called = []

    def noted(*args, **kwargs):
        called.append(kwargs["kernel"])
        return flash_attention(*args, **kwargs, interpret=True)

    monkeypatch.setattr("msm_jax.models.decoder.flash_attention", noted)
    config = DecoderConfig(
        vocab_size=16, num_layers=1, width=8, mlp_width=8, num_heads=2, num_kv_heads=1, head_size=32, dtype="float32"
    )
    model = Model(config, execution=Execution(attention="splash", attention_block=128))
    params = model.init(jax.random.key(0))
    ids, positions = packed
    tokens = jax.random.randint(jax.random.key(1), ids.shape, 0, 16)
    found = jax.jit(model.apply)(params, None, tokens, ids, positions)
    assert called == ["splash"]
    expected = jax.jit(Model(config).apply)(params, None, tokens, ids, positions)
    np.testing.assert_allclose(found[ids > 0], expected[ids > 0], atol=1e-5)
    jax.eval_shape(model.apply, params, None, *(x[:, :100] for x in (tokens, ids, positions)))
    assert called == ["splash", "blocked"]


@pytest.mark.parametrize(
    ("kernel", "remat", "widths"),
    [
        ("blocked", "full", 1),
        *[(kernel, "save_attention", 2) for kernel in ("reference", "blocked", "splash", "cudnn")],
        *[("cudnn", "full", 1), ("cudnn", "save_qkv", 5 + 1 / 64)],
        ("blocked", "save_qkv", 5 + 1 / 64),
        ("splash", "save_projections", 9 + 1 / 64),
    ],
)
def test_a_layer_keeps_what_its_policy_says_and_nothing_twice(kernel, remat, widths, monkeypatch):
    """For each token, in widths of the model; here K = M / 2 and F = 2 M, and one head's rank of adapters."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)  # on this machine there is none
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    M, T, L = 256, 256, 5
    decoder = DecoderConfig(
        vocab_size=64, num_layers=L, width=M, mlp_width=2 * M, num_heads=2, num_kv_heads=1, head_size=128
    )
    lora = LoraConfig(1, 1.0, ("q", "o", "gate", "down"))
    model = Model(decoder, lora, Execution(kernel, 128, remat, loss_chunk=128))
    rows, weights = (jax.ShapeDtypeStruct((1, T), dtype) for dtype in (jnp.int32, jnp.float32))

    def loss(lora, params, rows, weights):
        return model.loss(params, lora, rows, rows, rows, rows, weights)[0]

    jaxpr = jax.make_jaxpr(jax.grad(loss))(model.lora_shapes, model.shapes, rows, weights).jaxpr
    forward = next(e for e in jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == L)
    kept = [v.aval for v in forward.outvars if v.aval.shape[:1] == (L,) and v.aval.size >= L * T]
    found = sum(aval.size for aval in kept if T in aval.shape) / (L * M * T)
    statistics = 4 / M  # of the softmax, one or two numbers for each head
    assert widths <= found <= widths + statistics, [aval.str_short() for aval in kept]


def test_kernels_of_platforms():
    assert [kernel_of(name) for name in ("tpu", "gpu", "cuda", "cpu", "rocm")] == [
        "splash", "triton", "triton", "blocked", "blocked",
    ]  # fmt: skip
    assert Execution(attention="auto").on("tpu").attention == "splash"
    assert Execution(attention="reference").on("tpu").attention == "reference"
    assert [kernel_for("splash", 512), kernel_for("splash", 500), kernel_for("reference", 500)] == [
        "splash", "blocked", "reference",
    ]  # fmt: skip


def test_tiles_divide_the_row():
    sizes = {(8192, 512): 512, (640, 512): 128, (384, 512): 384, (256, 64): 128}
    assert {(tokens, block): kernels._divisor(tokens, block) for tokens, block in sizes} == sizes
    check_row_length("reference", 100)
    check_row_length("splash", 384)
    with pytest.raises(UserError, match="row_length=300 is not a multiple of 128, which the splash .* row_length=256"):
        check_row_length("splash", 300)


def test_the_triton_kernel_is_lowered_for_a_gpu(packed):
    ids, _ = packed
    q, k = (jax.ShapeDtypeStruct((ROWS, TOKENS, heads, 64), jnp.bfloat16) for heads in (HEADS, KEY_HEADS))

    def loss(q, k, v):
        return flash_attention(q, k, v, ids, kernel="triton").astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = gradient.trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") >= 2, "forward and backward"
