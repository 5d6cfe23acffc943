"""The decoder: Llama-style blocks, stacked and scanned, with LoRA beside every linear layer.

Shapes: B rows, T tokens, L layers, M model width, F feed-forward width, H query heads, K key heads, D head size,
R LoRA rank, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from msm_jax.errors import UserError
from msm_jax.models.attention import RopeScaling, Segments, attention, rope, rope_angles, rope_frequencies
from msm_jax.models.execution import REMAT_POLICIES, Execution
from msm_jax.models.kernels import flash_attention, kernel_for
from msm_jax.models.linear import Linear, project
from msm_jax.parallel import cpu
from msm_jax.parallel.sharding import constrain

if TYPE_CHECKING:
    from msm_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder: what Hugging Face calls llama, qwen2 and qwen3 (checkpoints/families.py reads their
    config.json). Raises: UserError if the sizes do not fit each other."""

    vocab_size: int
    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None  # of Llama 3.1
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    qkv_bias: bool = False  # of Qwen2.5
    qk_norm: bool = False  # of Qwen3: RMS norm of each head's query and key, before the rotary embedding
    max_length: int | None = None  # tokens that the model was made for; None: any
    dtype: str = "bfloat16"  # of the matrix products; norms and logits are float32

    def __post_init__(self):
        if isinstance(self.rope_scaling, dict):  # as JSON has it
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}"
            )
        if self.head_size % 2:
            raise UserError(f"model.head_size={self.head_size} is odd; rotary embeddings need an even one")
        if self.dtype not in ("bfloat16", "float32"):
            raise UserError(f"model.dtype={self.dtype!r}: choose bfloat16 or float32")


# Mixes the values of a layer: (q [B, T, H, D], k [B, T, K, D], v [B, T, K, D], what the layer keeps) -> [B, T, H, D],
# and what it keeps from then on. Queries and keys are rotated.
PyTree = Any
Attend = Callable[[jax.Array, jax.Array, jax.Array, PyTree], tuple[jax.Array, PyTree]]


def attend_within(segments: Segments, execution: Execution) -> Attend:
    """Attention of packed rows to themselves, by the kernel that `execution` names. Nothing is kept."""

    def attend(q_BTHD, k_BTKD, v_BTKD, kept):
        kernel = kernel_for(execution.attention, q_BTHD.shape[1])
        if kernel == "reference":
            return checkpoint_name(attention(q_BTHD, k_BTKD, v_BTKD, segments), "attention"), kept
        # Which name what they keep themselves: twice named, it would be kept twice.
        sizes = {"block": execution.attention_block, "segments": execution.segments}
        return flash_attention(q_BTHD, k_BTKD, v_BTKD, segments.q_ids, kernel=kernel, **sizes), kept

    return attend


class RMSNorm(nnx.Module):
    def __init__(self, size: int, config: DecoderConfig):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32), axes=("norm",))
        self.epsilon = config.norm_epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU (arXiv 2002.05202), each added to the residual stream."""

    def __init__(self, model: "Model", rngs: nnx.Rngs):
        self.model, c = model, model.config
        linear = functools.partial(Linear, model=model, rngs=rngs)
        heads, kv_heads = c.num_heads * c.head_size, c.num_kv_heads * c.head_size
        self.attention_norm = RMSNorm(c.width, c)
        self.q = linear("q", (c.width, heads), ("embed", "heads"), bias=c.qkv_bias)
        self.k = linear("k", (c.width, kv_heads), ("embed", "kv_heads"), bias=c.qkv_bias)
        self.v = linear("v", (c.width, kv_heads), ("embed", "kv_heads"), bias=c.qkv_bias)
        self.q_norm = RMSNorm(c.head_size, c) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_size, c) if c.qk_norm else None
        self.o = linear("o", (heads, c.width), ("heads", "embed"))
        self.mlp_norm = RMSNorm(c.width, c)
        self.gate = linear("gate", (c.width, c.mlp_width), ("embed", "mlp"))
        self.up = linear("up", (c.width, c.mlp_width), ("embed", "mlp"))
        self.down = linear("down", (c.mlp_width, c.width), ("mlp", "embed"))

    def __call__(
        self, x_BTM: jax.Array, angles: tuple, attend: Attend, kept: PyTree, lora_mask: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Returns the new x_BTM and what `attend` keeps. `angles`: sines and cosines of the positions."""
        c = self.model.config
        B, T, _ = x_BTM.shape
        x_BTM = checkpoint_name(x_BTM, "input")
        q, k, v = project(self.attention_norm(x_BTM), self.q, self.k, self.v, lora_mask=lora_mask)
        q_BTHD = checkpoint_name(q.reshape(B, T, c.num_heads, c.head_size), "q")
        k_BTKD = checkpoint_name(k.reshape(B, T, c.num_kv_heads, c.head_size), "k")
        v_BTKD = checkpoint_name(v.reshape(B, T, c.num_kv_heads, c.head_size), "v")
        if c.qk_norm:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        q_BTHD, k_BTKD = rope(q_BTHD, angles), rope(k_BTKD, angles)
        with jax.named_scope("attention"):
            mixed_BTHD, kept = attend(q_BTHD, k_BTKD, v_BTKD, kept)
        x_BTM += checkpoint_name(self.o(mixed_BTHD.reshape(B, T, c.num_heads * c.head_size), lora_mask), "o")

        gate_BTF, up_BTF = project(self.mlp_norm(x_BTM), self.gate, self.up, lora_mask=lora_mask)
        gate_BTF, up_BTF = checkpoint_name(gate_BTF, "gate"), checkpoint_name(up_BTF, "up")
        x_BTM += self.down(jax.nn.silu(gate_BTF) * up_BTF, lora_mask)
        x_BTM = constrain(x_BTM, ("batch", None, None))
        return x_BTM, kept


class Decoder(nnx.Module):
    def __init__(self, model: "Model", rngs: nnx.Rngs):
        self.model, c = model, model.config
        embedding = 0.02 * jax.random.normal(rngs.params(), (c.vocab_size, c.width), jnp.float32)
        self.embedding = nnx.Param(embedding, axes=("vocab", "embed"))
        if model.execution.stacked:
            self.layers = nnx.vmap(lambda rngs: Block(model, rngs))(rngs.split(c.num_layers))
        else:
            self.layers = nnx.List([Block(model, rngs) for _ in range(c.num_layers)])
        self.norm = RMSNorm(c.width, c)
        shape, axes = (c.width, c.vocab_size), ("embed", "vocab")
        self.head = None if c.tied_head else Linear("head", shape, axes, model, rngs)

    def __call__(
        self, tokens_BT, positions_BT, attend: Attend, kept: PyTree = None, lora_mask: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Returns the normed output of the last layer, [B, T, M], and what `attend` keeps, layer by layer: a list, or
        one tree whose leaves have layers as their first axis, as the layers themselves have."""
        c, execution = self.model.config, self.model.execution
        # Each device looks up all tokens in its part of the width, and then gets the whole width of its rows: what is
        # sent is activations, where a gathered table would be 1.6 GB for Qwen2.5-32B.
        x_BTM = self.embedding[...].astype(c.dtype)[constrain(tokens_BT, ("copy_batch", None))]
        x_BTM = constrain(constrain(x_BTM, ("copy_batch", None, "embed")), ("batch", None, None))
        frequency = rope_frequencies(c.head_size, c.rope_theta, c.rope_scaling)
        angles = rope_angles(positions_BT, frequency)
        if not execution.stacked:
            kept = [None] * c.num_layers if kept is None else list(kept)
            for place, layer in enumerate(self.layers):
                x_BTM, kept[place] = layer(x_BTM, angles, attend, kept[place], lora_mask)
            return self.norm(x_BTM), kept
        unrolled = execution.scan_unroll > 1
        if unrolled and execution.cpu:
            angles = cpu.held(*angles)
        graph, layers = nnx.split(self.layers)

        def block(x_BTM, layer_and_kept):
            layer, kept = layer_and_kept
            return nnx.merge(graph, layer)(x_BTM, angles, attend, kept, lora_mask)

        policy = REMAT_POLICIES[execution.remat]
        if policy is not None:
            # In one piece XLA would find the second computation equal to the first, and keep what was to be dropped.
            block = jax.checkpoint(block, policy=policy, prevent_cse=unrolled)
        x_BTM, kept = jax.lax.scan(block, x_BTM, (layers, kept), unroll=execution.scan_unroll)
        return self.norm(x_BTM), kept

    def head_matrix(self) -> jax.Array:
        """[V, M], in the type of the matrix products."""
        if self.head is None:
            head = self.embedding[...]
        else:
            head = self.head.kernel[...] if self.model.execution.transposed else self.head.kernel[...].T
        return head.astype(self.model.config.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., M] -> float32[..., V]."""
        with jax.named_scope("head"):
            if self.model.execution.transposed:
                return cpu.transposed_product(x, self.head_matrix(), jnp.float32)
            return jnp.einsum("...m,vm->...v", x, self.head_matrix(), preferred_element_type=jnp.float32)
