"""Where models come from: a folder, a URL of one (gs://bucket/folder), or an id on the Hugging Face hub."""

import contextlib
import fnmatch
import functools
import os
import re
import sys

from msm_jax.checkpoints.tensor_files import TensorFiles
from msm_jax.errors import UserError
from msm_jax.storage import hub
from msm_jax.storage.folders import Folder, is_url

# What is beside the weights and belongs to a model: configuration, tokenizer, chat template, licence.
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
_NOT_SMALL = ("*.index.json", "adapter_config.json")  # they go with weights
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_hub_id(path: str | os.PathLike) -> bool:
    """Whether `path` is an id as ORG/NAME: of that form, and no folder that exists."""
    path = os.fspath(path)
    return not is_url(path) and not os.path.exists(os.path.expanduser(path)) and bool(_HUB_ID.fullmatch(path))


def split_revision(path: str | os.PathLike) -> tuple[str, str | None]:
    """(ORG/NAME, REVISION) of ORG/NAME@REVISION; of anything else itself, and None."""
    path = os.fspath(path)
    name, at, revision = path.rpartition("@")
    return (name, revision) if at and revision and is_hub_id(name) and not os.path.exists(path) else (path, None)


def resolve(path: str | os.PathLike, revision: str | None = None, weights: bool = True) -> str:
    """The folder or URL that holds a model: `path` itself, or the hub's cache if `path` is an id as ORG/NAME.

    From the hub come configuration, tokenizer and, with `weights`, safetensors, at `revision`: branch, tag or commit.
    Files that are there already are not fetched again. The hub's own variables count (HF_HOME, HF_TOKEN, HF_ENDPOINT,
    HF_HUB_OFFLINE, ...).

    Raises: UserError if there is no such folder, or if the repository cannot be had: it says what to do.
    """
    path = os.fspath(path)
    if not path:
        raise UserError("the path of the model is empty; give a folder, a URL of one or ORG/NAME")
    here = path if is_url(path) else os.path.abspath(os.path.expanduser(path))
    if not is_url(path) and not os.path.isdir(here):
        if os.path.exists(here):
            raise UserError(f"{path}: this is a file; name the folder that it is in")
        if not _HUB_ID.fullmatch(path):
            raise UserError(
                f"{path}: no such folder (nor an id on the Hugging Face hub, as ORG/NAME); docs/models.md says how to "
                "get a checkpoint, and launch/smollm2.sh makes a small one"
            )
        return _from_hub(path, revision, weights)
    if revision is not None:
        raise UserError(
            f"{path}: revision {revision} is for ids on the Hugging Face hub; this is a folder, leave it out"
        )
    return here


def read_file(folder: str | os.PathLike, name: str) -> bytes | None:
    """A file right in a folder or URL; None if it is not there. Raises: UserError if the folder cannot be read."""
    source = Folder(folder)
    return source.read(name) if name in (source.sizes() or {}) else None


def file_names(folder: str | os.PathLike) -> set[str]:
    """Names of the files right in a folder or URL; none if there is no such folder."""
    return set(Folder(folder).sizes() or {})


def small_files(folder: str | os.PathLike) -> dict[str, bytes]:
    """Name -> content of all that belongs to a model besides its weights. Raises: UserError if it cannot be read."""
    source = Folder(folder)
    sizes = source.sizes()
    if sizes is None:
        raise UserError(f"{source.url}: no such folder")
    return {name: source.read(name) for name in sorted(sizes) if _is_small(name)}


def copy_small_files(source: str | os.PathLike, destination: str | os.PathLike) -> None:
    """Copies what `small_files` gives, as an export needs it: transformers opens the copy with no edits."""
    target = Folder(destination)
    for name, content in small_files(source).items():
        target.write(name, content)


def _is_small(name: str) -> bool:
    fits = functools.partial(fnmatch.fnmatchcase, name)
    return any(map(fits, _SMALL_FILES)) and not any(map(fits, _NOT_SMALL))


def _from_hub(name: str, revision: str | None, weights: bool) -> str:
    import huggingface_hub  # takes half a second, and most models lie in folders

    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision), str):
            print(f"Fetching {name} from {huggingface_hub.constants.ENDPOINT}", file=sys.stderr, flush=True)
        with hub.quiet():
            folder = huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*_SMALL_FILES, *(_WEIGHTS if weights else ())],
                # Patterns cross slashes: copies in other formats lie in folders (original/, onnx/).
                ignore_patterns=["*/*"],
            )
    except Exception as error:  # the hub's errors, and those of the HTTP library that its version has chosen
        folder = _from_cache(name, revision, weights)
        if folder is None:
            raise UserError(f"{name}: {hub.reason(error, name, revision)}") from None
    if weights and not _opens(folder):
        # Some versions of the library give whatever the cache holds where the hub cannot be asked.
        try:
            huggingface_hub.HfApi().model_info(name, revision=revision)
        except Exception as error:
            raise UserError(f"{name}: {hub.reason(error, name, revision)}") from None
        if not any(file.endswith(".safetensors") for file in os.listdir(folder)):
            raise UserError(
                f"{name}: no safetensors in this repository, and pickled weights are never read; choose another"
            )
    return folder


def _from_cache(name: str, commit: str | None, weights: bool) -> str | None:
    """The folder of a commit that the cache holds, with all weights if they are wanted. The library itself gives none
    where the list of the commit's files is missing, as in caches of its older versions."""
    import huggingface_hub

    for config in ("config.json", "adapter_config.json"):
        path = commit and huggingface_hub.try_to_load_from_cache(name, config, revision=commit)
        if isinstance(path, str) and (not weights or _opens(os.path.dirname(path))):
            return os.path.dirname(path)
    return None


def _opens(folder: str) -> bool:
    """Whether the weights of a model or of an adapter are there, all that their index names."""
    for stem in ("model", "adapter_model"):
        with contextlib.suppress(UserError):
            TensorFiles(folder, stem)
            return True
    return False
