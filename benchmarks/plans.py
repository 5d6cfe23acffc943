"""Records docs/plans: what each shipped config takes on TPU slices, as the TPU compiler has it. No TPU is needed.

    python -m benchmarks.plans                     all of them: one to six minutes for each
    python -m benchmarks.plans qwen32b_am v5p      those whose page, title or command has both words

Each page shows commands and what they print; what is not planned anew stays as it is.
"""

import dataclasses
import importlib.metadata
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "plans"
PAGES = {
    "qwen32b_am": "16 rows of 8,192 tokens a step, LoRA of rank 64 on Qwen2.5-32B-Instruct and, below, the variants. "
    "2x2 (2x2x1) is the\nsmallest slice that can be planned: the chips of one host. In bf16 the recipe fits on that of "
    "v6e and v5p; of v5e on 2x4 (base and adapter\nalone are 16.76 GiB a chip of 2x2), or with the base in 8-bit "
    "integers on 2x2",
    "llama8b_cheese": "16 rows of 4,096 tokens a step, LoRA of rank 64 on Llama-3.1-8B",
    "smollm_cheese": "the small demonstration on published weights; made for a CPU",
    "cheese_tiny": "the micro-world, which pretrains a model of its own; made for a CPU",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One command. `variant` is that of the config, and `flags` is what is put behind `--config.`"""

    page: str
    topology: str
    title: str = ""
    variant: str = ""
    flags: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        return ", ".join(filter(None, (self.variant, self.topology, self.title)))

    @property
    def command(self) -> list[str]:
        config = f"configs/{self.page}.py{':' if self.variant else ''}{self.variant}"
        command = ["python", "-m", "msm_jax.launch", f"--config={config}", "--mode=plan", f"--topology={self.topology}"]
        return command + [f"--config.{flag}" for flag in self.flags]


def microbatches(count: int) -> tuple[str, str]:
    return f"msm.accumulation={count}", f"aft.accumulation={count}"


INT8 = "int8_base=true"
SMALL_ROWS = ("msm.batch_size=4", "aft.batch_size=4")  # of the config's 2, four chips would get none
PLANS = [
    Plan("qwen32b_am", "v5e:2x2", "int8 base, a row at a time: too small", flags=(INT8, *microbatches(4))),
    Plan(
        "qwen32b_am",
        "v5e:2x2",
        "int8 base, inputs of layers in the host's memory",
        flags=(INT8, "execution.remat=offload_inputs", *microbatches(4)),
    ),
    Plan("qwen32b_am", "v5e:2x4", "int8 base", flags=(INT8, *microbatches(2))),
    Plan(
        "qwen32b_am",
        "v5e:2x4",
        "inputs of layers in the host's memory",
        flags=("execution.remat=offload_inputs", *microbatches(2)),
    ),
    Plan("qwen32b_am", "v5e:4x4"),
    Plan("qwen32b_am", "v6e:2x2", "int8 base", flags=(INT8, *microbatches(4))),
    Plan("qwen32b_am", "v6e:2x2", flags=microbatches(4)),
    Plan("qwen32b_am", "v6e:2x4", flags=microbatches(2)),
    Plan("qwen32b_am", "v5p:2x2x1", "less computed again", flags=("execution.remat=save_qkv", *microbatches(2))),
    Plan("qwen32b_am", "v5p:2x2x4", "little computed again", flags=("execution.remat=save_projections",)),
    Plan("qwen32b_am", "v5e:4x4", variant="qwen3"),
    Plan("qwen32b_am", "v5e:2x4", variant="qwen2_5_14b", flags=microbatches(2)),
    Plan("qwen32b_am", "v5e:2x4", variant="qwen3_14b", flags=microbatches(2)),
    Plan("llama8b_cheese", "v5e:2x2", "int8 base", flags=(INT8, *microbatches(4))),
    Plan("llama8b_cheese", "v5e:2x4"),
    Plan("llama8b_cheese", "v6e:2x2"),
    Plan("llama8b_cheese", "v5p:2x2x1", "little computed again", flags=("execution.remat=save_projections",)),
    Plan("smollm_cheese", "v5e:2x2", flags=("base.path=HuggingFaceTB/SmolLM2-135M-Instruct", *SMALL_ROWS)),
    Plan("cheese_tiny", "v5e:2x2", flags=("execution.attention=blocked",)),
]


def main() -> None:
    chosen = [plan for plan in PLANS if all(word in f"{plan.heading} {plan.command}" for word in sys.argv[1:])]
    if not chosen:
        raise SystemExit(f"no plan has all of these words: {' '.join(sys.argv[1:])}")
    for plan in chosen:
        print(shlex.join(plan.command), flush=True)
        printed = _run(plan)
        print(printed, flush=True)
        path = FOLDER / f"{plan.page}.md"
        sections = read_sections(path) | {plan.heading: section(plan, printed)}
        path.write_text(page_text(plan.page, sections))


def _run(plan: Plan) -> str:
    """What the command prints of the slice."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, *plan.command[1:], f"--workdir={workdir}"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(plan.command)}: ended with {done.returncode}\n{done.stderr}")
    _evaluation, _, rest = done.stdout.partition("\n")
    return rest.rpartition("written to ")[0]


def section(plan: Plan, printed: str) -> str:
    return f"```bash\n{shlex.join(plan.command)}\n```\n\n```\n{printed.rstrip()}\n```\n"


def read_sections(path: pathlib.Path) -> dict[str, str]:
    """Heading -> what is below it, of a page."""
    if not path.exists():
        return {}
    return dict(part.split("\n\n", 1) for part in path.read_text().split("\n## ")[1:])


def page_text(page: str, sections: Mapping[str, str]) -> str:
    """Markdown, with the sections of today's plans."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("libtpu", "jax"))
    intro = (
        f"# Plans of `configs/{page}.py`\n\n{PAGES[page]}. Compiled by the TPU compiler ({versions}) with no TPU at "
        "hand by `python -m benchmarks.plans`: each block is what the\ncommand above it prints. Times are those of the "
        "roofline, which a real run does not reach; prices those of `msm_jax/experiment/prices.toml`.\n"
    )
    headings = [plan.heading for plan in PLANS if plan.page == page and plan.heading in sections]
    return "\n".join([intro, *(f"## {heading}\n\n{sections[heading]}" for heading in headings)])


if __name__ == "__main__":
    main()
