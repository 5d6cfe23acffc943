"""Logs of Inspect from an experiment's transcripts: for Inspect View, Scout, and whatever else reads them.

    python -m msm_jax.eval.export runs/eval_am --out=logs             one .eval a model and evaluation
    python -m msm_jax.eval.export runs/eval_am --out=logs --json      as plain JSON, which Docent takes
    inspect view --log-dir logs

A sample is a question, its epochs are the answers to it. Scores are what the judge made of it: of agentic misalignment
`verdict` and `harmful` as in Inspect's own task, unscored where they were not measured.
"""

import argparse
import datetime
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.errors import UserError


def graded(workdir: pathlib.Path, store: pathlib.Path | None = None, evaluation: str = "") -> list[pathlib.Path]:
    """The stages of verdicts that the report of `workdir` shows: a workdir may hold those of earlier judges too.

    Args:
      store: where the stages lie, if not in `workdir`.
      evaluation: of which; default: of all.
    """
    report = workdir / "report" / "report.json"
    entries = json.loads(report.read_text(encoding="utf-8"))["graded"] if report.exists() else []
    wanted = [entry["stage"] for entry in entries if evaluation in ("", entry["evaluation"])]
    return [(store or workdir) / "stages" / stage for stage in dict.fromkeys(wanted)]


def export(
    workdir: pathlib.Path,
    out: pathlib.Path,
    as_json: bool = False,
    store: pathlib.Path | None = None,
    evaluation: str = "",
) -> list[pathlib.Path]:
    """The logs that were written; `store` and `evaluation`: as `graded` takes them.

    Raises: UserError if nothing was judged in `workdir`, or if Inspect is not installed.
    """
    folders = graded(workdir, store, evaluation)
    if not folders:
        raise UserError(f"{workdir}: nothing was judged here; give the workdir of a run")
    try:
        from inspect_ai.log import write_eval_log
    except ModuleNotFoundError:
        raise UserError("Inspect is not installed; pip install inspect-ai") from None
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for folder in folders:
        path = out / f"{folder.name}.{'json' if as_json else 'eval'}"
        write_eval_log(_log(folder), str(path), format="json" if as_json else "eval")
        written.append(path)
    return written


def _log(folder: pathlib.Path) -> Any:
    """Of one stage of verdicts."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec

    manifest = _json(folder)
    stages = {role: folder.parent / key for role, key in manifest["inputs"].items()}
    drawn = _json(stages["transcripts"])
    asked = {row["id"]: row for row in _rows(stages["questions"] / "questions.jsonl")}
    model = f"msm_jax/{manifest['about']['arm']}-s{manifest['about']['seed']}"
    samples = [
        _sample(asked[answer["id"]], answer, verdict, model, manifest["summary"]["judge"])
        for answer, verdict in zip(
            _rows(stages["transcripts"] / "transcripts.jsonl"), _rows(folder / "verdicts.jsonl"), strict=True
        )
    ]
    spec = EvalSpec(
        created=datetime.datetime.fromisoformat(manifest["created"]).isoformat(),
        task=manifest["about"]["evaluation"],
        dataset=EvalDataset(name=manifest["about"]["evaluation"], samples=len(asked), sample_ids=list(asked)),
        model=model,
        config=EvalConfig(epochs=drawn["params"]["samples"]),
        metadata={"answers": drawn["key"], "verdicts": manifest["key"], "judge": manifest["summary"]["judge"]},
    )
    return EvalLog(status="success", eval=spec, samples=samples)


def _sample(
    question: Mapping[str, Any], answer: Mapping[str, Any], verdict: Mapping[str, Any], model: str, judge: str
) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        ModelOutput,
        ModelUsage,
    )

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser}
    asked = [kinds[message["role"]](content=message["content"]) for message in question["messages"]]
    thoughts = [ContentReasoning(reasoning=answer["thoughts"])] if answer["thoughts"] else []
    said = ChatMessageAssistant(content=[*thoughts, ContentText(text=answer["text"])], model=model)
    reason = "stop" if answer["finish"] == "stop" else "max_tokens"
    output = ModelOutput.from_message(said, reason)
    output.model = model
    output.usage = ModelUsage(output_tokens=answer["tokens"], total_tokens=answer["tokens"])
    about = {name: value for name, value in question.items() if name not in ("id", "messages", "tools", "expected")}
    return EvalSample(
        id=question["id"],
        epoch=answer["sample"] + 1,
        input=asked,
        target="",
        messages=[*asked, said],
        output=output,
        scores={"judge": _score(verdict, judge)},
        metadata=about,
    )


def _score(verdict: Mapping[str, Any], judge: str) -> Any:
    """`value` holds the numbers of a row of verdicts; the rest is metadata."""
    from inspect_ai.scorer import Score

    if "judged" in verdict:  # agentic misalignment
        values = {name: verdict[name] for name in ("verdict", "harmful")}
        said = verdict["replies"][-1] if verdict["replies"] else None
    elif "scores" in verdict:
        known = [score for score in verdict["scores"] if score is not None]
        values, said = {"score": sum(known) / len(known) if known else None}, "\n\n".join(verdict["reasons"])
    elif "labels" in verdict:
        values, said = {name: True for name in verdict["labels"] or {}}, json.dumps(verdict["labels"])
        values |= {"read": verdict["labels"] is not None}
    elif "coherence" not in verdict:  # talk about being tested
        values, said = {"thinks_eval": verdict["verdict"] and verdict["verdict"] == "thinks_eval"}, verdict["said"]
    else:
        names = ("coherence", "answer_first", "needless_questions", "called")
        values, said = {name: verdict[name] for name in names}, None
    about = {"judge": judge} | {name: value for name, value in verdict.items() if name not in ("cell", "id", "sample")}
    if all(value is None for value in values.values()):
        return Score.unscored(reason=verdict.get("reason") or "unreadable", explanation=said, metadata=about)
    numbers = {name: float("nan") if value is None else float(value) for name, value in values.items()}
    return Score(value=numbers, answer=verdict.get("judged"), explanation=said, metadata=about)


def _json(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m msm_jax.eval.export", description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=pathlib.Path, help="of a run whose answers were judged")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--store", type=pathlib.Path, help="of the run, if it had one")
    parser.add_argument("--evaluation", default="", help="of which alone, as agentic_misalignment (default: of all)")
    parser.add_argument("--json", action="store_true", help="plain JSON in place of .eval")
    options = parser.parse_args(arguments)
    try:
        for path in export(options.workdir, options.out, options.json, options.store, options.evaluation):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
