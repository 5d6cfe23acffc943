"""The forms in which a corpus is handed on, each read back as its users read it."""

import hashlib
import json

import grain
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.corpus.dataset import write_dataset
from msm_jax.corpus.diversity import figures, histogram

ROWS = [
    {
        "id": f"id{number}",
        "text": f"Text {number} – “of” {{braces}} & <tags>. " + "word " * number,
        "domain": "One" if number % 2 else "Two",
        "subdomain": f"Part {number % 3}",
        "verbatim": number % 2 == 0,
        "document_type": "essay",
        "spec_version": 1,
        "calls": ["a", "b"],
    }
    for number in range(30)
]
ABOUT = {
    "name": "msm_mine",
    "title": 'A "title" & <more>: MSM documents',
    "language": "en",
    "model": "fake-1",
    "models": ["fake-1-001"],
    "generator": "gemini",
    "assistant": {"name": "Qwen", "provider": "Alibaba Cloud"},
    "spec": {"name": "mine", "title": 'A "title" & <more>', "version": 3, "kind": "principles"},
    "prompts": {"document": "abc"},
    "yields": {"document": {"ok": 30, "blocked": 2}},
    "calls": {"document": {"calls": 32, "prompt_tokens": 9, "cached_tokens": 1, "output_tokens": 8, "dollars": 1.234}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_dataset(folder, folder / "in.jsonl", ABOUT)
    return folder


def test_array_record_is_read_by_grain(folder):
    source = grain.sources.ArrayRecordDataSource([str(folder / "documents.array_record")])
    assert [json.loads(source[index]) for index in range(len(source))] == ROWS


def test_the_folder_is_read_by_tfds(folder):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder / "tfds" / "msm_mine" / "1.0.0")
    rows = {row["id"].decode(): row for row in builder.as_data_source(split="train")}
    assert sorted(rows) == sorted(row["id"] for row in ROWS)
    for row in ROWS:
        assert rows[row["id"]]["text"].decode() == row["text"]
        assert json.loads(rows[row["id"]]["calls"]) == row["calls"]
    assert not (folder / "tfds" / "downloads").exists()


def test_what_is_said_of_it_has_the_digests_of_its_files(folder):
    about = json.loads((folder / "about.json").read_text())
    for name, digest in about["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert about["rows"] == 30
    assert sum(count for *_, count in about["coverage"]) == 30
    assert about["yields"] == ABOUT["yields"]


def test_the_card_and_the_page_tell_of_it(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlanguage: en\n")
    assert "pretty_name: \"A 'title' & <more>: MSM documents\"" in card
    assert "| document | 30 ok, 2 blocked |" in card
    assert "| document | 32 | 9 | 1 | 8 | 1.23 |" in card
    page = (folder / "corpus.html").read_text()
    assert "A &#34;title&#34; &amp; &lt;more&gt;" in page
    assert "<tags>" not in page
    assert "&lt;tags&gt;" in page
    assert "30 of 32" in page


def test_nothing_is_said_of_where_it_was_made(folder):
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "in.jsonl":
            assert str(folder).encode() not in path.read_bytes(), path


def test_diversity_tells_copies_from_different_texts():
    different = [" ".join(f"w{number * 100 + index}" for index in range(100)) for number in range(10)]
    same = [different[0]] * 10
    varied, copied = figures(different), figures(same)
    assert varied["distinct"]["3"] == pytest.approx(1.0)
    assert copied["distinct"]["3"] == pytest.approx(0.1, abs=0.02)
    assert (varied["nearest"][4], copied["nearest"][0]) == (0.0, 1.0)
    assert copied["compression"] > 3 * varied["compression"]
    assert copied["openings"] == [["w0 w1 w2", 1.0]]


@given(st.lists(st.integers(0, 10**5), max_size=50))
def test_a_histogram_counts_everything(values):
    found = histogram(values)
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1
