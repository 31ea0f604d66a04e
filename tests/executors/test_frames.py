"""Frames: records, and texts that follow them."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from maas_backoff.worker.executors.frames import FrameBuffer, encode


def fed(data: bytes, size: int) -> list[dict[str, Any]]:
    buffer = FrameBuffer()
    return [record for at in range(0, len(data), size) for record in buffer.feed(data[at : at + size])]


@pytest.mark.parametrize("texts", [[], [""], ["[0.5]", "", "\n", "ü{\n}"]], ids=["none", "an empty one", "several"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_records_and_texts_arrive_as_they_were(texts: Sequence[str], size: int) -> None:
    record = {"a": ["x\ny", 1]}
    data = encode(record, texts) + encode({"b": None})
    assert fed(data, size) == [{**record, **({"texts": texts} if texts else {})}, {"b": None}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}\nx", "texts without their sizes"),
        (b'{"texts":["1"]}\nx', "texts without their sizes"),
        (b'{"texts":[-1,2]}\nx', "texts without their sizes"),
        (b'{"texts":[2]}\nx', "texts of other sizes"),
        (b'{"texts":[1]}\nxy', "texts of other sizes"),
        (b'{"texts":[1]}\n\xff', "can't decode"),
    ],
)
def test_another_frame_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fed(struct.pack(">I", len(body)) + body, 1000)


def test_a_text_takes_no_more_than_its_bytes() -> None:
    text = json.dumps(["a", "b"] * 1000)
    assert len(encode({}, [text])) < len(text) + 50
