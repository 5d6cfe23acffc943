"""The work of a step against a count by hand and by XLA, and the peak of devices."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import chips, peak_flops
from msm_jax.train.step import flops_per_token, microbatch_loss


def test_flops_by_hand():
    """Of one layer of width 2 with one head of 2 x 2, a head of 5 ids, and rows of 10 tokens."""
    decoder = DecoderConfig(
        vocab_size=5, num_layers=1, width=2, mlp_width=3, num_heads=1, num_kv_heads=1, head_size=2, tied_head=True
    )
    matrices = 4 * 2 * 2 + 3 * 2 * 3 + 2 * 2 + 5 * 2  # q, k, v, o; gate, up, down; scales of norms; the head
    attention = 3 * (2 * 10 * 2 + 2 * 10 * 2) / 2  # passes, scores and mixing, half of it masked
    assert flops_per_token(Model(decoder), 10) == 3 * 2 * matrices + attention
    adapted = Model(decoder, LoraConfig(1, 1.0, ("q", "down")), int8_base=True)
    assert flops_per_token(adapted, 10) == 2 * 2 * matrices + 3 * 2 * (2 + 2 + 3 + 2) + attention


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


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5", 459e12), ("TPU v5 lite", 197e12), ("TPU v4", 275e12), ("NVIDIA H200", 989e12)]
)
def test_peak_of_known_chips_and_of_others(monkeypatch, kind, peak):
    """The longest name that fits: a "TPU v5 lite" is no "TPU v5". What the sheet does not tell is timed."""
    assert 1e8 < peak_flops("float32") < 1e15
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind, platform="tpu")] * 4)
    assert peak_flops.__wrapped__() == 4 * peak
    # The sheet's number is of bfloat16: in float32 the chip is timed.
    monkeypatch.setattr(chips, "measured_flops", lambda dtype: {"float32": 1.0}[dtype])
    assert peak_flops.__wrapped__("float32") == 1.0
