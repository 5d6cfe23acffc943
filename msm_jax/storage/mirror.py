"""A workdir on an object store (gs://bucket/folder), and the copy of it that stages work in.

Stages read and write local files: rows are mapped into memory, a killed stage goes on where its folder is. So each host
has a copy of the workdir, in its cache; what a stage has written is sent when it is done, manifest last. Arrays go no
such way: checkpoints and final weights lie in the store alone, where Orbax writes and reads them in parts, on all hosts
at once.

What is done the store alone decides: each host asks it, and so all give one answer, whatever their caches hold.
"""

import contextlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fsspec

from msm_jax.errors import UserError
from msm_jax.storage import files
from msm_jax.storage.folders import first_line, is_part

# Folders of a stage that hold arrays; and that of locks, which concern one machine alone.
_STAYING = ("checkpoints", "final", files.LOCKS)
# A copy of the store of calls, which who writes corpora asks for, and nobody else: it may be large.
STORE_COPY = "calls.sqlite"
_LAST = "manifest.json"
# What says that a stage is done: a copy has it only while the store has it.
_DECISIVE = f"stages/*/{_LAST}"


class Place(NamedTuple):
    """A workdir or a store of stages: `name` as the user calls it, and where it is worked in."""

    name: str
    local: str
    mirror: "Mirror | None" = None

    @classmethod
    def open(cls, name: str) -> "Place":
        """For a folder in an object store, the copy of it is brought up to date, unless another process works in it
        and is ahead of the store."""
        if re.match("[a-z0-9]+:/", name) and not re.match("[a-z0-9]+://[^/]", name):
            raise UserError(f"{name}: give a folder of a bucket, as gs://BUCKET/FOLDER")
        if "://" not in name:
            return cls(name.rstrip("/") or "/", name)
        mirror = Mirror(name)
        with files.looked_at(mirror.local) as used:
            if not used:
                mirror.fetch()
        return cls(name.rstrip("/"), str(mirror.local), mirror)

    def send(self, path: pathlib.Path) -> None:
        if self.mirror:
            self.mirror.send(path)


class Mirror:
    """A workdir at `url`, and its copy in `local`. Raises: UserError, if the store cannot be reached or refuses."""

    def __init__(self, url: str, cache: pathlib.Path | None = None):
        self.url = url.rstrip("/")
        cache = cache or pathlib.Path(os.environ.get("MSM_JAX_CACHE", "~/.cache/msm_jax")).expanduser()
        self.local = cache / f"{self.url.rsplit('/', 1)[-1]}-{files.fingerprint(self.url)}"
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises, too
        with self._told():
            self._storage, self._root = fsspec.core.url_to_fs(self.url)
        self.local.mkdir(parents=True, exist_ok=True)

    def arrays(self, folder: pathlib.Path) -> str:
        """Where the arrays of a stage lie whose local folder this is."""
        return f"{self.url}/{self._name(folder)}"

    def fetch(self, folder: pathlib.Path | None = None) -> None:
        """Brings what is in the store: all of it, or what belongs to `folder`, in `local`. Of stages that are done
        here, nothing is brought again.

        A manifest that the store lacks is removed with all of `fetch()`: its upload failed, or someone deleted the
        folder in the store. Other files stay: what an interrupted stage left here alone is its own."""
        with self._told():
            root = self._root if folder is None else f"{self._root}/{self._name(folder)}"
            # Before the store is asked: what a run of this machine finishes meanwhile is none of it.
            here = list(self.local.glob(_DECISIVE)) if folder is None else []
            self._storage.invalidate_cache()
            try:
                found = self._storage.find(root)  # `exists` would take a store that fails for an empty one
            except FileNotFoundError:
                found = []
            names = {path.removeprefix(self._root).lstrip("/") for path in found}
            for path in here:
                if self._name(path) not in names:
                    path.unlink(missing_ok=True)
            for path in sorted(found, key=lambda path: path.endswith(f"/{_LAST}")):
                name = path.removeprefix(self._root).lstrip("/")
                there = self.local / name
                if _stays(name) or (folder is None and name == STORE_COPY) or (there.exists() and self._is_done(name)):
                    continue
                there.parent.mkdir(parents=True, exist_ok=True)
                part = files.part_of(there)
                self._storage.get_file(path, str(part))
                os.replace(part, there)

    def send(self, folder: pathlib.Path) -> None:
        """Sends what `folder`, in `local`, holds, its manifest last; or a file."""
        with self._told():
            paths = [folder] if folder.is_file() else filter(pathlib.Path.is_file, folder.rglob("*"))
            for path in sorted(paths, key=lambda path: path.name == _LAST):
                if not _stays(self._name(path)):
                    self._storage.put_file(str(path), f"{self._root}/{self._name(path)}")

    def finish(self, folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
        """Sends a stage, and then its manifest, which is written here last: what is done here is done in the store."""
        self.send(folder)
        path = folder / _LAST
        part = files.part_of(path)
        files.write_json(part, manifest)
        with self._told():
            self._storage.put_file(str(part), f"{self._root}/{self._name(path)}")
        os.replace(part, path)

    def _name(self, path: pathlib.Path) -> str:
        return path.relative_to(self.local).as_posix()

    def _is_done(self, name: str) -> bool:
        """Whether a file is one of a stage that is done here."""
        parts = name.split("/")
        return parts[0] == "stages" and self.local.joinpath(*parts[:2], _LAST).exists()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            cure = "pip install -e '.[gcs]'" if self.url.startswith("gs://") else str(error)
            raise UserError(f"{self.url}: {cure}") from None
        except Exception as error:  # each storage library has classes of its own
            if files.disk_problem(error):
                raise
            raise UserError(f"{self.url}: {first_line(error)}; the same command goes on from what is there") from None


def _stays(name: str) -> bool:
    """Whether a file of the workdir is none of the mirror's."""
    *folders, last = name.split("/")
    return is_part(last) or any(folder in _STAYING for folder in folders)
