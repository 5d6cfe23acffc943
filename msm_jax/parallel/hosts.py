"""Many processes as one program: TPU pods, GKE, Slurm, or processes named on the command line."""

import contextlib
import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from msm_jax.errors import UserError

PyTree = Any

# A stage that the first host does alone may take this long, in milliseconds.
_LONGEST_WAIT = 24 * 3600 * 1000
# Seconds without a sign of life after which a process counts as gone.
_HEARTBEAT = 60
# In what the runtime and its collectives say when they cannot reach a process.
_SIGNS_OF_LOSS = re.compile(
    "gloo|nccl|heartbeat|coordination|barrier|unavailable|deadline_exceeded|connection", re.IGNORECASE
)


def join(address: str | None, count: int | None, index: int | None, patience: int = 300) -> tuple[int, int]:
    """Joins the other processes of the run; before JAX is asked for devices. Gives index and count of this process.

    `address` is HOST:PORT of process 0; with all three None, JAX looks for a TPU pod, GKE or Slurm, and a process that
    is part of none is alone. `patience` is in seconds.

    Raises: UserError if the others do not come, or if only some of the three are given.
    """
    missing = [address, count, index].count(None)
    named = not missing
    if missing in (1, 2):
        raise UserError("--coordinator, --processes and --process go together: address of process 0, how many, which")
    if named and not 0 <= index < count:
        raise UserError(f"--process={index}: processes are numbered from 0 to --processes - 1 = {count - 1}")
    if named and not address.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={address}: give HOST:PORT, as 10.0.0.2:8476")
    # Processes of one machine need not be found from others.
    local = address if named and address.startswith(("127.", "localhost:")) else None
    patient = {"initialization_timeout": patience, "heartbeat_timeout_seconds": _HEARTBEAT}
    try:
        jax.distributed.initialize(address, count, index, coordinator_bind_address=local, **patient)
    except ValueError as error:
        if named or "coordinator_address" not in str(error):  # the one that says that no others were found
            raise
        return 0, 1
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"the {count or 'other'} processes of this run did not come together in {patience} s "
            f"({_first_line(error)}); start the same command on all of them"
        ) from None
    except RuntimeError as error:
        # JAX was asked for devices before, as in a notebook, or has joined already. What a pod lacks to be found, as an
        # address that its metadata do not tell, must not leave each of its hosts to run alone.
        if named or "before any JAX calls" not in str(error) and "only be called once" not in str(error):
            raise UserError(
                f"the processes of this run could not be found ({_first_line(error)}); name them: "
                "--coordinator=HOST:PORT --processes=N --process=I"
            ) from None
    return jax.process_index(), jax.process_count()


def meeting() -> Callable[[str], None]:
    """`meet(name)` returns when all processes have called it with that name, which is used once."""
    wait = multihost.get_barrier_sync_fn()
    return lambda name: wait(key=name, timeout_ms=_LONGEST_WAIT)


def agree(text: str) -> bool:
    """Whether all processes call it with the same text."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    return bool((multihost_utils.process_allgather(digest) == digest).all())


_asked = itertools.count()


def stop_requested() -> bool:
    """Whether SIGTERM came to one of several processes. All get the same answer, since all ask equally often.

    JAX agrees once on the number of a question at which to say so, so they go on from stage to stage.
    """
    return multihost_utils.reached_preemption_sync_point(next(_asked))


def of_first(value: float) -> float:
    """The value that the first process calls it with. All call it, with no other program on their devices: on CPUs,
    programs of several processes that run at once wait for each other for ever."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def array_of_first(array: np.ndarray) -> np.ndarray:
    """The same for an array of one shape, which is not converted."""
    return array if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))


@contextlib.contextmanager
def told_if_lost() -> Iterator[None]:
    """What the runtime says when another process is gone, as one line.

    Raises: UserError in its place; other errors, and those of a process that is alone, as they are.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the second from collectives on CPUs
        if jax.process_count() == 1 or not _SIGNS_OF_LOSS.search(str(error)):
            raise
        logging.getLogger(__name__).debug("lost", exc_info=True)
        raise UserError(
            f"another process of this run is gone, or cannot be reached ({_first_line(error)}); its own messages say "
            "why. Start the same command on all of them again: it goes on from the last checkpoint"
        ) from None


def fetch(tree: PyTree) -> PyTree:
    """Arrays on the host, whole, wherever their parts lie. All processes call it alike."""

    def whole(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(whole, tree)


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count) of this process's share of each batch: processes whose devices hold parts of the same rows, as
    where the tensor axis reaches over hosts, have the same share.

    Raises: UserError if the shares would differ in size.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    blocks: dict[int, set[int]] = {}
    for block, devices in enumerate(mesh.devices.reshape(ways, -1)):
        for device in devices:
            blocks.setdefault(device.process_index, set()).add(block)
    shares = sorted({tuple(sorted(share)) for share in blocks.values()})
    if sorted(sum(shares, ())) != list(range(ways)) or len({len(share) for share in shares}) > 1:
        raise UserError(
            f"mesh {dict(mesh.shape)}: its rows do not fall on {len(blocks)} hosts in equal shares; "
            "choose mesh.tensor such that it divides the devices of a host, or is a multiple of them"
        )
    return shares.index(tuple(sorted(blocks[jax.process_index()]))), len(shares)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
