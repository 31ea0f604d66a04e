"""A pretend device for the check itself: the pretend NVML shows what the pretend libcuda of each process has taken."""

import secrets
import subprocess
import threading
import time
from pathlib import Path

from gpu.driver import Driver, built_library

TOTAL, RESERVED = 80 * 1024, 600
"""MiB of the device, and of these the driver's own."""

LINGER = 0.7
"""Seconds for which the memory of an ended process is still shown."""


class PretendDevice:
    """The device, and the thread that shows it."""

    def __init__(self, folder: Path) -> None:
        library = built_library(folder)
        source = Path(__file__).with_name("fake_cuda.c")
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["cc", *flags, "-o", str(library / "libcuda.so.1"), str(source), "-lpthread"], check=True)
        self._taken = folder / "taken"
        self._taken.mkdir()
        self._ended: dict[str, float] = {}
        self._driver = Driver(library, folder / "gpus.txt")
        text = secrets.token_hex(16)
        self._uuid = "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        self._driver.device(self._uuid, total_gb=TOTAL / 1024, reserved=RESERVED << 20, name="Pretend_H100", procs="")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def env(self) -> dict[str, str]:
        """The variables that give a process this device."""
        memory = {"PRETEND_GPU_FOLDER": str(self._taken), "PRETEND_GPU_MIB": str(TOTAL - RESERVED)}
        return {**self._driver.env, **memory}

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.04):
            self._show()

    def _show(self) -> None:
        used, busy, xid, processes = 0, False, 0, list[str]()
        for file in self._taken.iterdir():
            if not file.name.isdecimal():
                continue
            if is_running(int(file.name)):
                self._ended.pop(file.name, None)
            elif time.monotonic() - self._ended.setdefault(file.name, time.monotonic()) > LINGER:
                file.unlink()
                continue
            mib, spins, error = map(int, file.read_text().split())
            used += mib << 20
            busy = busy or bool(spins)
            xid = max(xid, error)
            processes.append(f"{file.name}:{mib << 20}")
        now = {"used": used, "util": 99 if busy else 0, "xid": xid, "procs": ",".join(sorted(processes))}
        if now.items() - self._driver.devices[self._uuid].items():
            self._driver.change(self._uuid, **now)


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
