"""Rows as they lie in files and in data sets of TFDS: dicts of what JSON can hold."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from msm_jax.corpus import records
from msm_jax.corpus.datasets.dataset import AS_JSON
from msm_jax.errors import UserError
from msm_jax.storage import files

KINDS = (".jsonl", ".json", ".parquet", ".array_record")
_NOT_UTF8 = "\udcff"  # stands for a value that is not, as Python writes such bytes


def read_rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file of one of KINDS, in its order. Raises: UserError, on the first `next` that meets what
    cannot be read or is no row."""
    match pathlib.Path(path).suffix:
        case ".jsonl":
            return (row for _, row in records.read_objects(path))
        case ".json":
            return _read_json(path)
        case ".parquet":
            return _read_parquet(path)
        case ".array_record":
            return _read_array_record(path)
    raise UserError(f"{path}: not a kind of file that is understood; give one of {', '.join(KINDS)}")


def read_tfds(name: str, split: str) -> tuple[Iterator[dict[str, Any]], str]:
    """Rows of a data set of TFDS, read without TensorFlow, and its full name with the version.

    Args:
      name: NAME or NAME/CONFIG of a set that is downloaded, or a folder that `tfds.builder_from_directory` reads.
      split: as TFDS has them, so `train[:10%]` too.

    Raises: UserError if there is no such set, split, or if its files allow no random access.
    """
    import tensorflow_datasets as tfds

    where, folder = f"tfds:{name}", is_folder(name)
    try:
        builder = tfds.builder_from_directory(os.path.expanduser(name)) if folder else tfds.builder(name)
    except Exception as error:  # several kinds, by what is lacking
        wrong, cure = _first_line(error), "see the catalog of TFDS, or give a folder"
        if folder:
            wrong, cure = f"no folder that TFDS reads ({wrong})", "give VERSION's folder"
        raise UserError(f"{where}: {wrong}; {cure}") from None
    build = f"`tfds build {name} --file_format=array_record`"
    if not folder and not builder.is_prepared():
        raise UserError(f"{where}: not downloaded to {builder.data_dir}; run {build}")
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:
        raise UserError(f"{where}: its files cannot be read row by row; run {build}, or copy it to JSONL") from None
    except Exception as error:
        splits = ", ".join(sorted(builder.info.splits)) or "none"
        raise UserError(f"{where}: split {split}: {_first_line(error)}; the splits are {splits}") from None
    return (_of_tfds(row) for row in source), builder.info.full_name


def is_folder(name: str) -> bool:
    """Whether what follows `tfds:` is a folder, and no name."""
    return name.startswith(("/", ".", "~")) or "://" in name or "/" in name and os.path.isdir(name)


def _of_tfds(row: Mapping[str, Any]) -> dict[str, Any]:
    row = _plain(row)
    for column in AS_JSON:
        if isinstance(row.get(column), str):
            with contextlib.suppress(ValueError):  # a column of somebody else, which has that name
                row[column] = json.loads(row[column])
    return row


def _read_json(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """A list of objects; or one a line, as `datasets.to_json` writes them under the same name."""
    try:
        rows = json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if not str(error).startswith("Extra data"):
            raise UserError(f"{path}: not JSON that can be read ({_first_line(error)}); mend the file") from None
        yield from (row for _, row in records.read_objects(path))
        return
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of objects; write [{{...}}, ...], or JSONL")
    yield from rows


def _read_parquet(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from map(_plain, _rows(batch))
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not parquet that can be read ({_first_line(error)}); fetch it again") from None


def _rows(batch: Any) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # of one row; it shall not take the others with it
        if len(batch) > 1:
            return [row for index in range(len(batch)) for row in _rows(batch.slice(index, 1))]
        return [{name: _one(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}]


def _one(column: Any) -> Any:
    try:
        return column[0].as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8


def _read_array_record(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(path))
        records_of_file = reader.read_all()
        reader.close()
    except Exception as error:  # of several kinds, by version
        raise UserError(f"{path}: not ArrayRecord that can be read ({_first_line(error)})") from None
    for index, record in enumerate(records_of_file):
        yield files.parse_object(record, f"{path}: record {index}", "mend the file")


def _plain(value: Any) -> Any:
    """As JSON can hold it. TFDS gives bytes and arrays, parquet dates and decimals."""
    match value:
        case None | str() | int() | float():
            return value
        case bytes():
            return value.decode("utf-8", errors="surrogateescape")  # so that what is not UTF-8 is still told from text
        case Mapping():
            return {key: _plain(part) for key, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
