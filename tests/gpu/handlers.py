"""Handlers for the children of the tests' workers: their tasks "allocate" on a pretend driver."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maas_backoff import GpuAssignment, TaskEntity

LOG = Path(os.environ.get("GPU_TEST_LOG", os.devnull))


class OutOfMemoryError(RuntimeError):
    """As PyTorch names it."""


def note(*words: object) -> None:
    """Add a line to the log of all processes, with the machine's clock."""
    with LOG.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(" ".join(map(str, (time.monotonic(), *words))) + "\n")


@contextmanager
def lifespan() -> Iterator[str]:
    note("loaded", os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))
    yield f"model of {os.getpid()}"


def handle(task: TaskEntity, model: str) -> object:
    """Work for a while; params may ask for memory, in GiB, or for an end of some kind."""
    gpu = task.gpu
    uuid = gpu.uuid if gpu else "-"
    note("begin", task.task_id, uuid, gpu.memory_gb if gpu else 0)
    params = task.task_params
    time.sleep(params.get("seconds", 0.01))
    if params.get("wants", 0) > (gpu.memory_gb if gpu else 0):
        note("end", task.task_id, uuid)
        raise OutOfMemoryError(f"Tried to allocate {params['wants']} GiB")
    note("end", task.task_id, uuid)
    return [uuid, os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), model, gpu and gpu.index, gpu and gpu.memory_gb]


def sleep_for_long(task: TaskEntity) -> None:
    time.sleep(60)


def pid(task: TaskEntity) -> int:
    return os.getpid()


def pid_with_model(task: TaskEntity, model: object) -> int:
    return os.getpid()


def asserts_once(task: TaskEntity) -> int:
    if task.attempt == 1:
        raise RuntimeError(f"CUDA error: device-side assert triggered in {os.getpid()}")
    return os.getpid()


@contextmanager
def too_large() -> Iterator[None]:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    yield


@contextmanager
def broken() -> Iterator[None]:
    raise FileNotFoundError("model.bin")
    yield


def device_and_pid(task: TaskEntity, model: tuple[str, int]) -> list[object]:
    return [task.gpu and task.gpu.uuid, list(model), os.getpid()]


@contextmanager
def load() -> Iterator[tuple[str, int]]:
    """A model that takes a while to load."""
    time.sleep(0.3)
    note("loaded", os.environ["CUDA_VISIBLE_DEVICES"])
    yield os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


@contextmanager
def told(gpu: GpuAssignment | None) -> Iterator[tuple[str, int]]:
    """A model that is made as large as what was granted."""
    assert gpu is not None
    yield gpu.uuid, int(gpu.memory_gb)


@contextmanager
def missing_for_a_while() -> Iterator[str]:
    """A model whose file is not there while another file is."""
    if Path(os.environ["GPU_TEST_MISSING"]).exists():
        raise FileNotFoundError("model.bin")
    yield "a model"


def own_pid(task: TaskEntity, model: str) -> int:
    return os.getpid()
