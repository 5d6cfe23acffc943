"""How a model is computed: what this changes is memory and speed, and no result beyond rounding."""

import dataclasses

import jax

from msm_jax.errors import UserError
from msm_jax.models.cudnn_attention import segments_for, what_cudnn_lacks
from msm_jax.models.kernels import KERNELS, kernel_of

_policies = jax.checkpoint_policies
_QKV = ("q", "k", "v", "attention", "o", "low")  # low: of the adapters, of their rank
_PROJECTIONS = (*_QKV, "gate", "up")


def _offload(*names: str):
    kept = {"names_which_can_be_saved": [], "names_which_can_be_offloaded": list(names)}
    return _policies.save_and_offload_only_these_names(**kept, offload_src="device", offload_dst="pinned_host")


# What a block keeps for the backward pass; the rest is computed again. Beside it every block's input is kept. Ordered
# by memory: per token and layer, of a model of width M, feed-forward width F and key width K,
# M, 2 M, 4 M + 2 K and 4 M + 2 K + 2 F numbers.
REMAT_POLICIES = {
    "none": None,  # keeps all that the backward pass reads
    "full": _policies.nothing_saveable,
    "save_attention": _policies.save_only_these_names("attention"),
    "save_qkv": _policies.save_only_these_names(*_QKV),
    "save_projections": _policies.save_only_these_names(*_PROJECTIONS),
    # In the memory of the host, from where they come back while other blocks are computed.
    "offload_inputs": _offload("input"),
    "offload_attention": _offload("input", "attention"),
    "offload_qkv": _offload("input", *_QKV),
    "offload_projections": _offload("input", *_PROJECTIONS),
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """Hashable, as a part of `Model`.

    Attributes:
      attention: kernel over whole rows: "reference", "blocked", "splash" (TPU), "cudnn" (NVIDIA GPU from Hopper on),
        "triton" (NVIDIA GPU), or "auto", which is settled by `on`. The sampler has its own (sampler/attention.py).
      attention_block: tokens of a tile of splash attention.
      remat: what the forward pass keeps, a name in `REMAT_POLICIES`.
      scan_unroll: layers of one step of the scan. On a CPU a full unroll is faster: nothing is copied into stacks.
      stacked: whether the layers' parameters are one array each, with layers as the first axis, and scanned. If not,
        each layer has arrays of its own (`Model.unstack`): for the sampler on CPUs, where a slice is a copy.
      transposed: whether matrices, and the head's, are [F, M] (parallel/cpu.py): for the sampler on CPUs.
      loss_chunk: tokens of each row whose logits are held at once.
      cpu: what parallel/cpu.py has for a few CPU cores; set by `on`.
      segments: of a row, padding's counted, up to which cuDNN computes it; set by `for_rows`.

    Raises: UserError for a name that is not known.
    """

    attention: str = "reference"
    attention_block: int = 512
    remat: str = "none"
    scan_unroll: int = 1
    stacked: bool = True
    transposed: bool = False
    loss_chunk: int = 512
    cpu: bool = False
    segments: int = 32

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"execution.remat={self.remat!r}: choose one of {', '.join(REMAT_POLICIES)}")
        if self.attention not in ("auto", *KERNELS):
            raise UserError(f"execution.attention={self.attention!r}: choose one of auto, {', '.join(KERNELS)}")

    def on(self, platform: str, capability: str | None = None) -> "Execution":
        """Settled for the devices of `platform`, as JAX names it, of an NVIDIA GPU's compute capability."""
        attention = kernel_of(platform, capability) if self.attention == "auto" else self.attention
        return dataclasses.replace(self, attention=attention, cpu=platform == "cpu")

    def for_rows(self, segments: int, dtype: str, head_size: int) -> tuple["Execution", str | None]:
        """Settled for rows of which most have so many segments, padding's counted, and for the dtype of the products;
        and why, if cuDNN cannot. Other kernels need not know: with them, all rows share one compiled program."""
        if self.attention != "cudnn":
            return self, None
        lacks = what_cudnn_lacks(dtype, head_size)
        changes = {"attention": "triton"} if lacks else {"segments": segments_for(segments)}
        return dataclasses.replace(self, **changes), lacks
