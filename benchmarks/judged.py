"""What it takes an experiment to judge 8,100 stored answers by the scripted judge, and to make its report of them.

    python -m benchmarks.judged                    some ten seconds on two cores

The stage is the one that an experiment runs (`stages.judging.grade`): 27 cells x 300 answers are read, judged through
the store of calls, and summed up, and pages of transcripts written. Then the same again, when all verdicts are in the
store, and the report. Prints one line of JSON. Needs inspect-evals for the texts of two scenarios; docs/agentic.md says
how to install it.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time

from benchmarks.agentic import replies
from msm_jax.config import reading
from msm_jax.corpus.records import write_jsonl
from msm_jax.eval.agentic import grading
from msm_jax.eval.report import write_report
from msm_jax.stages import judging
from msm_jax.stages.graph import Kind, Stage, StageContext
from msm_jax.stages.sampling import QUESTIONS_FILE, TRANSCRIPTS_FILE

_EVALUATION = "agentic_misalignment"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300, help="answers of each cell")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write_answers(folder, options.samples)
        first, summary = _timed(lambda: _judge(folder, "first"))
        again, same = _timed(lambda: _judge(folder, "again"))
        assert same == summary
        report, _ = _timed(lambda: write_report(folder / "report", _result(summary)))
    print(
        json.dumps(
            {
                "answers": 27 * options.samples,
                "seconds_to_judge": round(first, 1),
                "seconds_to_read_verdicts_and_write_pages": round(again, 1),
                "seconds_to_report": round(report, 1),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "load": round(os.getloadavg()[0], 1),
                "cores": os.cpu_count(),
            }
        )
    )


def _timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _write_answers(folder: pathlib.Path, samples: int) -> None:
    questions, texts = grading.questions("Qwen"), itertools.cycle(replies())
    about = {"thoughts": "", "unfinished": False, "finish": "stop", "tokens": 700}
    answers = [
        {"id": question["id"], "sample": sample, "text": f"{next(texts)}\n({question['id']}, {sample})", **about}
        for question in questions
        for sample in range(samples)
    ]
    write_jsonl(folder / QUESTIONS_FILE, questions)
    write_jsonl(folder / TRANSCRIPTS_FILE, answers)


def _judge(folder: pathlib.Path, name: str) -> dict:
    config = reading.load(
        "configs/eval.py:am", [("generator", "offline"), ("calls.store", str(folder / "calls.sqlite"))]
    )
    params = {"evaluation": _EVALUATION, "model": "scripted", "repeats": 1}
    stage = Stage(Kind.VERDICTS, f"verdicts-{name}", params, {}, judging.grade, 1, arm="base", seed=0)
    (folder / name).mkdir()
    inputs = {"questions": folder, "transcripts": folder}
    return judging.grade(StageContext(folder / name, inputs, params, stage), config=config)


def _result(summary: dict) -> dict:
    """As `results.json` of an experiment has it, of one arm."""
    arm = {"name": "base", "label": "base", "has_aft": False, "spec": None, "value": None}
    graded = {
        "evaluation": _EVALUATION,
        "arm": "base",
        "spec": None,
        "seed": 0,
        "stage": "verdicts",
        "summary": summary,
    }
    return {
        "experiment": "benchmark", "created": "", "config": {"base": {"path": "Qwen"}, "seeds": [0]},
        "model": {"parameters": 0}, "arms": [arm], "columns": [], "seeds": [0], "scores": [], "graded": [graded],
        "controls": [], "stages": [], "corpora": [],
    }  # fmt: skip


if __name__ == "__main__":
    main()
