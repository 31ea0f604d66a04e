"""The pretend driver, in this process and for others."""

import ctypes
import itertools
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu.driver import Driver, built_library

_numbers = itertools.count()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path) -> Driver:
    """A driver for processes that are started with its `env`."""
    return Driver(library, tmp_path / "gpus.txt")


@pytest.fixture
def here(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The driver, loaded into this process as well: the library's name makes pynvml find it."""
    ctypes.CDLL(str(driver.library / "libnvidia-ml.so.1"))
    monkeypatch.setenv("FAKE_NVML_FILE", str(driver.file))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


@pytest.fixture
def new_uuid() -> Callable[[], str]:
    """Ledgers are kept by UUID alone, so each test has its own."""
    return lambda: f"GPU-{secrets.token_hex(4)}-{next(_numbers)}"
