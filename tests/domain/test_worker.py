"""A worker as it told the registry."""

import attrs
import pytest

from maas_backoff.domain import jsontext
from maas_backoff.domain.worker import Device, Worker

DEVICE = Device("GPU-a", 0, "Fake", 16384, 8192, 4096, 12288, 25, 40, "ok", 0.1, other_processes=4096)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"[]", b'"text"', b"7", b"\xff"])
def test_a_text_that_cannot_be_read_leaves_a_worker_of_that_name(text: bytes) -> None:
    """It has expired, is of another release, or was written over by hand. The worker is there all the same."""
    assert Worker.of("w", text) == Worker("w")


def test_an_entry_has_the_names_of_release_0_2_0_so_that_each_release_reads_the_other() -> None:
    entry = jsontext.parse(
        b'{"uuid": "GPU-a", "index": 0, "name": "Fake", "total": 16384, "free": 8192, "room": 4096, "most": 12288, '
        b'"utilization": 25, "temperature": 40, "health": "ok", "age": 0.1, "closed": "", "strangers": 4096}'
    )
    assert DEVICE.to_entry() == entry
    assert Worker.of("w", jsontext.plain({"gpus": [entry]}).encode()).devices == (DEVICE,)


def test_a_device_of_an_older_worker_has_defaults_and_one_of_another_shape_is_left_out() -> None:
    old, strange = DEVICE.to_entry(), DEVICE.to_entry()
    del old["strangers"], old["closed"], strange["free"]
    read = Worker.of("w", jsontext.plain({"gpus": [old, strange], "pid": 7}).encode())
    assert read == Worker("w", pid=7, devices=(attrs.evolve(DEVICE, other_processes=None),))
