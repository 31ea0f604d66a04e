"""The input lines of the demo."""

from pathlib import Path


class InputError(Exception):
    """Raised if there are no input lines; the message is one sentence for the user."""


def read_lines(path: Path | None) -> list[str]:
    """Return the lines of a UTF-8 text file, with blank lines; None means the sample in the package."""
    from importlib import resources  # every command imports this module

    source = resources.files("maas_backoff.demo") / "sample.txt" if path is None else path
    name = repr(str(source))  # escaped: the name of a file may contain any character
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}") from error
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    # Not splitlines: it also splits at form feeds and other characters that a prompt may contain.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise InputError(f"{name} is empty: expected one prompt a line")
    return lines
