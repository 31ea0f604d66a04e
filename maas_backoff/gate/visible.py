"""The devices that a worker may use: those that CUDA would see, and of these the ones that its configuration names."""

from collections.abc import Iterable, Sequence
from typing import Literal

from maas_backoff.gate.sample import GpuSample


def visible_to_cuda(samples: Sequence[GpuSample], setting: str | None) -> list[GpuSample]:
    """Return what CUDA_VISIBLE_DEVICES leaves of the devices, which are in NVML's order, in its own.

    As CUDA does: indices, UUIDs or unambiguous beginnings of them; it stops at the first that names none. An empty
    value means none, and so does one that names a device twice. An index is taken in the order of PCI addresses, so
    CUDA_DEVICE_ORDER should be PCI_BUS_ID.
    """
    if setting is None:
        return list(samples)
    found: list[GpuSample] = []
    for name in setting.split(","):
        device = _named(name.strip(), samples)
        if device is None:
            break
        if device in found:
            return []
        found.append(device)
    return found


def _named(name: str, samples: Sequence[GpuSample]) -> GpuSample | None:
    if name.isdecimal():
        # MIG slices are named by UUID only.
        return next((device for device in samples if device.index == int(name) and not is_slice(device)), None)
    if not name.startswith(("GPU-", "MIG-")):
        return None
    matching = [device for device in samples if device.uuid.startswith(name)]
    return matching[0] if len(matching) == 1 else None


def is_slice(device: GpuSample) -> bool:
    """Whether a device is a slice of one (MIG)."""
    return device.uuid.startswith("MIG-")


def chosen(samples: Iterable[GpuSample], gpus: "Literal['all'] | Sequence[int | str]") -> list[GpuSample]:
    """Return the devices that the option `gpus` names, by NVML's index or by UUID."""
    return [device for device in samples if gpus == "all" or device.index in gpus or device.uuid in gpus]


def unknown(samples: Sequence[GpuSample], gpus: "Literal['all'] | Sequence[int | str]") -> list[int | str]:
    """Return what the option `gpus` names and is not there."""
    if gpus == "all":
        return []
    return [name for name in gpus if not any(name in {device.index, device.uuid} for device in samples)]
