"""Runs an experiment: `python -m msm_jax.launch --config=configs/NAME.py`.

Only the standard library and ml_collections are imported before the command line is understood, so that help and
mistakes answer at once.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from msm_jax import cli
from msm_jax import config as config_lib
from msm_jax.errors import UserError

_EPILOG = """\
any field of the configuration can be overridden:
  --config.aft.steps=60 --config.seeds='(0, 1)'

examples:
  python -m msm_jax.launch --config=configs/cheese_tiny.py
  python -m msm_jax.launch --config=configs/cheese_tiny.py --mode=show
  python -m msm_jax.launch --config=configs/qwen32b_am.py --mode=plan --topology=v5e:4x4,v5p:2x2x4
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status (msm_jax/cli.py)."""

    def launch() -> None:
        with config_lib.lacking_told():
            _launch(sys.argv[1:] if arguments is None else list(arguments))

    return cli.status_of(launch)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Parts the command line into flags and `--config.FIELD=VALUE` or `--config.FIELD VALUE`.

    Raises:
        UserError: an override has no value.
    """
    flags, overrides = [], []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--config."):
            flags.append(argument)
            continue
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"{argument} needs a value: {argument}=VALUE")
            value = remaining.pop(0)
        overrides.append((field, value))
    return flags, overrides


def _launch(arguments: list[str]) -> None:
    parser = cli.Parser(
        prog="python -m msm_jax.launch",
        description="Runs an experiment, or shows what it would do. What is done is not done again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="Python file with get_config()")
    parser.add_argument("--workdir", metavar="DIR", help="folder of the results (default: runs/NAME of the config)")
    parser.add_argument(
        "--store",
        default="",
        metavar="DIR",
        help="folder of the stages, which several runs may share: what one has done no other does (default: --workdir)",
    )
    parser.add_argument(
        "--mode",
        choices=("run", "show", "plan"),
        default="run",
        help="show: print the resolved configuration, the stages and what is done; train and call nothing. plan: "
        "compile the training steps for TPU slices that need not be there, and print memory, time and cost",
    )
    together = "many hosts; found by itself on TPU pods, GKE and Slurm"
    parser.add_argument("--coordinator", metavar="HOST:PORT", help=f"address of process 0 ({together})")
    parser.add_argument("--processes", type=int, metavar="N", help="how many processes run this together")
    parser.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument(
        "--topology", metavar="KIND:SHAPE,...", help="for --mode=plan: TPU slices, as v5p:2x2x4,v6e:4x4"
    )
    flags, overrides = split_overrides(arguments)
    options = parser.parse_args(flags)
    config = config_lib.load(options.config, overrides)
    if not config.get("name"):
        raise UserError(f"{options.config}: the configuration has no name; it names the folder of the results")
    if not isinstance(config.name, str) or not re.fullmatch(r"\w[\w.-]*", config.name):
        raise UserError(
            f"config.name is {config.name!r}: it names the folder of the results; use letters, digits, '.', '-' and '_'"
        )
    workdir = options.workdir or f"runs/{config.name}"
    if (options.mode == "plan") != bool(options.topology):
        raise UserError("--mode=plan and --topology=KIND:SHAPE go together, as in --mode=plan --topology=v5p:2x2x4")
    if options.mode == "plan":
        if config.kind == "corpora":
            raise UserError(f"{options.config}: trains nothing that could be planned; --mode=show says what it costs")
        from msm_jax.parallel.chips import prepare_environment

        prepare_environment()
        from msm_jax.experiment import plan

        plan.plan(config, options.topology.split(","), workdir)
        return

    from msm_jax.experiment import run

    if options.mode == "show":
        # `--mode=show | head` ends as other Unix commands do. Then a closed pipe or socket is an error again: left at
        # its default, the signal would end the caller's process without a word.
        before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            run.show(config, workdir, options.store)
            sys.stdout.flush()
        finally:
            signal.signal(signal.SIGPIPE, before)
        return
    if config.kind == "corpora":  # which needs no accelerator
        run.run(config, workdir, options.store)
        return

    from msm_jax.parallel import hosts
    from msm_jax.stages import graph

    index, count = hosts.join(options.coordinator, options.processes, options.process)
    if count == 1:
        run.run(config, workdir, options.store)
        return
    with hosts.told_if_lost():
        together = graph.Hosts(index, count, hosts.meeting(), hosts.stop_requested, hosts.agree, hosts.of_first)
        run.run(config, workdir, options.store, together)


def command() -> NoReturn:
    """The process, from its beginning to its exit."""
    # JAX reads it where there is no accelerator. A decoder small enough for a CPU leaves half of two cores idle: as two
    # devices, each takes half of the rows. Fixed, not counted: how many cores there are does not change a result.
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
    os.environ["MPLBACKEND"] = "agg"  # a name that matplotlib does not know would cost a run its report
    cli.prepare_output()
    exit_status = main()
    if exit_status in (2, 141):
        # Buffers, threads and exit handlers of libraries would complain of the same full disk or closed pipe once more.
        os._exit(exit_status)
    sys.exit(exit_status)


if __name__ == "__main__":
    command()
