"""Compiles a program for a slice that is not there, and says what it would take, by the TPU compiler's own
account. No array is made, and no TPU is asked."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from msm_jax.errors import UserError
from msm_jax.parallel import hlo
from msm_jax.parallel.chips import chip_of

PyTree = Any
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program on one slice. Memory is of a chip, in bytes."""

    chips: int
    state: float  # the arguments, as a part of what their arrays' shapes and dtypes make: the theory
    arguments: float = 0  # the same as the compiler lays them out
    temporaries: float = 0  # what lives during the step
    host: float = 0  # what the program keeps in the host's memory for this chip
    # The most at any time, by the compiler's own account; less than arguments and temporaries together, since what does
    # not live at once shares memory. None if it does not fit: the compiler refuses such a program.
    peak: float | None = None
    lacking: float = 0  # bytes by which it does not fit
    flops: float = 0  # this and the next two as `hlo.Work` has them; 0 and empty if it does not fit
    sent_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    memory_bytes: float = 0
    compile_seconds: float = 0  # of this machine

    @property
    def fits(self) -> bool:
        return self.peak is not None


def compile_for(
    lowered: jax.stages.Lowered, mesh: Mesh, arguments: PyTree, turns_of_others: int | None = None
) -> Compiled:
    """Compiles what was lowered for `arguments` (ShapeDtypeStructs with shardings) on `mesh`; `turns_of_others` as in
    `hlo.count`.

    Raises: what the compiler raises, but for lack of memory; UserError if a kernel's blocks are too large.
    """
    state = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arguments)
        if hasattr(leaf, "sharding")
    )
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lacking = _lacking(str(error))
        if "memory space vmem" in str(error):
            raise UserError(
                "a kernel does not fit the chip's vector memory; choose a smaller --config.execution.attention_block"
            ) from None
        if lacking is None:
            raise
        return Compiled(mesh.size, state, lacking=lacking, compile_seconds=time.monotonic() - start)
    memory, work = compiled.memory_analysis(), hlo.count(compiled.as_text(), turns_of_others)
    return Compiled(
        chips=mesh.size,
        state=state,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        host=memory.host_temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        flops=work.flops,
        sent_bytes=work.sent_bytes,
        memory_bytes=work.memory_bytes,
        compile_seconds=time.monotonic() - start,
    )


def roofline_seconds(compiled: Compiled, mesh: Mesh) -> tuple[float, float]:
    """Seconds of products at the chip's peak, and of collectives at the speed of all its links. The step takes no less
    than the longer of the two, and no more than both if nothing else does."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return compiled.flops / chip.peak, sum(compiled.sent_bytes.values()) / chip.link


def _lacking(message: str) -> float | None:
    """Bytes, of the compiler's message that memory does not suffice."""
    size = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"temporaries \({size}\) exceeds available HBM \({size}\)", message
    )
    if found is None:
        return None
    used, limit = (float(found[i]) * 1024 ** " KMGT".index(found[i + 1] or " ") for i in (1, 3))
    return used - limit
