"""Options of XLA for the programs that take the time and the memory: training steps. They go with each program
(`jax.jit(compiler_options=...)`), so nothing else of the process, and no variable of the environment, has to change."""

from msm_jax.parallel import cpu

# Collectives are moved to where products hide them; without it each is waited for where the program has it.
_GPU = {"xla_gpu_enable_latency_hiding_scheduler": True}

# A TPU has no entry. What is often set for it, to gather split weights while products run
# (xla_tpu_enable_async_collective_fusion and its like), its compiler does by itself: with them and without, the 32B
# step on v5e:4x4 is the same program.
_OF_PLATFORMS = {"gpu": _GPU, "cuda": _GPU}


def compiler_options(platform: str, dtype: str, tied_head: bool = True) -> dict[str, bool | int | str]:
    """For `jax.jit` of a training step on devices of `platform`, as JAX names it; `dtype`: of its products."""
    return dict(cpu.compiler_options(dtype, tied_head) if platform == "cpu" else _OF_PLATFORMS.get(platform, {}))


def sampling_options(platform: str) -> dict[str, bool | int | str]:
    """For `jax.jit` of a sampler's programs, whose products are narrow."""
    return dict(cpu.COMPILER_OPTIONS) if platform == "cpu" else {}
