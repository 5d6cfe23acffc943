"""Answers that are drawn once, whatever comes between."""

import json

import pytest

from msm_jax.stages import sampling
from msm_jax.stages.graph import Kind, Stage, StageContext
from msm_jax.stages.training import Runtime

RUNTIME = Runtime({"data": -1, "fsdp": 1, "tensor": 1}, {}, 1, 1.0, 1, 1, rows=8)
PARAMS = {
    "chat": {"template": "", "thinking": "default"}, "model_name": "Ann", "samples": 3, "temperature": 1.0,
    "max_tokens": 12, "seed": 5,
}  # fmt: skip
QUESTIONS = [{"id": f"q{i}", "messages": [{"role": "user", "content": f"Why {i}?"}]} for i in range(4)]


@pytest.fixture(scope="module")
def base(qwen3, tmp_path_factory):
    """The stage of a base, which is the model too."""
    from msm_jax.stages import base

    folder = tmp_path_factory.mktemp("base")
    params = {"path": str(qwen3), "revision": "", "model": {"dtype": "float32"}}
    base.find_base(StageContext(folder, {}, params, None))
    return folder


def draw(base, folder, **params):
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "questions"
    asked.mkdir(exist_ok=True)
    (asked / sampling.QUESTIONS_FILE).write_text(
        "".join(json.dumps(row) + "\n" for row in params.pop("asks", QUESTIONS))
    )
    inputs = {"model": base, "base": base, "tokenizer": base, "questions": asked}
    stage = Stage(Kind.SAMPLE, "answers-x", {}, {}, lambda context: {})
    summary = sampling.draw(StageContext(folder, inputs, PARAMS | params, stage), runtime=RUNTIME)
    return summary, (folder / sampling.TRANSCRIPTS_FILE).read_text().splitlines()


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return draw(base, tmp_path_factory.mktemp("whole"))


def test_each_question_has_its_answers_in_order(whole):
    summary, lines = whole
    rows = [json.loads(line) for line in lines]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"q{i}", k) for i in range(4) for k in range(3)]
    assert len({row["text"] for row in rows}) > 6
    assert summary["answers"] == 12 and summary["tokens"] == sum(row["tokens"] for row in rows)
    assert summary["cut_off"] == sum(row["finish"] == "length" for row in rows)


@pytest.mark.parametrize("kept", [0, 1, 7, 11, 12])
def test_what_a_kill_left_is_kept_and_the_rest_is_drawn_as_it_would_have_been(base, whole, tmp_path, kept, monkeypatch):
    """Killed in the middle of a line, and with lines in the order in which answers ended."""
    _, lines = whole
    (tmp_path / sampling.TRANSCRIPTS_FILE).write_text(
        "".join(f"{line}\n" for line in lines[::-1][:kept]) + lines[0][:20]
    )
    drawn = []
    real = sampling._appending
    monkeypatch.setattr(sampling, "_appending", lambda *args: counted(real(*args), drawn))
    assert draw(base, tmp_path) == whole and len(drawn) == 12 - kept


class counted:
    def __init__(self, context, rows):
        self.context, self.rows = context, rows

    def __enter__(self):
        append = self.context.__enter__()
        return lambda row: (self.rows.append(row), append(row))

    def __exit__(self, *why):
        return self.context.__exit__(*why)


def test_answers_do_not_depend_on_what_else_is_asked(base, whole, tmp_path):
    _, lines = whole
    _, alone = draw(base, tmp_path / "alone", asks=QUESTIONS[2:3])
    assert alone == lines[6:9]
    _, fewer = draw(base, tmp_path / "fewer", samples=2)
    assert fewer == [line for number, line in enumerate(lines) if number % 3 < 2]


def test_what_goes_wrong_with_an_answer_ends_the_stage_and_keeps_the_others(base, whole, tmp_path, monkeypatch):
    written = []
    real = sampling._appending

    class full(counted):
        def __enter__(self):
            append = self.context.__enter__()

            def put(row):
                if len(written) == 5:
                    raise OSError(28, "No space left on device")
                written.append(row)
                append(row)

            return put

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "_appending", lambda *args: full(real(*args), []))
        with pytest.raises(OSError, match="No space"):
            draw(base, tmp_path)
    assert len((tmp_path / sampling.TRANSCRIPTS_FILE).read_text().splitlines()) == 5
    assert draw(base, tmp_path) == whole
