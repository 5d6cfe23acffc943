"""The work of a step against counts by hand and by XLA."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import chips, peak_flops
from msm_jax.train.step import flops_per_token, microbatch_loss


def test_flops_by_hand():
    """Two layers of 100 weights and a head of 50, or an adapter of 7 on them; heads of 2 x 3, rows of 10 tokens."""
    shape = {"matmul_parameters": 250, "num_layers": 2, "attention_width": 6, "row_length": 10}
    attention = 2 * 3 * (2 * 10 * 6 + 2 * 10 * 6) / 2  # layers, passes, scores and mixing, half of it masked
    assert train_flops_per_token(**shape, adapter_parameters=None) == 3 * 2 * 250 + attention
    assert train_flops_per_token(**shape, adapter_parameters=7) == 2 * 2 * 250 + 3 * 2 * 7 + attention


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_flops_as_xla_counts_them(lora):
    """Short rows, so that matrices are nearly all; unrolled, since XLA counts the body of a loop once."""
    decoder = DecoderConfig(
        vocab_size=256, num_layers=4, width=128, mlp_width=512, num_heads=4, num_kv_heads=2, head_size=32,
        dtype="float32",
    )  # fmt: skip
    model, rows, tokens = Model(decoder, lora, Execution(scan_unroll=4)), 4, 16
    batch = {name: jax.ShapeDtypeStruct((rows, tokens), jnp.int32) for name in ("tokens", "segments", "positions")}
    batch |= {"mask": jax.ShapeDtypeStruct((rows, tokens), bool), "source": jax.ShapeDtypeStruct((rows,), jnp.int32)}
    trained, frozen = (model.shapes, None) if lora is None else (model.lora_shapes, model.shapes)
    gradient = jax.grad(functools.partial(microbatch_loss, model), has_aux=True)
    counted = jax.jit(gradient).lower(trained, frozen, batch).cost_analysis()["flops"]
    assert counted == pytest.approx(rows * tokens * flops_per_token(model, tokens), rel=0.1)


def test_peak_of_an_unknown_device_is_measured():
    assert 1e8 < peak_flops("float32") < 1e15


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5", 459e12), ("TPU v5 lite", 197e12), ("TPU v4", 275e12), ("NVIDIA H200", 989e12)]
)
def test_peak_of_known_chips(monkeypatch, kind, peak):
    """The longest name that fits: a "TPU v5 lite" is no "TPU v5"."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind, platform="tpu")] * 4)
    assert peak_flops.__wrapped__() == 4 * peak
    # The sheet's number is of bfloat16: in float32 the chip is timed.
    monkeypatch.setattr(flops, "measured_flops", lambda dtype: {"float32": 1.0}[dtype])
    assert peak_flops.__wrapped__("float32") == 1.0
