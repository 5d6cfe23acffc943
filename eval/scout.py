"""How far a scan of Inspect Scout (`eval/scanners.py`) agrees with what was judged in a run.

    python -m msm_jax.eval.export runs/eval_am --out=logs --evaluation=reasoning
    scout scan msm_jax/eval/scanners.py -T logs --model=google/gemini-3-flash-preview --scans=scans
    python -m msm_jax.eval.scout runs/eval_am scans/SCAN

Prints the share of transcripts on which both say the same, and kappa.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from msm_jax.errors import UserError
from msm_jax.eval import eval_awareness, reasoning, stats
from msm_jax.eval.export import graded

_SCANNED = {"kinds_of_reasoning": reasoning, "talk_about_being_tested": eval_awareness}


def said_by_the_agent(messages: Sequence[Any]) -> str:
    """Thoughts, texts and calls of tools of all messages of Inspect that are the assistant's, in their order."""
    parts = []
    for message in messages:
        if message.role != "assistant":
            continue
        content = message.content
        for part in [content] if isinstance(content, str) else content:
            parts.append(part if isinstance(part, str) else getattr(part, part.type, ""))  # .text, .reasoning
        parts += [f"{call.function}({json.dumps(call.arguments)})" for call in message.tool_calls or ()]
    return "\n\n".join(filter(None, parts))


def compare(workdir: pathlib.Path, scan: str, store: pathlib.Path | None = None) -> str:
    """How far the scanners of a scan agree with the verdicts of a run, on the answers that both have, as text.

    Raises: UserError if Scout is not installed, or they have no answer in common.
    """
    try:
        from inspect_scout import scan_results_df
    except ModuleNotFoundError:
        raise UserError("Inspect Scout is not installed; pip install inspect-scout") from None

    lines, found = [], scan_results_df(scan).scanners
    for name, module in _SCANNED.items():
        if name not in found:
            continue
        judged = _judged(workdir, store, module)
        scanned = {}  # the same answers may lie in the logs of several evaluations
        for row in found[name].to_dict("records"):
            # As `export` names them.
            key = row["transcript_model"], row["transcript_task_id"], int(row["transcript_task_repeat"])
            scanned.setdefault(key, _truth(row["value"]))
        both = [key for key, value in scanned.items() if value is not None and judged.get(key) is not None]
        if both:
            agreed = stats.agreement([int(judged[key]) for key in both], [scanned[key] for key in both])
            kappa = "-" if agreed.kappa.estimate is None else f"{agreed.kappa.estimate:.2f}"
            lines.append(
                f"{name}: {len(both)} transcripts, the scan and the run agree on {agreed.agree.estimate:.2f} of them, "
                f"kappa {kappa}"
            )
    if not lines:
        raise UserError(f"{scan}: no transcript of it was judged in {workdir}; scan the logs that `export` wrote of it")
    return "\n".join(lines)


def _judged(
    workdir: pathlib.Path, store: pathlib.Path | None, module: ModuleType
) -> dict[tuple[str, str, int], bool | None]:
    name = module.__name__.rpartition(".")[2]
    found = {}
    for folder in graded(workdir, store, name):
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["about"]
        with open(folder / "verdicts.jsonl", encoding="utf-8") as file:
            for row in map(json.loads, file):
                found[f"msm_jax/{about['arm']}-s{about['seed']}", row["cell"], row["sample"] + 1] = module.counts(row)
    return found


def _truth(value: Any) -> int | None:
    """Of a data frame, where a value may have become a number or a text, and none may be NaN."""
    return {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}.get(str(value).casefold())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m msm_jax.eval.scout", description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=pathlib.Path, help="of a run whose transcripts were judged")
    parser.add_argument("scan", help="folder of the scan")
    parser.add_argument("--store", type=pathlib.Path, help="of the run, if it had one")
    options = parser.parse_args(arguments)
    try:
        print(compare(options.workdir, options.scan, options.store))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
