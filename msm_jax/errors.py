"""Errors that the user can mend."""

import signal


class UserError(Exception):
    """Bad input. `launch` prints the message as one line, without a traceback, and exits with 2.

    The message says what is wrong, where (file and line, or config field), and what to do.
    """


class Interrupted(Exception):
    """A signal arrived and the state is saved: the same command resumes.

    `launch` exits with `status`: 143 after SIGTERM, 130 after SIGINT (Ctrl-C).
    """

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.status = 128 + number
