"""Settings of all tests; pytest reads this before it imports any of them, and so before JAX looks for devices."""

import os

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The compiler is what most tests wait for, here and in the processes that they start, so it is told not to polish.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# A first example pays for a compilation, so the time of one example says nothing.
hypothesis.settings.register_profile("msm_jax", deadline=None)
hypothesis.settings.load_profile("msm_jax")
