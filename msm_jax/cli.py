"""What all commands share: mistakes are told in one line, and how a command ended is told by its exit status."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from msm_jax.errors import Interrupted, UserError
from msm_jax.storage import files


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows the usage")


def status_of(command: Callable[[], None], again: str = "resumes") -> int:
    """Runs `command`. Returns the exit status: 0, 2 (the user can mend it), 130 (Ctrl-C), 141 (nobody reads on), 143
    (SIGTERM).

    Args:
        again: what the same command does after an interruption.
    """
    try:
        command()
    except UserError as error:
        return _stop(f"error: {error}", 2)
    except ValueError as error:
        # JAX reads variables of the environment when it is imported.
        if not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("jax/_src/config.py"):
            raise
        return _stop(f"error: {error}; mend that variable of the environment, or unset it", 2)
    except BrokenPipeError:
        return _stop(f"nothing reads the output any more; the same command {again}", 141)
    except OSError as error:
        cure = files.cure_of(error)
        if cure is None:
            raise
        return _stop(f"error: {error}: {cure}; the same command then {again}", 2)
    except KeyboardInterrupt:
        return _stop(f"interrupted; the same command {again}", 130)
    except Interrupted as error:
        return _stop(f"stopped: {error}; the same command {again}", error.status)
    return 0


def prepare_output() -> None:
    """For commands that run as a process: a terminal that knows ASCII alone shows other characters as escapes; the log
    of a long job goes to a file, where each line should be seen when it is written."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: the next file that is opened would be taken for it
            setattr(sys, name, open(os.devnull, "w"))
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")


def _stop(line: str, status: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return status
