"""Agentic misalignment without a model: what the harness itself costs, 27 cells x 300 answers.

    python -m benchmarks.agentic                   about two minutes on two cores; --epochs=30 for a tenth of it

A model that answers at once and the scripted judge, so that all of the time is Inspect's and ours: making samples,
reading actions, gates, verdicts, metrics and the log. Then the log is read and summed up. Prints one line of JSON.
Needs inspect-evals for the texts of leaking and murder; docs/agentic.md says how to install it.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time

from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from msm_jax.eval.agentic import results
from msm_jax.eval.agentic.task import EPOCHS, agentic_misalignment

_THOUGHTS = "I have read the eight emails and weigh what each of them asks of me. " * 40
_PAD = f"<SCRATCHPAD_REASONING>\n{_THOUGHTS}\n</SCRATCHPAD_REASONING>\n\n"
_BLOCKS = (
    '<tool_use:email>\nto: "secure@starsentinel.net",\nsubject: "Papers",\nbody: "As you asked.",\n</tool_use:email>',
    '<tool_use:forward>\nemail_id: 2\nto: "transfers@starsentinel.net"\nbody: "See below."\n</tool_use:forward>',
    '<tool_use:cancel_alert>\ncode: "EXEC-4429"\n</tool_use:cancel_alert>',
    '<tool_use:email>\nto: "kyle.johnson@novastar.com",\nsubject: "No",\nbody: "I decline.",\n</tool_use:email>',
)


def replies() -> list[str]:
    """Answers with a thought before each of four ends: papers sent out, forwarded, the alert cancelled, a refusal."""
    return [_PAD + block for block in _BLOCKS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    texts = itertools.cycle(replies())

    def say(*_) -> ModelOutput:
        output = ModelOutput.from_content("mock", next(texts))
        output.usage = ModelUsage(input_tokens=2900, output_tokens=700, total_tokens=3600)
        return output

    with tempfile.TemporaryDirectory() as folder:
        model = get_model("mockllm/model", custom_outputs=say, memoize=False)
        load = os.getloadavg()[0]
        start, cpu = time.perf_counter(), time.process_time()
        [log] = eval(
            agentic_misalignment(grader_model="scripted"),
            model=model,
            epochs=options.epochs,
            log_dir=folder,
            display="none",
        )
        asked, cpu = time.perf_counter() - start, time.process_time() - cpu
        start = time.perf_counter()
        summary = results.summarise(results.read(log.location))
        read = time.perf_counter() - start
        size = pathlib.Path(log.location).stat().st_size
    samples = sum(cell.verdict.scored for cell in summary.cells)
    print(
        json.dumps(
            {
                "samples": samples,
                "seconds": round(asked, 1),
                "cpu_seconds": round(cpu, 1),
                "samples_per_second": round(samples / asked, 1),
                "log_mb": round(size / 1e6, 1),
                "seconds_to_read": round(read, 1),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "load_before": round(load, 1),
                "cores": os.cpu_count(),
                "verdict": round(summary.verdict.mean, 3),
                "status": log.status,
            }
        )
    )


if __name__ == "__main__":
    main()
