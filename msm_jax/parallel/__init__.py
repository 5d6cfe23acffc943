"""Devices -> mesh -> shardings."""

from msm_jax.parallel.chips import all_devices, measured_flops, peak_flops, platform
from msm_jax.parallel.compiler import compiler_options, sampling_options
from msm_jax.parallel.sharding import batch_sharding, check_heads, make_mesh, param_shardings, replicated, sampling_mesh

__all__ = [
    "all_devices",
    "batch_sharding",
    "check_heads",
    "compiler_options",
    "make_mesh",
    "sampling_mesh",
    "param_shardings",
    "measured_flops",
    "peak_flops",
    "platform",
    "replicated",
    "sampling_options",
]
