"""A worker that cannot start child processes, or threads, harms no task, says so, and leaves the queue to others."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import handlers_for_children as handlers
import psutil
import pytest
from support import eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskStatus
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.setback import LONGEST_PAUSE, Setback

pytestmark = [pytest.mark.anyio, pytest.mark.blocks]


class NoRoom:
    """Keeps child processes from being started while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._popen = subprocess.Popen
        self.tries = 0
        monkeypatch.setattr(subprocess, "Popen", self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.tries += 1
        if self.full:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return self._popen(*arguments, **options)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> NoRoom:
    return NoRoom(monkeypatch)


@pytest.fixture
def worker(scheduler: TaskBackoffScheduler) -> TaskBackoffScheduler:
    scheduler.config.threadpool.proc_mode = "process"
    scheduler.config.threadpool.concurrency = 3
    scheduler.set_custom_task_handler(handlers.pid)
    return scheduler


def children() -> list[psutil.Process]:
    """Return the children of workers here; a server is a child of this process, too."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "maas_backoff.worker.executors" in " ".join(child.cmdline())]


def kill_children() -> None:
    for child in children():
        child.kill()


async def states(scheduler: TaskBackoffScheduler, ids: list[str]) -> set[str]:
    return {task.status for task in [await scheduler.get_task(one) for one in ids] if task is not None}


@pytest.mark.long
async def test_tasks_that_never_began_are_unharmed(
    worker: TaskBackoffScheduler, room: NoRoom, caplog: pytest.LogCaptureFixture
) -> None:
    """No retry is used and no attempt recorded; the worker stops claiming, says so once, and says when it is over."""
    caplog.set_level(logging.WARNING, "maas_backoff.worker")
    async with worker:
        await eventually(lambda: _ready(worker) == 3, "all children are warm")
        room.full = True
        kill_children()
        ids = await worker.create_tasks([{"n": n} for n in range(20)])
        await eventually(lambda: "no child process can be started" in _reasons(worker), "it says why it is not ready")
        await eventually(lambda: _settled(worker), "it holds no task")
        stats = await worker.get_queue_stats()
        assert (stats.pending_count, stats.failed_count) == (20, 0)
        history = await worker.get_history()
        assert (history.total.completed, history.total.retried, history.total.failed) == (0, 0, 0)
        tries = room.tries
        await eventually(lambda: room.tries > tries, "it tries again by itself")
        room.full = False
        tasks = [await worker.wait_task(one, 30) for one in ids]
        assert {(task.status, task.retry_count, task.attempts) for task in tasks} == {(TaskStatus.COMPLETED, 0, ())}
        assert worker.health().ready
    told = [record.getMessage() for record in caplog.records if "child process" in record.getMessage()]
    assert [text.split(";")[0].split(",")[0] for text in told] == [
        "no child process can be started",
        "a child process could be started again",
    ]


def _reasons(worker: TaskBackoffScheduler) -> str:
    return " ".join(worker.health().reasons)


def _settled(worker: TaskBackoffScheduler) -> bool:
    return _held(worker) == 0


def _held(worker: TaskBackoffScheduler) -> int:
    assert worker._service is not None
    return len(worker._service.parts.slots.attempts)


@pytest.mark.long
async def test_children_that_are_there_go_on(worker: TaskBackoffScheduler, room: NoRoom, tmp_path: Path) -> None:
    """A worker that has two of three children claims for two at a time."""
    async with worker:
        await eventually(lambda: _ready(worker) == 3, "all children are warm")
        room.full = True
        os.kill(children()[0].pid, signal.SIGKILL)
        await eventually(lambda: not worker.health().ready, "the loss is noticed, though no task needs the third child")
        ids = await worker.create_tasks([{"n": n} for n in range(30)])
        tasks = [await worker.wait_task(one, 30) for one in ids]
        assert {(task.status, task.retry_count, task.attempt) for task in tasks} == {(TaskStatus.COMPLETED, 0, 1)}
        assert not worker.health().ready
        room.full = False
        await eventually(lambda: worker.health().ready, "the third is there again", LONGEST_PAUSE)


def _executor(worker: TaskBackoffScheduler) -> ProcessExecutor:
    assert worker._service is not None
    executor = worker._service.parts.executor
    assert isinstance(executor, ProcessExecutor)
    return executor


def _ready(worker: TaskBackoffScheduler) -> int:
    return _executor(worker).pool.count(ready=True)


@pytest.mark.long
async def test_a_module_that_cannot_be_imported_for_a_while(
    worker: TaskBackoffScheduler, config: TaskBackoffConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the middle of a deploy: the next children fail in their set-up; the tasks wait until it is whole."""
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "being_deployed.py"
    module.write_text("def handle(task):\n    return task.task_params['n']\n")
    import being_deployed  # type: ignore[import-not-found] - just written

    worker.set_custom_task_handler(being_deployed.handle)
    async with worker:
        await eventually(lambda: _ready(worker) == 3, "all children are warm")
        module.write_text("import what_is_not_there_yet\n")
        kill_children()
        ids = await worker.create_tasks([{"n": n} for n in range(5)])
        missing = "No module named 'what_is_not_there_yet'"
        await eventually(lambda: missing in _reasons(worker), "it says why it is not ready")
        await eventually(lambda: _settled(worker), "it holds no task")
        assert await states(worker, ids) == {TaskStatus.PENDING}
        module.write_text("def handle(task):\n    return task.task_params['n']\n\n")
        tasks = [await worker.wait_task(one, 30) for one in ids]
        assert [(task.result, task.retry_count) for task in tasks] == [(n, 0) for n in range(5)]


async def test_all_slots_have_a_warm_child_unless_told_otherwise(
    worker: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """`start` waits for the first one; with warm_children=1 the others start when tasks need them."""
    async with worker:
        await eventually(lambda: _ready(worker) == 3, "there is one for each slot")
    worker.config.threadpool.warm_children = 1
    async with worker:
        assert _ready(worker) == 1
        assert not _executor(worker).lacks_child


async def test_tasks_whose_thread_cannot_be_started_are_unharmed(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The threads that are there take tasks one after the other; the others wait, with no timeout running."""
    caplog.set_level(logging.WARNING, "maas_backoff.worker")
    start, allowed, ends = threading.Thread.start, 1, threading.Event()

    def limited(self: threading.Thread) -> None:
        nonlocal allowed
        if threading.current_thread() is threading.main_thread() and "anyio" in type(self).__module__:
            if not allowed:
                raise RuntimeError("can't start new thread")
            allowed -= 1
        start(self)

    @scheduler.set_custom_task_handler
    def handle(task: TaskEntity) -> int:
        assert ends.wait(30)
        return threading.get_ident()

    scheduler.config.threadpool.proc_mode = "thread"
    scheduler.config.threadpool.concurrency = 3
    monkeypatch.setattr(threading.Thread, "start", limited)
    async with scheduler:
        ids = await scheduler.create_tasks([{"n": n} for n in range(20)])
        trouble = "no thread can be started: RuntimeError: can't start new thread"
        await eventually(lambda: trouble in _reasons(scheduler), "it says why it is not ready")
        await eventually(lambda: _held(scheduler) == 1, "it holds one task")
        ends.set()
        tasks = [await scheduler.wait_task(one, 30) for one in ids]
        assert {(task.status, task.retry_count, task.attempts) for task in tasks} == {(TaskStatus.COMPLETED, 0, ())}
        assert len({task.result for task in tasks}) == 1, "one thread has done all"
        allowed = 100
        await eventually(lambda: scheduler.health().ready, "it tries again by itself", LONGEST_PAUSE)
    told = [record.getMessage() for record in caplog.records if "thread" in record.getMessage()]
    assert [text.split(";")[0].split(",")[0] for text in told] == [
        "no thread can be started",
        "a thread could be started again",
    ]


def test_pauses_grow_and_one_start_ends_them() -> None:
    """Failures of tasks that were on their way already do not count; a start that began before the last one neither."""
    changes: list[None] = []
    setback = Setback(lambda: 2, lambda: changes.append(None))
    assert setback.take_try()
    for _ in range(5):
        setback.failed("no room\nfor it")
    assert setback.begun.is_set()
    assert 0.5 <= setback.pause <= 1
    for _ in range(20):
        setback.failed("no room\nfor it", probe=True)
    assert LONGEST_PAUSE / 2 <= setback.pause <= LONGEST_PAUSE
    assert setback.trouble == "no child process can be started: no room for it"
    assert (setback.children, setback.take_try()) == (2, False)
    setback.worked(0.0)
    assert setback.held
    setback.let_one_try()
    assert (setback.trouble, setback.children) == (None, 3)
    assert [setback.take_try(), setback.take_try()] == [True, False]
    setback.failed("still")
    assert setback.trouble is not None
    setback.worked(float("inf"))
    assert not setback.held
    assert not setback.begun.is_set()
    assert len(changes) == 28
