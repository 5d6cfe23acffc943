"""A corpus as others take it: JSONL, ArrayRecord, a folder that TFDS reads, a card, and a page to look at.

What stands in the card and on the page is in `about.json` too: spec, prompts, models, yields, what was paid, digests.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from msm_jax.corpus.datasets.diversity import figures, histogram
from msm_jax.corpus.writing.variety import tokens_of
from msm_jax.storage import files

_SAMPLES = 8
# Fields of a row that are not text, and so are JSON in TFDS, which has no lists of what may be anything.
AS_JSON = ("calls", "verbatim", "spec_version", "messages", "assertions", "words_wanted", "words_asked")


def write_dataset(folder: str | os.PathLike, corpus: str | os.PathLike, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes all forms of the JSONL file `corpus`, documents or chats, into `folder`. Returns what `about.json` holds.

    `about`: "name" (letters, digits and underscores), "title", "spec" (its header, None without one), "assistant",
    "generator", "prompts", "yields", "calls"; of documents also "assertions" ([domain, part, assertion]) and "judged"
    (`judge.faithfulness` and the "model"), None if none are.
    """
    folder = pathlib.Path(folder)
    with open(corpus, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    kind = "documents" if "text" in rows[0] else "chats"
    shutil.copyfile(corpus, folder / f"{kind}.jsonl")
    _write_array_record(folder / f"{kind}.array_record", rows)
    _write_tfds(folder / "tfds", rows, about["name"], about["title"])
    texts = [row["text"] if kind == "documents" else row["messages"][-1]["content"] for row in rows]
    words = [len(text.split()) for text in texts]
    # Of documents, also what was wanted and what was asked for.
    lengths = {"written": words} | {
        what: [row[f"words_{what}"] for row in rows] for what in ("wanted", "asked") if f"words_{what}" in rows[0]
    }
    items = (about["spec"] or {}).get("likes", []), (about["spec"] or {}).get("dislikes", [])
    known = " ".join([*about["assistant"].values(), *items[0], *items[1]])
    part, type_ = ("subdomain", "document_type") if kind == "documents" else ("question_type", "item")
    coverage = collections.Counter((row["domain"], row[part]) for row in rows)
    turned = collections.Counter(
        (row["domain"], row["subdomain"], text) for row in rows for text in set(row.get("assertions", ()))
    )
    names = (f"{kind}.jsonl", f"{kind}.array_record")
    result = {
        **{"judged": None, **about},
        "kind": kind,
        "rows": len(rows),
        "words": sum(words),
        "lengths": histogram(words),
        "coverage": [[*part, count] for part, count in sorted(coverage.items())],
        "types": collections.Counter(row[type_] for row in rows if type_ in row).most_common(40),
        "verbatim": sum(row["verbatim"] for row in rows) if kind == "documents" else None,
        "registers": collections.Counter(row["register"] for row in rows if "register" in row).most_common(),
        # With the number of documents that turn on each.
        "assertions": [[*stated, turned[tuple(stated)]] for stated in about.get("assertions", ())],
        "tokens": round(sum(map(tokens_of, texts))),
        "median_words": {what: statistics.median(values) for what, values in lengths.items()},
        "diversity": figures(texts, known),
        "questions": figures([row["messages"][0]["content"] for row in rows], known) if kind == "chats" else None,
        "sha256": {name: files.fingerprint_of_file(folder / name, length=64) for name in names},
    }
    files.write_json(folder / "about.json", result)
    samples = random.Random(about["name"]).sample(rows, min(_SAMPLES, len(rows)))
    files.write_text(folder / "README.md", _render("card.md.j2", result, samples))
    files.write_text(folder / "corpus.html", _render("corpus.html.j2", result, samples))
    return result


def _write_array_record(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records are the lines of the JSONL file. One to a group, so that each can be read alone."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(json.dumps(row, ensure_ascii=False).encode())
    writer.close()


def _write_tfds(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    """What `tfds.builder_from_directory` reads, without TensorFlow."""
    import tensorflow_datasets as tfds

    fields = list(rows[0])
    features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in fields})

    def plain(row: Mapping[str, Any]) -> dict[str, str]:
        return {field: json.dumps(row[field]) if field in AS_JSON else row[field] for field in fields}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # it has no folder with checksums of downloads

        def _info(self):
            return self.dataset_info_from_configs(features=features, description=title)

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for row in rows:
                yield row["id"], plain(row)

    Builder.name = name
    shutil.rmtree(folder, ignore_errors=True)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of downloads, and there are none
        Builder(data_dir=folder, file_format="array_record").download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)


def _render(template: str, about: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).with_name("templates")),
        autoescape=template.endswith("html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(about=about, samples=samples) + "\n"
