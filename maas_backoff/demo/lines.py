"""The lines that the demo works on."""

from importlib import resources
from pathlib import Path


class InputError(Exception):
    """Raised when there are no lines to be had; the message is one sentence for the user."""


def read_lines(path: Path | None) -> list[str]:
    """Return the lines of a UTF-8 text file, blank ones too; of the sample that comes with the package for None."""
    source = resources.files("maas_backoff.demo") / "sample.txt" if path is None else path
    name = repr(str(source))  # as ASCII as it can be: a file's name may hold anything
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}") from error
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    # Not splitlines, which also splits at form feeds and other characters that a prompt may contain.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise InputError(f"{name} is empty: expected one prompt a line")
    return lines
