"""Small files that must never be half written: manifests, configs, summaries; folders that one process writes; and
what is wrong with a disk or a path, in words."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from msm_jax.errors import UserError

LOCKS = ".locks"  # of a workdir or a store of stages: files by which processes keep out of each other's way
_RUN, _STORE, _LOOK = "run", "store", "look"


def fingerprint(value: Any, length: int = 12) -> str:
    """Hex digest of `value` in canonical JSON: equal values give equal digests on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def fingerprint_of_file(path: str | os.PathLike, length: int = 12) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:length]


def fingerprint_of_bytes(content: bytes, length: int = 12) -> str:
    return hashlib.sha256(content).hexdigest()[:length]


def shipped(path: str | os.PathLike) -> pathlib.Path:
    """`path`; or, where nothing is there, what the package has by that name: specs/NAME.md, configs/NAME.py."""
    own, ours = pathlib.Path(path), pathlib.Path(__file__).parents[1] / path
    return ours if not own.exists() and ours.exists() else own


def make_folder(path: str | os.PathLike, cure: str = "choose another --workdir") -> None:
    """Makes a folder, with those that it lies in. Raises: UserError, which says `cure`, if it cannot be written to."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        what = "is a link that leads to no folder" if os.path.islink(path) else "is a file, or lies in one"
        raise UserError(f"{path}: {what}; {cure}") from None
    except OSError as error:
        if disk_problem(error):
            raise
        raise UserError(f"{path}: no folder can be made there ({error.strerror}); {cure}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written; {cure}")


def check_room(folder: str | os.PathLike, size: int) -> None:
    """Raises: UserError if the disk of `folder`, which need not be there yet, has less than `size` bytes free."""
    place = pathlib.Path(folder).absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if free < size:
        raise UserError(
            f"{folder}: {size / 1e9:.3g} GB are to be written, and {free / 1e9:.3g} GB are free there; free some "
            "space, or choose another disk"
        )


def part_of(path: pathlib.Path) -> pathlib.Path:
    """Where this process writes a file before it takes its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` so that a reader sees the old file or the new one, never a part of either."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = part_of(path)
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


def anew(folder: str | os.PathLike) -> str:
    return f"delete {folder}, and the same command makes it anew"


def read_object(path: str | os.PathLike, cure: str, **fields: type) -> dict[str, Any]:
    """The JSON object in a file; `fields` are the types of those that it must have. Raises: UserError, with `cure`."""
    try:
        if pathlib.Path(path).is_fifo():
            raise UserError(f"{path}: not a file but a named pipe; {cure}")  # reading would wait for ever
        content = pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {cure}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    return parse_object(content, path, cure, **fields)


def parse_object(content: bytes, where: str | os.PathLike, cure: str, **fields: type) -> dict[str, Any]:
    """The same of what was read. `float` takes whole numbers, too."""
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError:
        raise UserError(f"{where}: not JSON but bytes that are no text; {cure}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: not JSON ({error.msg}); {cure}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON that can be read ({error}); {cure}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object but {_kind_of(value)}; {cure}")
    for field, kind in fields.items():
        found = value.get(field)
        if not isinstance(found, (int, float) if kind is float else kind) or isinstance(found, bool):
            wrong = f"its {field} is {_kind_of(found)}" if field in value else f"has no {field}"
            raise UserError(f"{where}: {wrong}; {cure}")
    return value


def _kind_of(value: Any) -> str:
    names = {str: "a text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


@contextlib.contextmanager
def lock_run(workdir: str | os.PathLike, store: str | os.PathLike) -> Iterator[None]:
    """One run at a time in `workdir` (else: UserError); any number with their stages in `store`. Both are made."""
    busy = f"{workdir}: in use by another process; wait for it, or choose another --workdir"
    with contextlib.ExitStack() as stack:
        with looked_at(workdir):
            stack.enter_context(lock_file(pathlib.Path(workdir, LOCKS, _RUN), busy))
        stack.enter_context(_locked(pathlib.Path(store, LOCKS, _STORE), fcntl.LOCK_SH))
        yield


@contextlib.contextmanager
def looked_at(folder: str | os.PathLike) -> Iterator[bool]:
    """Whether a run has `folder` as its workdir or its store of stages. No other process looks meanwhile, nor begins a
    run there."""
    with _locked(pathlib.Path(folder, LOCKS, _LOOK), fcntl.LOCK_EX):
        yield in_use(folder)


@contextlib.contextmanager
def lock_stage(store: str | os.PathLike, key: str, waits: Callable[[], None]) -> Iterator[None]:
    """One process at a time makes the stage `key` of `store`. Another calls `waits`, and waits."""
    with lock_file(pathlib.Path(store, LOCKS, key), waits):
        yield


@contextlib.contextmanager
def lock_file(path: str | os.PathLike, busy: str | Callable[[], None]) -> Iterator[None]:
    """One process at a time by any file, made with its folder if missing. The kernel drops a lock when the process
    ends, however it ends. While another has it, this one calls `busy` and waits, or says `busy` in a UserError."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            if isinstance(busy, str):
                raise UserError(busy) from None
            busy()
            stack.enter_context(_locked(path, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def _locked(path: str | os.PathLike, how: int) -> Iterator[None]:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, how)
        yield


def in_use(folder: str | os.PathLike) -> bool:
    """Whether a run has `folder` as its workdir or its store of stages."""
    for name in (_RUN, _STORE):
        try:
            with open(pathlib.Path(folder, LOCKS, name)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return True
    return False


# What stops a write, however it is written: what is wrong, and the cure.
_DISK = {
    errno.ENOSPC: ("no space left on device", "free some space"),
    errno.EDQUOT: ("no space left on device", "free some of the quota"),
    errno.EFBIG: ("file too large", "raise the limit on the size of a file (ulimit -f)"),
}
# What else is wrong with a path that the user gave, or with what lies there.
_PATHS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "choose another place, or change its permissions"),
    errno.EROFS: "choose another place",
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR), "delete what is in the way, or choose another place"),
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "mend the links, or choose another place",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files (ulimit -n)"),
}


def disk_problem(error: BaseException) -> tuple[str, str] | None:
    """(what, cure) if `error`, or one that led to it, is that a disk takes no more: libraries wrap the OSError, or only
    cite it."""
    for one in _chain(error):
        for code, problem in _DISK.items():
            if isinstance(one, OSError) and one.errno == code or os.strerror(code) in str(one):
                return problem
    return None


def cure_of(error: OSError) -> str | None:
    """What the user can do, if the fault is in a path or a machine; None if it may be in the program."""
    problem = disk_problem(error)
    return problem[1] if problem else _PATHS.get(error.errno)


def missing_file(error: BaseException) -> str | None:
    """The path for which `error`, or one that led to it, is that nothing is there."""
    missing = (one.filename for one in _chain(error) if isinstance(one, FileNotFoundError))
    return next((os.fspath(path) for path in missing if isinstance(path, str | os.PathLike)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that led to it. What libraries raise again may lead back to itself."""
    seen: list[BaseException] = []
    while error is not None and all(error is not other for other in seen):
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__
