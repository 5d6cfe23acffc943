"""Errors that the user can mend."""


class UserError(Exception):
    """Bad input. `launch` prints the message as one line, without a traceback, and exits with 2.

    The message says what is wrong, where (file and line, or config field), and what to do.
    """


class Interrupted(Exception):
    """SIGTERM arrived and the state is saved: the same command resumes. `launch` exits with 143."""
