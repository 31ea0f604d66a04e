"""Reads the GPU as a worker does, in a process of its own: NVML stays loaded, and other tests load a pretend NVML.

Replies to each line of stdin with a line of JSON. "sample": a GPU sample taken after the request, or the trouble.
"costs": the milliseconds that each of 30 rounds took.
"""

import json
import sys
import time
from typing import Any

import attrs

from maas_backoff.gate.devices import Devices
from maas_backoff.gate.library import Library
from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.sampling import Sampling

PATIENCE = 20.0
"""Seconds to wait for a sample."""


def main() -> None:
    probe = NvmlProbe()
    devices = Devices(probe, "all")
    devices.start(lambda: None)
    for line in sys.stdin:
        reply = costs() if line.strip() == "costs" else sample(devices, probe)
        print(json.dumps(reply), flush=True)
    devices.stop()


def sample(devices: Devices, probe: NvmlProbe) -> dict[str, Any]:
    asked = time.monotonic()
    while time.monotonic() < asked + PATIENCE:
        found = devices.all
        if found and found[0].at > asked:
            return attrs.asdict(found[0])
        if not found and probe.has_answered:
            break
        devices.soon()
        time.sleep(0.01)
    return {"missing": probe.trouble or "no device is visible"}


def costs() -> list[float]:
    sampling = Sampling(Library())
    sampling.driver.start()
    found: list[float] = []
    for _ in range(30):
        begun = time.perf_counter()
        sampling.take_round()
        found.append((time.perf_counter() - begun) * 1000)
    sampling.driver.stop()
    return found


if __name__ == "__main__":
    main()
