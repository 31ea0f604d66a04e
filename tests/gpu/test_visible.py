"""CUDA_VISIBLE_DEVICES and the option `gpus` mean what CUDA means by them."""

import pytest

from maas_backoff.gate.sample import GpuSample
from maas_backoff.gate.visible import chosen, unknown, visible_to_cuda

DEVICES = [
    GpuSample(uuid, index, "Fake", 1, 1, 0)
    for uuid, index in [("GPU-aa1", 0), ("GPU-aa2", 1), ("GPU-bb3", 2), ("MIG-cc4", 3), ("MIG-cc5", 3)]
]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, "GPU-aa1 GPU-aa2 GPU-bb3 MIG-cc4 MIG-cc5"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("2,0", "GPU-bb3 GPU-aa1"),
        ("0,-1,1", "GPU-aa1"),
        ("0,7,1", "GPU-aa1"),
        ("0,0", ""),
        (" 1 , 2", "GPU-aa2 GPU-bb3"),
        ("GPU-bb3,GPU-aa2", "GPU-bb3 GPU-aa2"),
        ("GPU-b", "GPU-bb3"),
        ("GPU-aa", ""),
        ("MIG-cc5,0", "MIG-cc5 GPU-aa1"),
        ("3", ""),
        ("bb3", ""),
    ],
)
def test_what_cuda_would_see(setting: str | None, expected: str) -> None:
    """In its order; it stops at the first name that is none, or not one device's alone. A repeated one: no device."""
    assert " ".join(one.uuid for one in visible_to_cuda(DEVICES, setting)) == expected


def test_what_the_option_names() -> None:
    assert chosen(DEVICES, "all") == DEVICES
    assert [one.uuid for one in chosen(DEVICES, (1, "GPU-bb3", "GPU-zz9"))] == ["GPU-aa2", "GPU-bb3"]
    assert chosen(DEVICES, ()) == []
    assert unknown(DEVICES, (1, 9, "GPU-bb3", "GPU-zz9")) == [9, "GPU-zz9"]
    assert unknown(DEVICES, "all") == []
