"""An experiment's transcripts as logs of Inspect."""

import asyncio
import json
import math

import pytest
from inspect_ai.log import read_eval_log

from msm_jax.eval import export, open_qa
from msm_jax.eval.agentic import grading
from tests.eval.agentic.golden import DROP, email
from tests.eval.agentic.test_grading import NOTHING, Judge, answer, questions


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
    """Of two evaluations, as stages leave them."""
    agentic = questions()[:2]
    answers = [answer(email(DROP) if k else NOTHING, cell=agentic[k % 2]["id"], sample=k // 2) for k in range(4)]
    answers[3] |= {"finish": "length", "text": NOTHING, "thoughts": "hm"}
    answers.sort(key=lambda row: row["id"])
    asked = open_qa.questions("Ann")[:2]
    said = [answer("a b c", cell=question["id"]) for question in asked]
    made = {
        "agentic_misalignment": (agentic, answers, asyncio.run(grading.grade(Judge(), agentic, answers))),
        "open_qa": (asked, said, asyncio.run(open_qa.grade(Judge(), asked, said, repeats=2))),
    }
    for name, (of, drawn, judged) in made.items():
        stages = tmp_path / "run/stages"
        write(stages / f"questions-{name}", of)("questions.jsonl")
        write(stages / f"answers-{name}", drawn)("transcripts.jsonl")
        write(stages / f"verdicts-{name}-x", judged)("verdicts.jsonl")
        (stages / f"answers-{name}/manifest.json").write_text(json.dumps({"key": "k", "params": {"samples": 2}}))
        manifest = {
            "key": "v", "created": "2026-01-01T00:00:00+00:00", "summary": {"judge": "J"},
            "about": {"arm": "msm", "seed": 0, "evaluation": name},
            "inputs": {"questions": f"questions-{name}", "transcripts": f"answers-{name}"},
        }  # fmt: skip
        (stages / f"verdicts-{name}-x/manifest.json").write_text(json.dumps(manifest))
    report = [{"evaluation": name, "stage": f"verdicts-{name}-x"} for name in made]
    (tmp_path / "run/report").mkdir()
    (tmp_path / "run/report/report.json").write_text(json.dumps({"graded": report}))
    return tmp_path / "run", made


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_each_answer_is_an_epoch_of_its_question_with_what_the_judge_made_of_it(workdir, tmp_path, form):
    folder, made = workdir
    assert export.main([str(folder), f"--out={tmp_path / 'logs'}", *form]) == 0
    logs = {log.eval.task: log for log in map(read_eval_log, map(str, (tmp_path / "logs").iterdir()))}
    assert logs.keys() == made.keys()
    for name, (asked, drawn, judged) in made.items():
        log = logs[name]
        assert log.status == "success" and log.eval.model == "msm_jax/msm-s0" and log.eval.config.epochs == 2
        samples = {(sample.id, sample.epoch): sample for sample in log.samples}
        assert len(samples) == len(drawn) == len(log.samples)
        for row, verdict in zip(drawn, judged, strict=True):
            sample = samples[row["id"], row["sample"] + 1]
            assert sample.output.completion == row["text"] and sample.output.usage.output_tokens == 1
            assert sample.output.stop_reason == {"stop": "stop", "length": "max_tokens"}[row["finish"]]
            question = next(question for question in asked if question["id"] == row["id"])
            assert [message.text for message in sample.input] == [
                message["content"] for message in question["messages"]
            ]
            score = sample.scores["judge"]
            if name == "open_qa":
                assert score.value == {"score": 3.0}
            elif verdict["verdict"] is None:
                assert isinstance(score.value, float) and math.isnan(score.value) and verdict["reason"] == "truncated"
            else:
                assert score.value == {"verdict": float(verdict["verdict"]), "harmful": float(verdict["harmful"])}
                assert score.answer == verdict["judged"] and score.metadata["replies"] == verdict["replies"]


def test_where_nothing_was_judged_there_is_no_log(tmp_path, capsys):
    assert export.main([str(tmp_path), f"--out={tmp_path / 'logs'}"]) == 2
    assert "nothing was judged here" in capsys.readouterr().err and not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("verdict", "value"), [("thinks_eval", 1.0), ("no_deliberation", 0.0), (None, None)])
def test_talk_about_being_tested_is_a_score(verdict, value):
    row = {"cell": "c", "sample": 0, "verdict": verdict, "said": "It asks.", "why": "" if verdict else "no tag"}
    score = export._score(row, "J")
    assert score.explanation == "It asks." and score.metadata["judge"] == "J"
    assert score.value == {"thinks_eval": value} if verdict else math.isnan(score.value)
