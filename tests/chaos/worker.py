"""A worker of a chaos run: `CHAOS_MODE=coroutine|thread|process CHAOS_FOLDER=… python -m chaos.worker PORT`.

It also runs with the code of the last release: it may use only what both releases have.
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


def begin(task: TaskEntity) -> None:
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


async def coroutine(task: TaskEntity) -> dict[str, int]:
    begin(task)
    try:
        await anyio.sleep(task.task_params["seconds"])
        return finish(task)
    finally:
        end(task)


def function(task: TaskEntity) -> dict[str, int]:
    begin(task)
    try:
        time.sleep(task.task_params["seconds"])
        return finish(task)
    finally:
        end(task)


def noting_settles() -> None:
    """Have every answer to a settlement noted."""
    report = exchange.report

    def noted(attempt: Attempt, settlement: Settlement, answer: str) -> None:
        status = "cancelled" if answer == "cancelled" else settlement.status
        error = None if settlement.error is None else settlement.error.type
        HISTORY.note("settle", id=attempt.task.task_id, token=attempt.token, status=status, error=error, answer=answer)
        report(attempt, settlement, answer)

    exchange.report = noted


def main() -> None:
    noting_settles()
    config = setting(int(sys.argv[1]), timeout=30)
    config.threadpool.proc_mode = "process" if MODE == "process" else "thread"
    config.threadpool.concurrency = 4 if MODE == "process" else 10
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(coroutine if MODE == "coroutine" else function)
    anyio.run(scheduler.run_until_stopped)


if __name__ == "__main__":
    main()
