"""What all commands share: mistakes are told in one line, and how a command ended is told by its exit status."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from msm_jax import files
from msm_jax.errors import Interrupted, UserError


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
    except PermissionError as error:
        return _stop(f"error: {error}; choose another place, or change its permissions", 2)
    except BrokenPipeError:
        return _stop(f"nothing reads the output any more; the same command {again}", 141)
    except OSError as error:
        if not files.is_disk_full(error):
            raise
        return _stop(f"error: {error}: free some space and run the same command again, which {again}", 2)
    except KeyboardInterrupt:
        return _stop(f"interrupted; the same command {again}", 130)
    except Interrupted as error:
        return _stop(f"stopped: {error}; the same command {again}", error.status)
    return 0


def _stop(line: str, status: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return status
