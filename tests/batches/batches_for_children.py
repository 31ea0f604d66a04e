"""Batches that child processes import. The scheduler's configuration is set by the test."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slow_values import SlowToEncode

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_dict({"task": {"biz_prefix": "test"}}))


@contextmanager
def model() -> Generator[dict[str, int], None, None]:
    yield {"pid": os.getpid()}


@scheduler.batch(max_size=4, max_wait=0.05)
async def coroutine(texts: list[str]) -> list[tuple[int, int, str]]:
    return [(os.getpid(), len(texts), text.upper()) for text in texts]


@scheduler.batch(max_size=4, max_wait=0.05)
def plain(tasks: list[TaskEntity], texts: list[str]) -> list[str]:
    for task, text in zip(tasks, texts, strict=True):
        task.update_progress(50, text)
        task.emit(f"{text}!")
        task.log(f"line of {text}")
    return [f"{task.kind} {task.attempt} {text}" for task, text in zip(tasks, texts, strict=True)]


@scheduler.batch(max_size=4, max_wait=0.05, lifespan=model)
def on_model(model: dict[str, int], numbers: list[int]) -> list[tuple[bool, int]]:
    return [(model["pid"] == os.getpid(), 2 * number) for number in numbers]


@scheduler.batch(max_size=32, max_wait=0.05, max_retry_count=0)
def poisoned(texts: list[str]) -> list[int]:
    if "exit" in texts:
        os._exit(7)
    if "raise" in texts:
        raise ValueError("a bad text")
    if "memory" in texts:
        raise MemoryError("out of memory")
    if "hang" in texts:
        time.sleep(60)
    return [len(texts)] * len(texts)


@scheduler.batch(max_size=4, max_wait=0.02, exec_timeout=600, max_retry_count=0)
def slow(paths: list[str]) -> list[str]:
    for path in paths:
        Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)
    return paths


@scheduler.batch(max_size=4, max_wait=0.05)
def long_texts(sizes: list[int]) -> list[str]:
    return ["x" * size for size in sizes]


@scheduler.task
def alone(text: str) -> str:
    return text.upper()


@scheduler.batch(max_size=2, max_wait=0, max_retry_count=0)
def slow_to_encode(folders: list[str]) -> list[Any]:
    return [SlowToEncode(folder) if folder else {"pid": os.getpid()} for folder in folders]
