"""What is known of accelerators, how fast they are, and TPU slices as the compiler sees them with no TPU at hand."""

import contextlib
import dataclasses
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from msm_jax.errors import UserError
from msm_jax.parallel.compiler import compiler_options


@dataclasses.dataclass(frozen=True)
class Chip:
    """From the vendors' data sheets (cloud.google.com/tpu/docs, and NVIDIA's). Plans need the last three."""

    kinds: tuple[str, ...]  # beginnings of `Device.device_kind`
    peak: float  # dense bf16, FLOP/s
    link: float | None = None  # bytes/s that a chip sends to its neighbours, over all links
    bandwidth: float | None = None  # bytes/s between a chip and its main memory
    memory: float | None = None  # bytes that a program may use, as the TPU compiler says when it has too little


CHIPS = {
    "v4": Chip(("TPU v4",), 275e12),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 200e9, 819e9, 15.75 * 2**30),
    "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 600e9, 2765e9, 95.74 * 2**30),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 448e9, 1638e9, 31.25 * 2**30),
    # SXM modules, and those whose memory or clocks differ from them.
    "A100": Chip(("NVIDIA A100",), 312e12, bandwidth=2039e9),
    "A100 40GB": Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, bandwidth=1555e9),
    "A100 PCIe": Chip(("NVIDIA A100 80GB PCIe",), 312e12, bandwidth=1935e9),
    "H100": Chip(("NVIDIA H100",), 989e12, bandwidth=3350e9),
    "H100 PCIe": Chip(("NVIDIA H100 PCIe",), 756e12, bandwidth=2000e9),
    "H200": Chip(("NVIDIA H200",), 989e12, bandwidth=4800e9),
}
_MOST_CPU_DEVICES = 1024
_MEND = "mend the variable, or unset it"
PLANNED = tuple(name for name, chip in CHIPS.items() if chip.link)


def chip_of(kind: str) -> Chip | None:
    """The chip of a `Device.device_kind`: of several, that with the longest name ("TPU v5 lite" is no "TPU v5")."""
    found = {name: chip for chip in CHIPS.values() for name in chip.kinds if kind.startswith(name)}
    return found[max(found, key=len)] if found else None


@functools.cache
def peak_flops(dtype: str = "bfloat16") -> float:
    """FLOP/s of all devices of all hosts together: in bf16 of a chip's data sheet, if it is known, else measured."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.peak * len(jax.devices()) if chip and dtype == "bfloat16" else measured_flops(dtype)


@functools.cache
def measured_flops(dtype: str) -> float:
    """FLOP/s of all devices of all hosts together, of a product of two large matrices, the best of a few."""
    platform = jax.devices()[0].platform
    size = 2048 if platform == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    # With the options of a training step, or XLA might choose a slower product than the step has.
    product = jax.jit(lambda x: x @ x, compiler_options=compiler_options(platform, dtype))
    seconds = []
    for _ in range(5):  # the first compiles
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # Virtual CPU devices share the same cores.
    devices = jax.process_count() if platform == "cpu" else len(jax.devices())
    return 2 * size**3 / min(seconds) * devices


def all_devices() -> list[jax.Device]:
    """`jax.devices()`. Raises: UserError if a variable of the environment asks for what there is not."""
    _check_flags()
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second where a platform is known, and its plugin is not here
        name = "JAX_PLATFORMS" if os.environ.get("JAX_PLATFORMS", "cpu") != "cpu" else "JAX_NUM_CPU_DEVICES"
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "it is not installed"
        raise UserError(f"{name}={os.environ.get(name, '')}: no such devices here ({reason}); {_MEND}") from None


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    return all_devices()[0].platform


@functools.cache
def _check_flags() -> None:
    """XLA ends the process at a flag that it does not know, so another one asks it first; and makes any number of
    devices of a few cores, for hours."""
    flags = os.environ.get("XLA_FLAGS", "")
    forced = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)[-1:]
    counts = {"JAX_NUM_CPU_DEVICES": os.environ.get("JAX_NUM_CPU_DEVICES", ""), "XLA_FLAGS": "".join(forced)}
    for name, count in counts.items():
        if count.isdigit() and int(count) > _MOST_CPU_DEVICES:
            raise UserError(f"{name}: {count} devices on one CPU; give at most {_MOST_CPU_DEVICES}")
    program = "from jaxlib import xla_client; xla_client.CompileOptions()"
    if flags and (asked := subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)).returncode:
        reason = next(iter(re.findall(r"\.cc:\d+\] (.*)", asked.stderr)), "XLA does not take them")
        raise UserError(f"XLA_FLAGS={flags}: {reason}; {_MEND}")


def slice_devices(name: str) -> list[jax.Device]:
    """The devices of a TPU slice, as "v5p:2x2x4", or of several, as "2*v5p:2x2x4", for meshes and the compiler; there
    is no machine behind them. Call `prepare_environment` before JAX is asked for any devices.

    Raises: UserError for a slice that there is not, or if the TPU compiler is not installed.
    """
    from jax.experimental import topologies

    _check_flags()
    parts = re.fullmatch(r"(?:([1-9]\d*)\*)?(\w+):(\d+(?:x\d+)+)", name)
    if not parts or parts[2] not in PLANNED:
        raise UserError(
            f"--topology={name}: give KIND:SHAPE, as v5e:4x4 or v5p:2x2x4, or 2*v5e:4x4 for two slices; kinds are "
            f"{', '.join(PLANNED)}"
        )
    if parts[2] == "v5p" and parts[3].count("x") != 2:
        raise UserError(f"--topology={name}: a slice of v5p has three sizes, as v5p:2x2x1")
    slices = {"num_slices": int(parts[1])} if parts[1] else {}
    try:
        with _silent_compiler():
            described = topologies.get_topology_desc(platform="tpu", topology_name=f"{parts[2]}:{parts[3]}", **slices)
            return list(described.devices)
    except Exception as error:  # whatever the plugin raises
        reason = str(error).strip().splitlines()[-1][:200]
        if "not installed" in reason:
            raise UserError(f"--topology={name}: needs the TPU compiler; pip install -e '.[tpu]'") from None
        raise UserError(f"--topology={name}: there is no such slice ({reason})") from None


def prepare_environment() -> None:
    """Lets the TPU compiler run on a machine without a TPU, and leaves alone what this machine has; before JAX is asked
    for devices."""
    jax.config.update("jax_platforms", "cpu")  # the variable of the environment was read when JAX was imported
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # else it asks the cloud what machine this is, and waits
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # else it stops at another process's lock
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


@contextlib.contextmanager
def _silent_compiler() -> Iterator[None]:
    """Its library writes to the process's standard error what does not concern a plan."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
