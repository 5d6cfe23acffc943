"""Small files that must never be half written: manifests, configs, summaries; and folders that one process writes."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from msm_jax.errors import UserError

_LOCK = ".lock"


def fingerprint(value: Any, length: int = 12) -> str:
    """Hex digest of `value` in canonical JSON: equal values give equal digests on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def fingerprint_of_file(path: str | os.PathLike, length: int = 12) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:length]


def fingerprint_of_bytes(content: bytes, length: int = 12) -> str:
    """That of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:length]


def make_folder(workdir: str | os.PathLike) -> None:
    """Raises: UserError if nothing can be written there."""
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{workdir}: is a file, or lies in one; choose another --workdir") from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"{workdir}: cannot be written; choose another --workdir")


def check_room(folder: str | os.PathLike, size: int) -> None:
    """Raises: UserError if the disk of `folder`, which need not be there yet, has less than `size` bytes free."""
    place = pathlib.Path(folder).absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if free < size:
        raise UserError(
            f"{folder}: {size / 1e9:.3g} GB are to be written, and {free / 1e9:.3g} GB are free there; free some "
            "space, or choose another disk"
        )


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` so that a reader sees the old file or the new one, never a part of either."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Raises: UserError if the file is missing or is not JSON."""
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """One process at a time in `folder`, made if missing. The kernel drops the lock when the process ends, however.

    Raises: UserError if another process has it.
    """
    busy = f"{folder}: in use by another process; wait for it, or choose another --workdir"
    with lock_file(pathlib.Path(folder, _LOCK), busy):
        yield


@contextlib.contextmanager
def lock_file(path: str | os.PathLike, busy: str) -> Iterator[None]:
    """The same by any file, made with its folder if missing. Raises: UserError, which says `busy`."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        yield


def in_use(folder: str | os.PathLike) -> bool:
    """Whether a process holds the lock of `folder`."""
    try:
        with open(pathlib.Path(folder, _LOCK)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or one that led to it, is that no space is left: libraries wrap the OSError, or only cite it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    cause = error.__cause__ or error.__context__
    return os.strerror(errno.ENOSPC) in str(error) or (cause is not None and is_disk_full(cause))
