"""OpenAI-compatible HTTP server on the sampler: `python -m msm_jax.serve --help`. docs/serving.md says more.

What it needs is imported when the command line is understood: help and mistakes answer at once.
"""

import argparse
import asyncio
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from msm_jax import cli
from msm_jax.errors import Interrupted, UserError

_KEY = "MSM_JAX_API_KEY"
_BACKLOG = 2048  # connections that wait to be accepted; uvicorn has as many
_EPILOG = """\
examples:
  python -m msm_jax.serve --model=models/SmolLM2-135M-Instruct
  python -m msm_jax.serve --model=models/qwen3 --adapter=msm=runs/a/stages/msm-... --adapter=aft=runs/a/stages/aft-...
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status (msm_jax/cli.py): 0 if all was answered before the server ended."""
    return cli.status_of(lambda: _serve(sys.argv[1:] if arguments is None else list(arguments)), "starts again")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m msm_jax.serve",
        description="OpenAI-compatible HTTP server on the sampler: /v1/chat/completions, /v1/completions, /v1/models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a folder, a gs:// folder, a Hugging Face id or a training stage")
    add(
        "--adapter", action="append", default=[], metavar="NAME=DIR",
        help="an adapter over it, also ORG/NAME@REVISION of the hub; asked for as MODEL:NAME or NAME; may be repeated",
    )  # fmt: skip
    add("--name", default="", help="by which clients ask for the model (default: that of its folder, or its id)")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=8000, metavar="N", help="0: any that is free (default: %(default)s)")
    add("--api_key_file", metavar="FILE", help=f"holds the key that clients must send (default: ${_KEY}, if it is set)")
    add("--rows", type=int, default=64, metavar="N", help="answers drawn at once, at most (default: %(default)s)")
    add("--revision", metavar="NAME", help="of the Hugging Face id --model: a branch, tag or commit")
    add("--int8", action="store_true", help="hold the base's matrices as 8-bit integers")
    add("--int8_prompts", action="store_true", help="hold keys and values of prompts as 8-bit integers")
    add("--dtype", metavar="TYPE", help="of the matrices (default: bfloat16, and float32 on CPU)")
    add("--chat_template", default="", metavar="NAME", help="in place of the checkpoint's own")
    add("--thinking", metavar="HOW", help="default, on, off or tag: for templates that know it")
    limits = parser.add_argument_group("limits")
    for flag, default, says in (
        ("max_prompt_tokens", 16384, "of a prompt"),
        ("max_tokens", 4096, "of an answer; also where a chat names no number"),
        ("max_n", 1024, "answers to one prompt"),
        ("max_waiting", 4096, "answers that may wait for a row; more are refused with 429"),
        ("max_body_bytes", 4 << 20, "of a request"),
    ):
        limits.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{says} (default: %(default)s)")
    limits.add_argument(
        "--drain_seconds", type=float, default=30.0, metavar="S",
        help="how long SIGTERM waits for what has begun (default: %(default)s)",
    )  # fmt: skip
    return parser


def _serve(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    least = {"rows": 1, "port": 0, "max_waiting": 0, "drain_seconds": 0}
    for flag, value in vars(options).items():
        low = least.get(flag, 1)
        if not isinstance(value, bool) and isinstance(value, int | float) and not low <= value < 2**31:
            raise UserError(f"--{flag}={value:g}: must be {low} or more")
    if options.port > 65535:
        raise UserError(f"--port={options.port}: must be at most 65535")
    key = _read_key(options.api_key_file)
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'msm_jax[serve]'") from None

    from msm_jax.sampler.adapters import split_adapters
    from msm_jax.sampler.language_model import load
    from msm_jax.server.app import App
    from msm_jax.server.process import Server, bind, warm_up
    from msm_jax.server.requests import Limits

    listening = bind(options.host, options.port)  # before what takes long
    model = load(
        options.model, split_adapters(options.adapter) or None, revision=options.revision, dtype=options.dtype,
        rows=options.rows, chat_template=options.chat_template, thinking=options.thinking, int8=options.int8,
        int8_prompts=options.int8_prompts,
    )  # fmt: skip
    limits = Limits(
        options.max_prompt_tokens, options.max_tokens, options.max_n, options.max_waiting, options.max_body_bytes
    )
    app = App(model, options.name or _name_of(options.model), limits, options.rows, key)
    print("compiling what is asked for first", flush=True)
    asyncio.run(warm_up(app.service, options.rows, limits, model.model.config.max_length or sys.maxsize))
    listening.listen(_BACKLOG)  # so that who reads the next line finds it open
    host, port = listening.getsockname()[:2]
    print(f"serving {', '.join(app.models)} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
    server = Server(app, options.drain_seconds)
    asyncio.run(server.answer(listening))
    if app.service.failure is not None:
        raise app.service.failure
    if server.cancelled:
        raise Interrupted(f"{server.cancelled} requests were not answered within {options.drain_seconds:g} s")


def _name_of(model: str) -> str:
    """Of a folder its own name, of an id the id."""
    path = pathlib.PurePath(model.rstrip("/"))
    return path.name if os.path.isdir(os.path.expanduser(model)) or "://" in model else str(path)


def _read_key(file: str | None) -> str | None:
    """Raises: UserError if there is to be a key, and none can be had."""
    where, key = (file, None) if file else (f"${_KEY}", os.environ.get(_KEY))
    if file:
        try:
            key = pathlib.Path(file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api_key_file={file}: cannot be read ({type(error).__name__})") from None
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(f"{where}: must hold a key of printable ASCII characters")
    return key


def command() -> NoReturn:
    """The process, from its beginning to its exit."""
    cli.prepare_output()
    status = main()
    # The sampler's thread may still be in a block, or compile; Python would wait for what XLA does in it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    command()
