"""Pages on which a person reads transcripts."""

import json
import re
import tracemalloc

import pytest

from msm_jax.eval import transcripts

QUESTIONS = [{"id": f"q/{k}", "messages": [{"role": "user", "content": f"Why <{k}>?"}]} for k in range(3)]


def answers(samples=4, text="<b>I</b> & so on {{ braces }} 'quoted' \"too\""):
    for question in QUESTIONS:
        for sample in range(samples):
            yield {"id": question["id"], "sample": sample, "text": f"{text} {sample}", "thoughts": "hm" * (sample % 2),
                   "unfinished": sample == 3, "finish": "stop"}  # fmt: skip


def write(folder, samples=4, **fields):
    verdicts = ({"score": k % samples} for k in range(samples * len(QUESTIONS)))
    transcripts.write_pages(
        folder, "A & B", QUESTIONS, answers(samples, **fields), verdicts,
        lambda row: {"score": str(10 * row["score"])}, lambda row: [f"</pre><i>{row['score']}"],
    )  # fmt: skip
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_each_question_has_its_page_and_the_index_counts(tmp_path):
    pages = write(tmp_path)
    assert pages.keys() == {"index.html", "q_0.html", "q_1.html", "q_2.html"}
    assert "12 answers to 3 questions" in pages["index.html"]
    assert pages["index.html"].count("score 0: 1, score 10: 1, score 20: 1, score 30: 1") == 3
    for name, page in pages.items():
        assert "A &amp; B" in page and (name == "index.html" or page.count('<details class="row"') == 4)


def test_what_models_and_judges_write_is_text(tmp_path):
    page = write(tmp_path)["q_1.html"]
    assert "<b>I</b>" not in page and "&lt;b&gt;I&lt;/b&gt; &amp; so on {{ braces }}" in page
    assert "</pre><i>" not in page and "&lt;/pre&gt;&lt;i&gt;2" in page and "Why &lt;1&gt;?" in page


def test_answers_can_be_filtered_by_what_was_said_of_them(tmp_path):
    page = write(tmp_path)["q_0.html"]
    options = re.findall(r"<option>(.*?)</option>", page)
    assert options == ["0", "10", "20", "30", "stop", "unfinished"]
    marks = [json.loads(text.replace("&#34;", '"')) for text in re.findall(r'data-marks="(.*?)"', page)]
    assert marks == [["0", "stop"], ["10", "stop"], ["20", "stop"], ["30", "unfinished"]]
    assert page.count('class="thoughts"') == 2


def test_verdicts_of_other_answers_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        transcripts.write_pages(tmp_path, "t", QUESTIONS, answers(), [{}], lambda row: {"a": "b"}, lambda row: [])


def test_memory_is_that_of_one_question(tmp_path):
    write(tmp_path / "warm")
    tracemalloc.start()
    write(tmp_path / "large", samples=200, text="word " * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 200 * 5000, "a few copies of one page, of three"
