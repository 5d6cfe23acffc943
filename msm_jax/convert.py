"""Hugging Face folder <-> our checkpoint: `python -m msm_jax.convert import|export --help`.

JAX is imported when the command line is understood: help and mistakes answer at once, and what JAX finds wrong with the
environment is told as the mistakes are.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from msm_jax import cli

_EPILOG = """\
examples:
  python -m msm_jax.convert import --hf=Qwen/Qwen3-14B --out=models/qwen3-14b --verify
  python -m msm_jax.convert export --checkpoint=runs/NAME/stages/aft-msm_aft-SPEC-s0-HASH --out=adapter
  python -m msm_jax.convert export --checkpoint=runs/NAME/stages/aft-msm_aft-SPEC-s0-HASH --out=model --merge
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status (msm_jax/cli.py)."""
    return cli.status_of(lambda: _convert(sys.argv[1:] if arguments is None else list(arguments)), "starts again")


def _convert(arguments: list[str]) -> None:
    parser = cli.Parser(
        prog="python -m msm_jax.convert",
        description="Hugging Face folder <-> our checkpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=cli.Parser, metavar="COMMAND")
    into = commands.add_parser("import", help="a Hugging Face folder, or a PEFT adapter, to a checkpoint of ours")
    into.add_argument("--hf", required=True, metavar="DIR", help="folder, gs:// folder, or Hugging Face id")
    out_of = commands.add_parser("export", help="a checkpoint of ours to a Hugging Face folder, or a PEFT adapter")
    out_of.add_argument("--checkpoint", required=True, metavar="DIR", help="a training stage, or what import made")
    out_of.add_argument("--merge", action="store_true", help="of an adapter: the whole model with it, not it alone")
    for command in (into, out_of):
        command.add_argument("--base", metavar="DIR", help="of an adapter: its base, if not the one that it names")
        command.add_argument(
            "--verify", action="store_true", help="compare logits with transformers, which must be there"
        )
        command.add_argument("--out", required=True, metavar="DIR", help="new folder")
    options = parser.parse_args(arguments)

    from msm_jax.checkpoints import conversion, weights

    if options.command == "import":
        made = conversion.import_model(options.hf, options.out, options.base, options.verify)
        print(conversion.describe(made, options.out))
        if options.verify:
            base = conversion.base_of(made)
            theirs = weights.open_adapter(options.hf, base) if made.lora else weights.open_model(options.hf)
            conversion.verify(made, theirs)
        return
    ours, made = conversion.export_model(options.checkpoint, options.out, options.base, options.merge, options.verify)
    print(conversion.describe(made, options.out))
    if options.verify:
        # Rounding makes what is merged another model than base and adapter: its matrices are compared with those.
        conversion.verify(made if options.merge else ours, made)
        if options.merge:
            conversion.verify_merge(ours, made)


def command() -> NoReturn:
    """The process, from its beginning to its exit."""
    cli.prepare_output()
    sys.exit(main())


if __name__ == "__main__":
    command()
