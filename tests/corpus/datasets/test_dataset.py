"""The forms in which a corpus is handed on, each read back as its users read it."""

import hashlib
import json

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.datasets.dataset import write_dataset
from msm_jax.corpus.datasets.diversity import figures, histogram
from tests.corpus.datasets.source_files import ABOUT, ROWS, chat


def test_array_record_is_read_by_grain(written):
    source = grain.sources.ArrayRecordDataSource([str(written / "documents.array_record")])
    assert [json.loads(source[index]) for index in range(len(source))] == ROWS


def test_the_folder_is_read_by_tfds(written):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(written / "tfds" / "msm_mine" / "1.0.0")
    rows = {row["id"].decode(): row for row in builder.as_data_source(split="train")}
    assert sorted(rows) == sorted(row["id"] for row in ROWS)
    for row in ROWS:
        assert rows[row["id"]]["text"].decode() == row["text"]
        assert json.loads(rows[row["id"]]["calls"]) == row["calls"]
    assert not (written / "tfds" / "downloads").exists()


def test_what_is_said_of_it_has_the_digests_of_its_files(written):
    about = json.loads((written / "about.json").read_text())
    for name, digest in about["sha256"].items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest
    assert about["rows"] == 30
    assert sum(count for *_, count in about["coverage"]) == 30
    assert about["yields"] == ABOUT["yields"]
    assert about["assertions"] == [
        ["One", "Part 1", "It is so.", 1],
        ["Two", "Part 2", "It is so.", 1],
        ["Two", "Part 2", "Or <so>.", 0],
    ]
    assert about["registers"] == [["dialogue", 20], ["record", 10]]
    assert about["median_words"] == {"written": 21.5, "wanted": 10, "asked": 13}
    assert about["judged"] == ABOUT["judged"]


def test_the_card_and_the_page_tell_of_it(written):
    card = (written / "README.md").read_text()
    assert card.startswith("---\nlanguage: en\n")
    assert "pretty_name: \"A 'title' & <more>: MSM documents\"" in card
    assert "| document | 30 ok, 2 blocked |" in card
    assert "| document | 32 | 9 | 1 | 8 | 1.23 |" in card
    page = (written / "corpus.html").read_text()
    assert "<tags>" not in page
    for text in ("A &#34;title&#34; &amp; &lt;more&gt;", "&lt;tags&gt;", "30 of 32", "5 of 6"):
        assert text in page
    assert "**Unfaithful to the spec**: 2 of 20 claims (judged by `other-1`; 1 against the spec, 1 not in it)" in card
    assert "22 words in the median, where 10 were wanted and 13 asked for" in card
    for text in ("Unfaithful to the spec: 2 of 20 claims.", "Qwen &lt;sings&gt;.", "Or &lt;so&gt;."):
        assert text in page
    assert "Of 3 assertions of the spec, 2 are what some document turns on." in page


def test_nothing_is_said_of_where_it_was_made(written):
    for path in written.rglob("*"):
        if path.is_file() and path.name != "in.jsonl":
            assert str(written).encode() not in path.read_bytes(), path


def test_diversity_tells_copies_from_different_texts():
    different = [" ".join(f"w{number * 100 + index}" for index in range(100)) for number in range(10)]
    same = [different[0]] * 10
    varied, copied = figures(different), figures(same)
    assert varied["distinct"]["3"] == pytest.approx(1.0)
    assert copied["distinct"]["3"] == pytest.approx(0.1, abs=0.02)
    assert (varied["nearest"][4], copied["nearest"][0]) == (0.0, 1.0)
    assert copied["compression"] > 3 * varied["compression"]
    assert copied["openings"] == [["w0 w1 w2", 1.0]]
    assert figures(["<think>\nIt is late.\n</think>\n\nNo."])["openings"] == [["It is late", 1.0]]


def test_diversity_is_that_of_a_random_sample():
    texts = [f"Here is one who asks about it, {number}." for number in range(400)] + ["Then another asks."] * 400
    openings = dict(figures(texts)["openings"])
    assert 0.4 < openings["Here is one"] < 0.6
    assert openings["Here is one"] + openings["Then another asks"] == pytest.approx(1)


def test_names_are_counted_by_text_and_those_that_are_known_are_not():
    texts = [
        "So Mara asked Qwen, and Mara heard Colby named.",
        "Then Mara left, as Tove said.",
        "Tove would not say so.",
    ]
    assert figures(texts, "Qwen Alibaba Colby")["names"] == [["Mara", 2 / 3], ["Tove", 1 / 3]]


def test_questions_are_measured_as_answers_are(tmp_path):
    rows = [
        {"id": str(n), "domain": "d", "question_type": "direct",
         "messages": chat(f"May I ask you, as Ivo did, about {n}?", f"Yes, {n}.")}
        for n in range(5)
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = write_dataset(tmp_path, tmp_path / "in.jsonl", ABOUT | {"spec": None, "assertions": (), "judged": None})
    assert about["questions"]["openings"] == [["May I ask", 1.0]]
    assert about["questions"]["names"] == [["Ivo", 1.0]]
    assert about["diversity"]["openings"][0][0].startswith("Yes")
    assert "Of 5 questions, a random sample." in (tmp_path / "corpus.html").read_text()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**5), max_size=50))
def test_a_histogram_counts_everything(values):
    found = histogram(values)
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1
