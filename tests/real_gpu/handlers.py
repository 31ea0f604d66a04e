"""The worker of the check, and its handler: a task's params list the steps that its attempt takes on the GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
from gpu.handlers import note
from real_gpu.device import CudaDevice, open_device

from maas_backoff import (
    GpuConfig,
    SchedulerConfig,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)

LEASE = 5.0


@contextmanager
def lifespan() -> Iterator[CudaDevice]:
    begun = time.monotonic()
    device = open_device()
    note("loaded", os.getpid(), f"{time.monotonic() - begun:.2f}")
    yield device


def handle(task: TaskEntity, device: CudaDevice) -> dict[str, Any]:
    """Take the steps of `params["steps"]`, each "name" or ["name", amount]; free all memory unless `params["keeps"]`.

    Note when the attempt begins, and when each step is done.
    """
    begun = time.time()
    assert task.gpu is not None
    note("begin", task.task_id, os.getpid(), task.gpu.memory_gb)
    device.release()
    with ExitStack() as started:
        for step in task.task_params.get("steps", []):
            name, *amount = [step] if isinstance(step, str) else step
            if name == "sleep":
                time.sleep(*amount)
            elif name == "start":
                started.enter_context(other_process(*amount))
            elif name != "exhaust" or not task.oom_count:
                getattr(device, name)(*amount)
            note("did", task.task_id, name)
    seen = attrs.asdict(device.seen())
    if not task.task_params.get("keeps"):
        device.release()
    return {
        "begun": begun,
        "pid": os.getpid(),
        "gpu": task.gpu.uuid,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "seen": seen,
    }


@contextmanager
def other_process(mib: int) -> Iterator[None]:
    """Start a process with GPU memory of its own, in a session of its own; end the process by its stdin."""
    command = [sys.executable, "-P", "-m", "real_gpu.other", str(mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        note("started", process.pid)
        yield


def scheduler() -> TaskBackoffScheduler:
    """The worker of `maas-backoff worker real_gpu.handlers:scheduler`, on one device."""
    made = TaskBackoffScheduler(config(StorageConfig(host="127.0.0.1", port=int(os.environ["GPU_TEST_PORT"]))))
    made.set_custom_task_handler(handle)
    made.set_worker_lifespan(lifespan)
    return made


def config(storage: StorageConfig) -> TaskBackoffConfig:
    """The configuration of the workers and of the producer."""
    slots = int(os.environ.get("GPU_TEST_SLOTS", "1"))
    device = os.environ.get("GPU_TEST_UUID")
    return TaskBackoffConfig(
        storage=storage,
        task=TaskConfig(biz_prefix="test", min_gpu_memory_gb=2, max_retry_count=0, result_ttl=600, failed_ttl=600),
        threadpool=ThreadPoolConfig(concurrency=slots, proc_mode="process", exec_timeout=120, start_timeout=90),
        scheduler=SchedulerConfig(interval=1, lease=LEASE, shutdown_grace=1),
        gpu=GpuConfig(gpus=[device] if device else "all", gpu_release_timeout=20, gpu_quarantine=20),
    )
