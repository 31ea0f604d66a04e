"""Facts about a device that NVML may lack."""

from collections.abc import Callable
from typing import TypeVar

from maas_backoff.gate import library
from maas_backoff.gate.faultlog import FaultLog
from maas_backoff.gate.library import NvmlError

T = TypeVar("T")

_EXPECTED = frozenset({library.NOT_SUPPORTED, library.FUNCTION_NOT_FOUND, library.GPU_IS_LOST})


def optional(faults: FaultLog, uuid: str, what: str, read: Callable[[], T]) -> T | None:
    """Return what `read` returns, or None if NVML refuses. A refusal that is not expected is logged once."""
    try:
        return read()
    except NvmlError as error:
        if error.code not in _EXPECTED:
            faults.begins(f"{uuid} {what}", f"GPU {uuid} is used without its {what}: {error}")
        return None
