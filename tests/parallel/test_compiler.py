"""The options of XLA that training steps are compiled with: each does here what it is there for."""

import jax
import jax.numpy as jnp

from msm_jax.parallel import compiler_options


def compiled(options):
    def loss(x, kernels):
        return sum((jnp.tanh(x @ kernel) @ kernel.T).sum() for kernel in kernels)

    shapes = jax.ShapeDtypeStruct((512, 256), jnp.float32), jax.ShapeDtypeStruct((8, 256, 256), jnp.float32)
    return jax.jit(jax.grad(loss), compiler_options=options).lower(*shapes).compile()


def test_a_cpu_takes_less_memory_and_multiplies_on_all_cores():
    ours, default = compiled(compiler_options("cpu")), compiled({})
    memory = [program.memory_analysis().temp_size_in_bytes for program in (ours, default)]
    assert memory[0] < 0.7 * memory[1]
    assert "ynn_fusion" in default.as_text() and "ynn_fusion" not in ours.as_text()
