"""Attention by cuDNN, without a GPU: where it is told that segments lie, what it computes if it does as its
documentation says, and that the calls are lowered for CUDA. On a GPU: `python -m benchmarks.attention`."""

import dataclasses
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model, Segments, attention
from msm_jax.models.cudnn_attention import segments_for, segments_of
from msm_jax.models.kernels import check_platform, flash_attention, kernel_of

TOKENS, SIZE = 64, 16


def rows_of(*lengths: list[int]) -> np.ndarray:
    """Segments 1, 2, ... of these lengths, int32[B, T], and padding behind them."""
    ids = np.zeros((len(lengths), TOKENS), np.int32)
    for row, row_lengths in zip(ids, lengths, strict=True):
        filled = np.repeat(np.arange(1, len(row_lengths) + 1), row_lengths)
        row[: len(filled)] = filled
    return ids


def visible(ids: np.ndarray) -> np.ndarray:
    """Who sees whom in the reference, bool[B, T, T]."""
    same = (ids[:, :, None] == ids[:, None, :]) & (ids[:, None, :] > 0)
    return same & np.tri(TOKENS, dtype=bool)


@st.composite
def packed_lengths(draw: st.DrawFn) -> list[int]:
    lengths, left = [], TOKENS
    while left and len(lengths) < 7 and draw(st.booleans()):
        lengths.append(draw(st.integers(1, left)))
        left -= lengths[-1]
    return lengths


@hypothesis.given(st.lists(packed_lengths(), min_size=1, max_size=3))
def test_segments_lie_where_the_reference_sees_them(rows):
    ids = rows_of(*rows)
    lengths, offsets = map(np.asarray, segments_of(jnp.asarray(ids), 8))
    assert lengths.shape == (len(rows), 8) and offsets.shape == (len(rows), 9)
    assert lengths.dtype == offsets.dtype == np.int32
    seen, written = np.zeros((len(rows), TOKENS, TOKENS), bool), np.zeros((len(rows), TOKENS), int)
    for row, segment in np.argwhere(lengths > 0):
        places = slice(begin := offsets[row, segment], begin + lengths[row, segment])
        seen[row, places, places] = np.tri(lengths[row, segment])
        written[row, places] += 1
    assert (written == 1).all(), "what cuDNN does not write is memory as it was"
    real = ids > 0
    np.testing.assert_array_equal(seen[real], visible(ids)[real])
    behind = np.arange(8) >= np.array([len(np.unique(row)) for row in ids])[:, None]
    assert (lengths[behind] == -1).all() and (offsets[:, :8][behind] == -1).all() and (offsets[:, 8] == -1).all()


def as_documented(query, key, value, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
    """cuDNN's part in plain JAX: a segment is `length` tokens of all rows' from element `offset` on, and what is in
    none is memory as it was. Lengths and offsets go through JAX's own preparation."""
    assert mask_type.name == "PADDING_CAUSAL" and scale == pytest.approx(query.shape[-1] ** -0.5)
    prepared = cudnn._fix_seqlen_offsets(q_seqlen, kv_seqlen, q_offsets, kv_offsets, query, key)
    q_lengths, kv_lengths, q_begins, kv_begins = (np.asarray(x).reshape(-1) for x in prepared)
    parts = []
    for x, lengths, begins in ((query, q_lengths, q_begins), (key, kv_lengths, kv_begins)):
        ids, positions = np.zeros((2, 1, x.shape[0] * x.shape[1]), np.int32)
        for segment in np.flatnonzero(lengths):
            token, rest = divmod(begins[segment], x.shape[2] * x.shape[3])
            assert not rest
            places = slice(token, token + lengths[segment])
            ids[0, places], positions[0, places] = segment + 1, np.arange(TOKENS)[: ids[0, places].size]
        parts += [ids, positions]
    one_row = (x.reshape(1, -1, *x.shape[2:]) for x in (query, key, value))
    out = attention(*one_row, Segments(*parts))
    return jnp.where((parts[0] > 0)[..., None, None], out, jnp.nan).reshape(query.shape)


@pytest.mark.parametrize(("key_heads", "segments", "passes"), [(1, 8, 2), (2, 8, 2), (4, 8, 2), (2, 4, 0)])
def test_what_cudnn_is_told_is_the_attention_of_the_reference(key_heads, segments, passes, monkeypatch):
    """Values and gradients; of grouped keys too, which JAX before 0.11.1 looked for at wrong places. Of five segments
    in a row, cuDNN is not asked where it is made for four."""
    called = []

    def noted(*args, **kwargs):
        called.append(kwargs["q_seqlen"].shape)
        return as_documented(*args, **kwargs)

    monkeypatch.setattr(cudnn, "dot_product_attention", noted)
    ids = jnp.asarray(rows_of([20, 1, 30], [64], [5, 6, 7, 8]))
    rng = np.random.default_rng(0)
    draw = lambda heads: jnp.asarray(rng.standard_normal((3, TOKENS, heads, SIZE)), jnp.float32)  # noqa: E731
    q, k, v, cotangent = draw(4), draw(key_heads), draw(key_heads), draw(4)
    positions = jnp.broadcast_to(jnp.arange(TOKENS), ids.shape)

    def results(function):
        def scalar(q, k, v):
            out = jnp.where((ids > 0)[..., None, None], function(q, k, v), 0)
            return (out * cotangent).sum(), out

        return jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    with jax.disable_jit():  # what stands in for cuDNN takes numbers
        found = results(lambda q, k, v: flash_attention(q, k, v, ids, kernel="cudnn", segments=segments))
    assert called == [(3, segments)] * passes
    expected = results(lambda q, k, v: attention(q, k, v, Segments.of_rows(ids, positions)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.fixture
def as_on_hopper(monkeypatch):
    """What JAX asks of the machine before it lowers a call of cuDNN."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)


def lowered(function, *arguments) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def calls_of(text: str) -> list[str]:
    return re.findall(r"@__cudnn\$(\w+)", text)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_calls_are_lowered_for_a_gpu(rows, as_on_hopper):
    q, k = (jax.ShapeDtypeStruct((rows, TOKENS, heads, 64), jnp.bfloat16) for heads in (4, 2))
    ids = jax.ShapeDtypeStruct((rows, TOKENS), jnp.int32)

    def loss(q, k, v, ids):
        return flash_attention(q, k, v, ids, kernel="cudnn", segments=4).astype(jnp.float32).sum()

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
    _, shapes = jax.eval_shape(gradient, q, k, k, ids)
    assert [(x.shape, x.dtype) for x in shapes] == [(x.shape, x.dtype) for x in (q, k, k)]
    text = lowered(gradient, q, k, k, ids)
    assert calls_of(text) == ["fmhaSoftmax", "fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert text.count("PADDING_CAUSAL") == 3 and len(re.findall(r"max_seg_per_batch\S*: 4\b", text)) == 3


def test_each_device_of_a_mesh_calls_it_for_its_rows_and_heads(as_on_hopper):
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"))):
        q, k = (jax.ShapeDtypeStruct((4, TOKENS, heads, 64), jnp.bfloat16) for heads in (8, 4))
        ids = jax.ShapeDtypeStruct((4, TOKENS), jnp.int32)
        loss = lambda q, k, v, ids: flash_attention(q, k, v, ids, kernel="cudnn").astype(jnp.float32).sum()  # noqa: E731
        text = lowered(jax.value_and_grad(loss, argnums=(0, 1, 2)), q, k, k, ids)
    assert calls_of(text) == ["fmhaSoftmax", "fmhaSoftmax", "fmhaSoftmaxBackward"]
    forward = next(line for line in text.splitlines() if "@__cudnn$fmhaSoftmax(" in line)
    assert f"tensor<2x{TOKENS}x4x64xbf16>" in forward, forward[-500:]


@pytest.mark.parametrize("remat", ["none", "save_attention", "save_qkv"])
def test_a_training_step_is_lowered_for_a_gpu(remat, as_on_hopper):
    decoder = DecoderConfig(
        vocab_size=64, num_layers=2, width=128, mlp_width=128, num_heads=2, num_kv_heads=1, head_size=64
    )
    model = Model(decoder, LoraConfig(2, 4.0, ("q", "v")), Execution("cudnn", remat=remat, loss_chunk=TOKENS))
    rows, weights = (jax.ShapeDtypeStruct((2, TOKENS), dtype) for dtype in (jnp.int32, jnp.float32))

    def loss(lora, params, rows, weights):
        return model.loss(params, lora, rows, rows, rows, rows, weights)[0]

    calls = calls_of(lowered(jax.grad(loss), model.lora_shapes, model.shapes, rows, weights))
    assert calls == ["fmhaSoftmax", "fmhaSoftmax", "fmhaSoftmaxBackward"]


def test_the_kernel_for_a_gpu_is_chosen_by_what_it_can():
    chosen = {capability: kernel_of("gpu", capability) for capability in ("9.0", "10.0", "8.9", "gfx90a", None)}
    assert chosen == {"9.0": "cudnn", "10.0": "cudnn", "8.9": "triton", "gfx90a": "triton", None: "triton"}
    auto = Execution("auto").on("gpu", "9.0")
    assert auto.for_rows(5, "bfloat16", 64) == (dataclasses.replace(auto, segments=8), None)
    execution, lacks = auto.for_rows(5, "float32", 64)
    assert execution.attention == "triton" and lacks == "cuDNN's attention is not made for float32"
    blocked = Execution("auto").on("cpu")
    assert blocked.for_rows(500, "float32", 64) == (blocked, None)
    assert [segments_for(n) for n in (1, 2, 3, 4, 5, 64, 500)] == [2, 2, 4, 4, 8, 64, 64]


def test_cudnn_on_other_devices_is_an_error():
    check_platform("cudnn", "gpu", "9.0")
    check_platform("triton", "gpu", "9.0")
    with pytest.raises(UserError, match="cudnn needs GPUs of compute capability 9.0 .*, and these are of 8.0"):
        check_platform("cudnn", "gpu", "8.0")
    with pytest.raises(UserError, match="attention=cudnn is for NVIDIA GPUs, and the mesh is of devices of cpu"):
        check_platform("cudnn", "cpu")
