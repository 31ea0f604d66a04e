"""The pretend driver, in this process and for others."""

import ctypes
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator
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
def here(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The driver, loaded into this process as well: the library's name makes pynvml find it.

    Nobody waits for the thread of a probe that was stopped, but the next test must not find it.
    """
    ctypes.CDLL(str(driver.library / "libnvidia-ml.so.1"))
    monkeypatch.setenv("FAKE_NVML_FILE", str(driver.file))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield driver
    for thread in threading.enumerate():
        if thread.name == "maas-backoff-nvml":
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def new_uuid() -> Callable[[], str]:
    """Ledgers are kept by UUID alone, so each test has its own."""
    return lambda: f"GPU-{secrets.token_hex(4)}-{next(_numbers)}"
