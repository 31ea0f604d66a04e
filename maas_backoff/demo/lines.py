"""The input lines of the demo."""

from pathlib import Path

from maas_backoff.language import t


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
        byte, at = f"{error.object[error.start]:#04x}", error.start
        raise InputError(t("{file} is not UTF-8 text: byte {byte} at {at}", file=name, byte=byte, at=at)) from error
    except OSError as error:
        raise InputError(t("cannot read {file}: {error}", file=name, error=error.strerror)) from error
    # Not splitlines: it also splits at form feeds and other characters that a prompt may contain.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise InputError(t("{file} is empty: expected one prompt a line", file=name))
    return lines
