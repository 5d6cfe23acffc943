"""Settings of all tests; pytest reads this before it imports any of them, and so before JAX looks for devices."""

import os

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A first example pays for a compilation, so the time of one example says nothing.
hypothesis.settings.register_profile("msm_jax", deadline=None)
hypothesis.settings.load_profile("msm_jax")
