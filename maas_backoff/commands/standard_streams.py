"""The standard streams of a command, where they are closed, or cannot be written."""

import errno
import io
import os
import sys
from typing import cast

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed, as by `>&-` in a shell.

    Python has None in its place, and the next connection would get its number. A library of a handler that writes to
    the stream would then write to the server.
    """
    # A file that is opened gets the lowest free number: that of the stream.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, number <= 2)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def escape_output() -> None:
    """Escape characters that stdout does not have, as Python does on stderr: `LC_ALL=C`, `PYTHONIOENCODING=ascii`."""
    if sys.stdout.errors == "strict":  # None for what is no TextIOWrapper
        cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write out what was printed. Raises OSError if stdout cannot be written; the rest is then discarded."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
        raise


def discard_output() -> None:
    """Discard what was printed and is not written: else Python would try again at the end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_full(error: OSError) -> bool:
    """Return whether an error without a file name says that a stream cannot be written, as on a full disk."""
    return error.filename is None and error.errno in _FULL
