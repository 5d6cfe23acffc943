"""Files as sources, for the tests of those."""

import io
import json

import pyarrow.parquet

from msm_jax.corpus import records
from msm_jax.corpus.datasets import sources


def chat(*turns):
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


def chats(count, start=0):
    return [{"messages": chat(f"question {n}", f"answer {n}")} for n in range(start, start + count)]


def write(path, rows):
    records.write_jsonl(path, rows)
    return str(path)


def read(tmp_path, rows, chats=True, **fields):
    """`rows` of a file, by a mix of one source. As JSON: in JSONL, what begins as our own form must be it."""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    entry = {"name": "rows", "data": str(tmp_path / "rows.json"), **fields}
    return sources.load(write_mix(tmp_path / "mix.toml", entry), chats)


def write_mix(path, *entries):
    def toml(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
        return json.dumps(value)

    lines = [
        "\n".join(["[[source]]", *(f"{key} = {toml(value)}" for key, value in entry.items())]) for entry in entries
    ]
    path.write_text("\n".join(lines))
    return str(path)


def contents(loaded):
    return [[message["content"] for message in row["messages"]] for row in loaded.rows]


def only_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()
