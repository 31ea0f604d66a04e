"""A batch that needs a GPU, for child processes."""

import os

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_dict({"task": {"biz_prefix": "test"}}))


@scheduler.batch(max_size=8, max_wait=0.05, min_gpu_memory_gb=8, max_retry_count=0)
def embed(tasks: list[TaskEntity], texts: list[str]) -> list[tuple[int, str, int]]:
    if len(tasks) > 3 and "large" in texts:
        raise MemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert all(task.gpu is not None for task in tasks)
    return [(len(tasks), task.gpu.uuid if task.gpu else "", os.getpid()) for task in tasks]


@scheduler.batch(max_size=4, max_wait=3600, min_gpu_memory_gb=2, max_retry_count=0)
def patient(texts: list[str]) -> list[int]:
    if "bad" in texts:
        raise ValueError("a bad text")
    return [len(texts)] * len(texts)


@scheduler.batch(max_size=8, max_wait=0.05, min_gpu_memory_gb=2, gpu_memory_per_task_gb=1, max_retry_count=0)
def sized(tasks: list[TaskEntity], texts: list[str]) -> list[tuple[int, float]]:
    return [(len(tasks), task.gpu.memory_gb if task.gpu else 0) for task in tasks]
