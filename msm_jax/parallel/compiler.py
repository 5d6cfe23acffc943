"""Options of XLA for the programs that take the time and the memory: training steps. They go with each program
(`jax.jit(compiler_options=...)`), so nothing else of the process, and no variable of the environment, has to change."""

# Collectives are moved to where products hide them; without it each is waited for where the program has it.
GPU_HIDE_COLLECTIVES = {"xla_gpu_enable_latency_hiding_scheduler": True}

# A product at a time, each on all cores, in the order that needs the least memory. XLA's own choice is to run several
# at once, which holds more and is slower on two cores.
CPU_ONE_BY_ONE = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

# Products go to Eigen, which shares each among the cores. XLA's own choice is YNNPACK, which is slower, most of all
# at those of attention; here it keeps sums and maxima.
CPU_PRODUCTS_BY_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

# Loops over single numbers use the whole width of AVX-512, of which XLA's own choice is half. Others have no more.
CPU_WIDE_VECTORS = {"xla_cpu_prefer_vector_width": 512}

# A TPU has no entry. What is often set for it, to gather split weights while products run
# (xla_tpu_enable_async_collective_fusion and its like), its compiler does by itself: with them and without, the 32B
# step on v5e:4x4 is the same program.
_OF_PLATFORMS = {
    "cpu": CPU_ONE_BY_ONE | CPU_PRODUCTS_BY_EIGEN | CPU_WIDE_VECTORS,
    "gpu": GPU_HIDE_COLLECTIVES,
    "cuda": GPU_HIDE_COLLECTIVES,
}


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """For `jax.jit` of a training step on devices of `platform`, as JAX names it."""
    return dict(_OF_PLATFORMS.get(platform, {}))
