"""What tests of written corpora share: command lines for small ones, and what these leave."""

import json
import pathlib


def flags(path, spec, **fields):
    fields = {"calls.store": f"{path}/calls.sqlite", "corpus.msm": 20, "corpus.aft": 0, "documents.words": 150} | fields
    fields = {"documents.types": 3, "calls.budget": 1.0} | fields
    return [
        f"--config=configs/corpus.py:{spec}",
        f"--workdir={path}/run",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def rows_of(path):
    [corpus] = pathlib.Path(path).glob("run/datasets/*/documents.jsonl")
    return [json.loads(line) for line in corpus.read_text().splitlines()]


def all_rows_of(path):
    """Data set -> rows."""
    files = pathlib.Path(path).glob("run/datasets/*/*.jsonl")
    return {file.parent.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
