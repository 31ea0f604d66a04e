"""JSON for `--json`: times in ISO 8601, other alphabets as they are, control characters escaped."""

import json
import sys
from datetime import datetime

from maas_backoff.domain.demand import MIB_PER_GIB


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json_text(value, indent=2))


def print_json_line(value: object) -> None:
    """Print a value as one line of JSON, at once."""
    print(json_text(value), flush=True)


def json_text(value: object, indent: int | None = None) -> str:
    """Return a value as JSON. Escapes the characters that a terminal may obey; all but ASCII if stdout lacks one."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_jsonable)
    if not _is_writable(text, sys.stdout.encoding):
        return json.dumps(value, indent=indent, default=_jsonable)
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)


def _is_writable(text: str, encoding: str | None) -> bool:
    """Return whether an encoding has all characters of a text."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def gib(mib: float | None) -> float | None:
    """Return GiB of MiB, for a field that ends with `_gb`."""
    return None if mib is None else round(mib / MIB_PER_GIB, 3)


def _jsonable(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]
