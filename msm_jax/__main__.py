"""`msm-jax launch ...`, `msm-jax convert ...` and `msm-jax serve ...`, or `python -m msm_jax launch ...`."""

import importlib
import sys

COMMANDS = {
    "launch": "runs an experiment, or shows what it would do",
    "convert": "Hugging Face folder <-> our checkpoint",
    "serve": "OpenAI-compatible server on a checkpoint",
}


def main() -> int:
    """Returns the exit status of a mistake; a command ends the process."""
    name, sys.argv[:] = "".join(sys.argv[1:2]), [f"msm-jax {' '.join(sys.argv[1:2])}", *sys.argv[2:]]
    if name in COMMANDS:
        importlib.import_module(f"msm_jax.{name}").command()
    lines = [f"  {command:8} {does}" for command, does in COMMANDS.items()]
    usage = "\n".join(["usage: msm-jax COMMAND ...", "", *lines, "", "msm-jax COMMAND --help says more"])
    asked = name in ("-h", "--help")
    print(usage if asked else f"error: no command {name!r}\n{usage}", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
