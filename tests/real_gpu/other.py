"""Another process on the GPU: takes memory, says what CUDA shows, and computes if asked.

The process ends with its stdin.

Usage: python -m real_gpu.other MIB [busy]
"""

import json
import os
import sys
import threading

import attrs
from real_gpu.device import open_device

LONGEST = 300.0
"""Seconds after which the process ends in any case."""


def main() -> None:
    device = open_device()
    device.allocate(int(sys.argv[1]))
    print(json.dumps(attrs.asdict(device.seen())), flush=True)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    threading.Timer(LONGEST, os._exit, [1]).start()
    while "busy" in sys.argv:
        device.spin(0.2)
    threading.Event().wait()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
