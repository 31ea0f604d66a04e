"""The run of the demo: an embedded server, a model server, a task for each line, a check of every result, a stream."""

import asyncio
import logging
import signal
from pathlib import Path

import anyio

from maas_backoff.config import SchedulerConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
from maas_backoff.config.storage import StorageConfig
from maas_backoff.demo import summary, tokens
from maas_backoff.demo.client import handler_for
from maas_backoff.demo.lines import read_lines
from maas_backoff.demo.progress import Progress, finished
from maas_backoff.demo.server import ModelServer
from maas_backoff.domain.spec import TaskSpec
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.store.embedded import check_extra

STALLED = 30.0
"""The most seconds without a finished task; then the demo gives up."""


def run(path: Path | None, *, tasks_at_once: int, seed: int) -> int:
    """Run the demo, and return its exit code.

    Raises MissingExtraError before any output, InputError for an unusable file, and StorageError. Raises
    KeyboardInterrupt or CancelledError if it is stopped.
    """
    check_extra()
    lines = read_lines(path)
    logging.getLogger("maas_backoff").setLevel(logging.ERROR)  # hides warnings about retries, which are intended
    capacity = max(1, tasks_at_once * 2 // 3)  # too low, so that the server refuses some requests
    with ModelServer(capacity=capacity, seed=seed) as model:
        told = "{n} lines, {tasks} tasks at once, a model server with {places} places at {url}"
        print(t(told, n=len(lines), tasks=tasks_at_once, places=capacity, url=model.url))
        return anyio.run(_push, lines, model, tasks_at_once)


async def _push(lines: list[str], model: ModelServer, tasks_at_once: int) -> int:
    _cancel_on_signals()
    prompts = {f"line-{number:06}": line for number, line in enumerate(lines, 1)}
    scheduler = TaskBackoffScheduler(_config(tasks_at_once))
    scheduler.set_custom_task_handler(handler_for(model.url))
    speak = tokens.speaking(scheduler)
    async with scheduler:
        progress = Progress(len(prompts), model)
        await scheduler.create_tasks([TaskSpec({"prompt": prompt}, task_id) for task_id, prompt in prompts.items()])
        try:
            await _watch(scheduler, len(prompts), progress)
        finally:
            progress.end()
        seconds = progress.seconds
        tasks = [task for status in TaskStatus for task in await _tasks_in(scheduler, status)]
        is_whole = await tokens.show(speak)
    return summary.show(prompts, tasks, model, seconds) or int(not is_whole)


def _cancel_on_signals() -> None:
    """Stop the demo and its servers on a signal: without this, the embedded server would outlive the demo."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _config(tasks_at_once: int) -> TaskBackoffConfig:
    return TaskBackoffConfig(
        storage=StorageConfig(type="embedded"),
        task=TaskConfig(biz_prefix="demo", max_retry_count=50, backoff_interval=0.2, max_backoff_interval=2),
        threadpool=ThreadPoolConfig(concurrency=tasks_at_once, exec_timeout=30),
        scheduler=SchedulerConfig(shutdown_grace=2),
    )


async def _watch(scheduler: TaskBackoffScheduler, total: int, progress: Progress) -> None:
    done, changed = 0, progress.seconds
    while done < total and progress.seconds - changed < STALLED:
        stats = await scheduler.get_queue_stats()
        if finished(stats) > done:
            done, changed = finished(stats), progress.seconds
        progress.show(stats, last=done == total)
        if done < total:
            await anyio.sleep(0.1)


async def _tasks_in(scheduler: TaskBackoffScheduler, status: TaskStatus) -> list[TaskEntity]:
    page = await scheduler.list_tasks(status, limit=1000)
    tasks = list(page.tasks)
    while page.cursor is not None:
        page = await scheduler.list_tasks(status, limit=1000, cursor=page.cursor)
        tasks += page.tasks
    return tasks
