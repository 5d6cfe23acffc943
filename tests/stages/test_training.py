"""How a training stage settles what is left to the machine and to its rows."""

import dataclasses
from types import SimpleNamespace

import pytest

from msm_jax.data.mixture import Source
from msm_jax.stages.training import Runtime, execution_for

RUNTIME = Runtime({}, {"attention": "auto"}, 1, 1.0, 1, 1)


@pytest.mark.parametrize(
    ("capability", "segments", "dtype", "kernel", "said"),
    [
        ("9.0", (3, 20), "bfloat16", "cudnn", ""),
        (
            "9.0",
            (3, 65),
            "bfloat16",
            "triton",
            "slower: a row has 65 segments, and cuDNN's attention needs much",
        ),
        ("9.0", (3, 20), "float32", "triton", "slower: cuDNN's attention is not made for float32"),
        ("8.0", (3, 20), "bfloat16", "triton", ""),
    ],
)
def test_attention_on_a_gpu_is_what_its_rows_allow(capability, segments, dtype, kernel, said, capsys):
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    sources = [Source(str(n), SimpleNamespace(most_segments=n), 1.0) for n in segments]
    execution = execution_for(RUNTIME, device, sources, dtype)
    assert execution.attention == kernel and said in capsys.readouterr().out
    assert kernel != "cudnn" or execution.segments == 32


def test_on_a_cpu_all_rows_share_one_program():
    sources = [Source("a", SimpleNamespace(most_segments=500), 1.0)]
    settled = execution_for(RUNTIME, SimpleNamespace(platform="cpu"), sources, "bfloat16")
    other = [Source("a", SimpleNamespace(most_segments=2), 1.0)]
    assert settled == execution_for(RUNTIME, SimpleNamespace(platform="cpu"), other, "bfloat16")
    assert settled.attention == "blocked" and dataclasses.asdict(settled)["cpu"]
