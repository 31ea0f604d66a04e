"""The records between a worker and its child processes: JSON, each after its length in four bytes.

Texts may follow a record in its frame, after a line break. The record has their sizes in bytes as `texts`.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from maas_backoff.domain import jsontext

Record = dict[str, Any]

_LENGTH = struct.Struct(">I")
_SLACK = 1_048_576


def largest(max_payload_bytes: int, max_stream_bytes: int, results: int = 1) -> int:
    """Return the bytes that a child's frame may have, with the results of so many tasks, or a part of a stream.

    A result is JSON text inside JSON: quoting can double it. A part may be a text of control characters, of which each
    takes six bytes.
    """
    return max(2 * max_payload_bytes * results, 6 * max_stream_bytes) + _SLACK


def encode(record: Mapping[str, object], texts: Sequence[str] = ()) -> bytes:
    """Return the frame of a record. `texts` follow as they are; to quote them would take a fifth of the time of floats.

    The receiver gets `texts` as a value of the record.
    """
    if not texts:
        # A lone surrogate is for the handler to meet; json.loads lets it pass, too.
        body = jsontext.plain(record).encode(errors="surrogatepass")
    else:
        parts = [text.encode() for text in texts]
        head = jsontext.plain({**record, "texts": list(map(len, parts))}).encode(errors="surrogatepass")
        body = b"".join([head, b"\n", *parts])
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """The bytes that have arrived and are not yet a whole frame."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yield the records that `data` completes. Raises ValueError for what cannot be a frame, or is too large."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if self._limit is not None and length > self._limit:
                raise ValueError(f"a frame of {length} bytes, at most {self._limit} are accepted")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            yield _record(body)


def _record(body: bytes) -> Record:
    head, line_break, rest = body.partition(b"\n")  # the JSON of a record has no line break
    try:
        record: object = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a frame that is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("a frame that is not a JSON object")  # noqa: TRY004 - the value is wrong, not an argument's type
    found = cast(Record, record)
    if line_break:
        found["texts"] = _texts(rest, found.get("texts"))
    return found


def _texts(data: bytes, sizes: object) -> list[str]:
    if not isinstance(sizes, list) or not all(
        isinstance(size, int) and size >= 0 for size in cast("list[object]", sizes)
    ):
        raise ValueError("a frame with texts without their sizes")
    texts: list[str] = []
    start = 0
    for size in cast("list[int]", sizes):
        texts.append(data[start : start + size].decode())
        start += size
    if start != len(data):
        raise ValueError("a frame with texts of other sizes")
    return texts
