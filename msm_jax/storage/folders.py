"""A folder of files, local or on any fsspec URL (gs://bucket/folder, memory://folder), with errors of one line."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from msm_jax.errors import UserError

CHUNK_BYTES = 64 * 2**20  # the most that is read or written at a time where memory has to hold a copy of it

_EXTRAS = {"gs": "gcs", "gcs": "gcs"}  # scheme -> the extra that brings the package that fsspec needs for it


def is_url(path: str) -> bool:
    return "://" in path


class Folder:
    """The files right in a folder, local or not. Keeps nothing open, so threads can share it. Raises: UserError, if the
    storage cannot be reached, refuses or is full, or if fsspec lacks a package for it."""

    def __init__(self, url: str | os.PathLike):
        self.url = os.fspath(url)
        if not is_url(self.url):
            self.url = os.path.abspath(os.path.expanduser(self.url))
        with self._told():
            self._storage, self._root = fsspec.core.url_to_fs(self.url)
        self._root = self._root.rstrip("/")
        self.url = self.url.rstrip("/")
        self.is_local = isinstance(self._storage, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def sizes(self) -> dict[str, int] | None:
        """Name -> size in bytes of every file right in this folder; None if there is no such folder."""
        if self.is_local:
            # Not by fsspec, which does not count links as files, as those in the hub's cache are.
            try:
                with self._told(), os.scandir(self._root or "/") as entries:
                    return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            except UserError:
                if not os.path.lexists(self._root):
                    return None
                raise
        with self._told():
            try:
                self._storage.invalidate_cache(self._root)
                entries = self._storage.ls(self._root, detail=True)
            except FileNotFoundError:
                return None
        names = {entry["name"].rstrip("/"): entry["size"] for entry in entries if entry["type"] == "file"}
        if list(names) == [self._root]:  # the mark of an empty folder in a bucket, or a file
            return {}
        return {name.rsplit("/", 1)[-1]: size for name, size in names.items()}

    def all_files(self) -> list[str]:
        """Names of all files in this folder and in those that it holds, in order; none if there is no such folder."""
        with self._told():
            if self.is_local:  # not by fsspec, as in `sizes`
                paths = [os.path.join(at, name) for at, _, names in os.walk(self._root) for name in names]
            else:
                self._storage.invalidate_cache(self._root)
                paths = self._storage.find(self._root)
        return sorted(path[len(self._root) + 1 :] for path in paths)

    def digest(self, name: str) -> str:
        """sha256 of a file's bytes, in hex."""
        with self._told(name), self._storage.open(f"{self._root}/{name}", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file from `start` to before `stop`; fewer if it ends there."""
        with self._told(name):
            return self._storage.cat_file(f"{self._root}/{name}", start=start, end=stop)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fills `buffer` with the bytes of a file from `start` on; holds at most a chunk besides it."""
        done = 0
        if self.is_local:
            # Right into the buffer. A memory map would do that too, but its pages count as the process's own.
            with self._told(name), open(f"{self._root}/{name}", "rb", buffering=0) as file:
                file.seek(start)
                while done < len(buffer) and (count := file.readinto(buffer[done:])):
                    done += count
        else:
            while done < len(buffer):
                part = self.read(name, start + done, start + min(done + CHUNK_BYTES, len(buffer)))
                if not part:
                    break
                buffer[done : done + len(part)] = part
                done += len(part)
        if done < len(buffer):
            raise UserError(f"{self.path(name)}: this file has become shorter since it was opened; start again")

    def write(self, name: str, content: bytes) -> None:
        """Readers see the old file or the new one, never a part of either."""
        with self.begin(name) as file:
            file.write(content)
        self.finish(name)

    @contextlib.contextmanager
    def begin(self, name: str) -> Iterator["Part"]:
        """A file to `write` to within `with`. It has a name of its own until `finish(name)`; an error removes it."""
        with self._told(name):
            self._storage.makedirs(self._root, exist_ok=True)
            file = self._storage.open(f"{self._root}/{_part(name)}", "wb", block_size=CHUNK_BYTES)
        try:
            yield Part(self, name, file)
            with self._told(name):
                if self.is_local:
                    file.flush()
                    os.fsync(file.fileno())
                file.close()
        except BaseException:
            with contextlib.suppress(Exception):
                file.close()
            self.abandon(name)
            raise

    def finish(self, name: str) -> None:
        """Gives what `begin(name)` wrote its name; replaces a file of that name."""
        with self._told(name):
            if self.is_local:
                os.replace(f"{self._root}/{_part(name)}", f"{self._root}/{name}")
            else:
                self._storage.mv(f"{self._root}/{_part(name)}", f"{self._root}/{name}")

    def abandon(self, name: str) -> None:
        """Removes what `begin(name)` has left, if anything."""
        # Called where something went wrong, which is to be told rather than that nobody can tidy up.
        with contextlib.suppress(Exception):
            self.remove(_part(name))

    def remove(self, name: str) -> None:
        """Removes a file if there is one."""
        with self._told(name), contextlib.suppress(FileNotFoundError):
            self._storage.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        # Storage libraries have error classes of their own, so on URLs everything that goes wrong is taken for theirs.
        where = self.path(name) if name else self.url
        try:
            yield
        except (UserError, MemoryError):
            raise
        except FileNotFoundError:
            raise UserError(f"{where}: no such file") from None
        except OSError as error:
            raise UserError(f"{where}: {error.strerror or first_line(error)}") from None
        except ImportError as error:
            extra = _EXTRAS.get(self.url.split("://")[0])
            cure = f"{self.url.split('://')[0]}:// needs pip install -e '.[{extra}]'" if extra else first_line(error)
            raise UserError(f"{where}: {cure}") from None
        except Exception as error:
            if not is_url(self.url):
                raise
            raise UserError(f"{where}: {first_line(error)}") from None


class Part:
    """A file that is being written."""

    def __init__(self, folder: Folder, name: str, file: IO[bytes]):
        self._folder, self._name, self._file = folder, name, file

    def write(self, content: bytes | memoryview) -> None:
        with self._folder._told(self._name):
            self._file.write(content)


def is_part(name: str) -> bool:
    """Whether this is a file that `Folder.begin` has begun, and that was never finished."""
    return name.startswith(".") and name.endswith(".part")


def _part(name: str) -> str:
    return f".{name}.part"


def first_line(error: Exception) -> str:
    """Of an error's message; its type, if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
