"""Data sets of the Hugging Face hub: which of their files are a configuration and a split, and fetching those.

Configurations and splits are told from the names of files: `CONFIG/train-00000-of-00002.parquet`, `data/train.jsonl`,
`CONFIG_train.json`; numbers alone, as in `CONFIG/train/0000.parquet`, are named by their folder. That is how sets are
published; where it is not, the hub's own copy in parquet is read, which it makes of every public set.
"""

import glob
import pathlib
import re
import sys
from collections.abc import Iterable

from msm_jax.errors import UserError
from msm_jax.storage import hub

_KINDS = (".parquet", ".jsonl", ".json")  # the best first
_COPY = "refs/convert/parquet"
# What a file has after the name of its split: -00000-of-00002, with a digest maybe; or a number alone.
_SHARD = re.compile(r"(?:^|[-_.])\d{3,}(?:-of-(?P<of>\d+))?(?:-[0-9a-f]{8,})?$")
_ABOUT = re.compile(r"dataset_infos?|config|metadata|state|.*_config")
_MOST_LISTED = 20


class _NotThere(Exception):
    """A configuration or split that a repository does not have; the message says which it has."""


def fetch(name: str, config: str | None, revision: str | None, split: str | None) -> tuple[list[pathlib.Path], str]:
    """The files of a split of the data set `name` (ORG/NAME), fetched unless the hub's cache has them, and the commit.

    None is the only configuration or `default`, the newest revision (else branch, tag or commit), and the only split or
    `train`. Without the hub, what the cache holds whole will do, if configuration and split are named, or are `default`
    and `train`. The hub's own variables count (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, ...).

    Raises: UserError if there is no such repository, configuration or split, or if it cannot be had.
    """
    import huggingface_hub  # takes half a second, and most data lies in files

    where = f"hf:{name}{f'@{revision}' if revision else ''}"
    with hub.quiet():
        try:
            chosen, branch = _choose_of_hub(name, config, revision, split)
            cached = (huggingface_hub.try_to_load_from_cache(name, file, None, branch, "dataset") for file in chosen)
            if not all(isinstance(path, str) for path in cached):
                print(f"Fetching {where} from {huggingface_hub.constants.ENDPOINT}", file=sys.stderr, flush=True)
            folder = _snapshot(name, branch, list(map(glob.escape, chosen)))
        except _NotThere as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:  # the hub's errors, and those of the HTTP library that its version has chosen
            found = _from_cache(name, config, revision, split)
            if found is None:
                raise UserError(f"{where}: {hub.reason(error, name, revision, data=True)}") from None
            return found
    paths = [folder / file for file in chosen]
    # Some versions of the library give what the cache holds where the hub cannot be asked.
    if missing := [file for file, path in zip(chosen, paths, strict=True) if not path.is_file()]:
        raise UserError(f"{where}: {missing[0]} could not be fetched; start again later (whole files are kept)")
    return paths, folder.name


def _choose_of_hub(
    name: str, config: str | None, revision: str | None, split: str | None
) -> tuple[list[str], str | None]:
    """Files, and the revision that has them: the one asked for, or the hub's copy in parquet."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    api.dataset_info(name, revision=revision)  # says at once if the hub is not reached; the list would try again
    try:
        return choose(api.list_repo_files(name, repo_type="dataset", revision=revision), config, split), revision
    except _NotThere as own:
        if revision is not None:  # the copy is of the newest commit
            raise
        try:
            copy = api.list_repo_files(name, repo_type="dataset", revision=_COPY)
        except Exception:  # there is none; what is wrong with the set itself is what the user can mend
            raise own from None
    return choose(copy, config, split), _COPY


def _snapshot(name: str, revision: str | None, patterns: list[str], **options: bool) -> pathlib.Path:
    import huggingface_hub

    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": patterns, **options}
    return pathlib.Path(huggingface_hub.snapshot_download(name, **options))


def choose(names: Iterable[str], config: str | None, split: str | None) -> list[str]:
    """Of the files of a repository, those of a configuration and split, in order. Raises: _NotThere."""
    files = [
        file
        for file in map(pathlib.PurePosixPath, names)
        if file.suffix in _KINDS and not any(part.startswith(".") for part in file.parts)
        if not (file.suffix == ".json" and _ABOUT.fullmatch(file.stem))
    ]
    if not files:
        raise _NotThere("no parquet, jsonl or json files in this repository; copy it to a file of one of these kinds")
    kind = min((file.suffix for file in files), key=_KINDS.index)
    table: dict[str, dict[str, list[pathlib.PurePosixPath]]] = {}
    for file in files:
        if file.suffix == kind:
            of_config, of_split = _parts(file)
            table.setdefault(of_config, {}).setdefault(of_split, []).append(file)
    splits = _splits(table, config)
    if split is None:
        split = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    if split not in splits:
        raise _NotThere(f"no split {split}; there are {_list(splits)}")
    return [str(file) for file in sorted(splits[split])]


def _splits(table: dict[str, dict[str, list]], config: str | None) -> dict[str, list]:
    if config is None:
        if len(table) > 1 and "default" not in table:
            raise _NotThere(f"choose a configuration, as ORG/NAME/CONFIG; there are {_list(table)}")
        return table.get("default") or next(iter(table.values()))
    if config in table:
        return table[config]
    named = {}  # by the first part of the names of files
    for split, files in table.get("default", {}).items():
        if match := re.fullmatch(rf"{re.escape(config)}(?:[-_.](.*))?", split):
            named["train" if match[1] is None else match[1]] = files
    if not named:
        raise _NotThere(f"no configuration {config}; there are {_list(table)}")
    return named


def _parts(file: pathlib.PurePosixPath) -> tuple[str, str]:
    """Configuration and split."""
    folders = list(file.parent.parts)
    folders = folders[1:] if folders[:1] == ["data"] else folders
    split = _SHARD.sub("", file.stem) or (folders.pop() if folders else "train")
    return "/".join(folders) or "default", split


def _from_cache(
    name: str, config: str | None, revision: str | None, split: str | None
) -> tuple[list[pathlib.Path], str] | None:
    """What `fetch` gives, of what the cache holds; None if it is not there, or not whole."""
    try:
        # No file is named: with some versions of the library, the whole repository would have to be there.
        folder = _snapshot(name, revision, [], local_files_only=True)
        held = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        # What is not held is not known: of what is there, the only one may not be the only one.
        chosen = choose(held, config or "default", split or "train")
    except Exception:  # why the hub does not answer is told instead
        return None
    return ([folder / file for file in chosen], folder.name) if _whole(chosen) else None


def _whole(files: list[str]) -> bool:
    """Whether all shards of a split are there, as far as their names tell."""
    shards = [_SHARD.search(pathlib.PurePosixPath(file).stem) for file in files]
    return all(shard is None or shard["of"] and int(shard["of"]) == len(files) for shard in shards)


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
