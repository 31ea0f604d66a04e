"""A pretend NVIDIA driver: the library that pynvml loads, and the file it reads on every call."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

GIB = 1 << 30


def built_library(folder: Path) -> Path:
    """Return the folder of the library, compiled; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine: the pretend driver cannot be built")
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        source = Path(__file__).parent / "fake_nvml.c"
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        subprocess.run([compiler, *flags, "-o", str(library), str(source), "-lpthread"], check=True)
    return folder


class Driver:
    """The devices, by UUID; `write` tells the library, whatever process has it."""

    def __init__(self, library: Path, file: Path) -> None:
        self.library = library
        self.file = file
        self.globals: dict[str, Any] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.slices: dict[str, dict[str, Any]] = {}
        self.write()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that has this driver: the loader looks at it when the process starts."""
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML_FILE": str(self.file)}

    def device(self, uuid: str, *, total_gb: float = 16, used_gb: float = 0, **fields: Any) -> None:
        self.devices[uuid] = {"total": int(total_gb * GIB), "used": int(used_gb * GIB), "name": "Fake", **fields}
        self.write()

    def change(self, uuid: str, **fields: Any) -> None:
        self.devices[uuid].update(fields)
        self.write()

    def write(self) -> None:
        lines = ["global " + _pairs(self.globals)]
        lines += [f"device uuid={uuid} {_pairs(fields)}" for uuid, fields in self.devices.items()]
        lines += [f"mig uuid={uuid} {_pairs(fields)}" for uuid, fields in self.slices.items()]
        new = self.file.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n", encoding="latin-1")
        new.replace(self.file)


def _pairs(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())
