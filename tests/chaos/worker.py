"""A worker of a chaos run: `CHAOS_MODE=coroutine|thread|process CHAOS_FOLDER=… python -m chaos.worker PORT`.

`CHAOS_FUNCTIONS` names the functions that it has: "- one two" are all of functions.py.
It also runs with the code of the last release. With "-", it may use only what both releases have.
"""

import os
import signal
import sys
import time
from pathlib import Path

import anyio
from chaos.history import History
from chaos.releases import CODE
from chaos.setting import setting

from maas_backoff import TaskBackoffScheduler, TaskEntity
from maas_backoff.domain.settlement import Settlement
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.loops import exchange

MODE = os.environ.get("CHAOS_MODE", "")
HISTORY = History(Path(os.environ.get("CHAOS_FOLDER", "")))
FUNCTIONS = ["" if name == "-" else name for name in os.environ.get("CHAOS_FUNCTIONS", "-").split()]
SCHEDULER = TaskBackoffScheduler()


def begin(task: TaskEntity, function: str) -> None:
    worker = os.getppid() if MODE == "process" else os.getpid()
    HISTORY.note(
        "start",
        id=task.task_id,
        attempt=task.attempt,
        token=task.token,
        retry=task.retry_count,
        lost=task.lost_count,
        worker=worker,
        mode=MODE,
        knows_deadlines=hasattr(task, "deadline"),
        code=CODE,
        function=function,
        functions=FUNCTIONS,
    )
    if task.task_params["kind"] == "poison":
        os.kill(os.getpid(), signal.SIGKILL)


def finish(task: TaskEntity) -> dict[str, int]:
    if task.retry_count < task.task_params["fails"]:
        raise ConnectionError("not yet")
    return {"token": task.token}


def end(task: TaskEntity) -> None:
    how = type(sys.exc_info()[1]).__name__
    HISTORY.note("end", id=task.task_id, token=task.token, how="ok" if how == "NoneType" else how)


async def coroutine(task: TaskEntity, function: str = "") -> dict[str, int]:
    begin(task, function)
    try:
        await anyio.sleep(task.task_params["seconds"])
        return finish(task)
    finally:
        end(task)


def blocking(task: TaskEntity, function: str = "") -> dict[str, int]:
    begin(task, function)
    try:
        time.sleep(task.task_params["seconds"])
        return finish(task)
    finally:
        end(task)


def declared(name: str) -> object:
    """Declare a kind, unless this worker lacks it. A child process looks for the function as `name` in this module."""
    if name not in FUNCTIONS:
        return None

    async def run(task: TaskEntity, kind: str, seconds: float, fails: int) -> dict[str, int]:
        return await coroutine(task, name)

    def run_blocking(task: TaskEntity, kind: str, seconds: float, fails: int) -> dict[str, int]:
        return blocking(task, name)

    function = run if MODE == "coroutine" else run_blocking
    function.__name__ = function.__qualname__ = name
    return SCHEDULER.task(name=name)(function)


one = declared("one")
two = declared("two")


def noting_settles() -> None:
    """Have every answer to a settlement noted."""
    report = exchange.report

    def noted(attempt: Attempt, settlement: Settlement, answer: str, *more: str) -> None:
        status = "cancelled" if answer == "cancelled" else settlement.status
        error = None if settlement.error is None else settlement.error.type
        HISTORY.note("settle", id=attempt.task.task_id, token=attempt.token, status=status, error=error, answer=answer)
        report(attempt, settlement, answer, *more)

    exchange.report = noted


def main() -> None:
    noting_settles()
    config = setting(int(sys.argv[1]), timeout=30)
    config.threadpool.proc_mode = "process" if MODE == "process" else "thread"
    config.threadpool.concurrency = 4 if MODE == "process" else 10
    SCHEDULER.config = config
    if "" in FUNCTIONS:
        SCHEDULER.set_custom_task_handler(coroutine if MODE == "coroutine" else blocking)
    anyio.run(SCHEDULER.run_until_stopped)


if __name__ == "__main__":
    main()
