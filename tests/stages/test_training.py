"""How a training stage settles what is left to the machine and to its rows."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from msm_jax.data.mixture import Source
from msm_jax.stages.training import Runtime, execution_for

RUNTIME = Runtime({}, {"attention": "auto"}, 1, 1.0, 1, 1)


def sources_of(*counts: list[int]) -> list[Source]:
    return [
        Source(str(n), SimpleNamespace(segments_of_rows=lambda c=c: np.array(c)), 1.0) for n, c in enumerate(counts)
    ]


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "kernel", "said"),
    [
        ("9.0", "bfloat16", 64, "cudnn", ""),
        ("9.0", "float32", 64, "triton", "slower: cuDNN's attention is not made for float32"),
        ("9.0", "bfloat16", 12, "triton", "slower: cuDNN's attention is not made for heads of 12 numbers"),
        ("8.0", "bfloat16", 64, "triton", ""),
    ],
)
def test_attention_on_a_gpu_is_what_its_model_allows(capability, dtype, head_size, kernel, said, capsys):
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    decoder = SimpleNamespace(dtype=dtype, head_size=head_size)
    execution = execution_for(RUNTIME, device, sources_of([3, 4], [5]), decoder)
    assert execution.attention == kernel and said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "segments"), [([[3, 4], [20]], 32), ([[5] * 999, [60]], 8), ([[200] * 9], 64), ([[1, 1]], 2)]
)
def test_cudnn_is_made_for_what_nearly_all_rows_have(counts, segments):
    device, decoder = SimpleNamespace(platform="gpu", compute_capability="9.0"), SimpleNamespace(dtype="bfloat16")
    decoder.head_size = 128
    assert execution_for(RUNTIME, device, sources_of(*counts), decoder).segments == segments


def test_on_a_cpu_all_rows_share_one_program():
    cpu, decoder = SimpleNamespace(platform="cpu"), SimpleNamespace(dtype="bfloat16", head_size=64)
    settled = execution_for(RUNTIME, cpu, sources_of([500]), decoder)
    assert settled == execution_for(RUNTIME, cpu, sources_of([2]), decoder)
    assert settled.attention == "blocked" and dataclasses.asdict(settled)["cpu"]
