"""How soon tasks run again after their worker was killed: `nox -s recovery`, or `python benchmarks/recovery.py`.

Workers run 100 tasks of 10 s, with the default lease of 30 s. `--rows host,only` picks rows. The row `elsewhere` needs
the right to make a pid namespace (`unshare`), as root has it; it stands for a worker on another host.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from server import machine, started_server

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    TaskSpec,
    ThreadPoolConfig,
)

TASKS, SECONDS = 100, 10


def new_scheduler() -> TaskBackoffScheduler:
    """Return the scheduler of the queue, by the environment that `Fleet` sets for its workers."""
    in_children = os.environ.get("RECOVERY_MODE") == "process"
    made = TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(url=os.environ["RECOVERY_URL"]),
            task=TaskConfig(biz_prefix="recovery"),
            threadpool=ThreadPoolConfig(
                concurrency=50 if in_children else TASKS, proc_mode="process" if in_children else "thread"
            ),
        )
    )
    made.set_custom_task_handler(work_in_child if in_children else work)
    return made


def __getattr__(name: str) -> TaskBackoffScheduler:
    """Return the scheduler for `maas-backoff worker recovery:scheduler`."""
    if name != "scheduler":
        raise AttributeError(name)
    return new_scheduler()


def begin(task: TaskEntity) -> None:
    """Note the begin of an attempt in one line; a poison task ends its process."""
    with Path(os.environ["RECOVERY_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{time.time()} {task.attempt}\n")
    if task.task_params.get("poison"):
        os._exit(1)


async def work(task: TaskEntity) -> None:
    begin(task)
    await asyncio.sleep(SECONDS)


def work_in_child(task: TaskEntity) -> None:
    begin(task)
    time.sleep(SECONDS)


class Fleet:
    """The queue, and its workers in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "begun"
        self.log.touch()
        os.environ["RECOVERY_LOG"] = str(self.log)
        self.scheduler = new_scheduler()
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, *words: str, before: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
        command = [*before, sys.executable, "-m", "maas_backoff", "worker", "recovery:scheduler", *words]
        with (self._folder / "output").open("ab") as output:
            worker = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=output, stderr=output)
        self._workers.append(worker)
        return worker

    async def ready(self, workers: int) -> None:
        """Wait until so many workers are ready."""
        while sum(one.ready for one in await self.scheduler.workers()) < workers:
            await asyncio.sleep(0.05)

    def begun(self, attempt: int) -> list[float]:
        """Return when the attempts of this number began."""
        rows = [line.split() for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [float(at) for at, number in rows if int(number) == attempt]

    async def completed(self, tasks: int) -> float:
        """Wait until so many tasks are completed; return the time."""
        while (await self.scheduler.get_queue_stats()).completed_count < tasks:
            await asyncio.sleep(0.05)
        return time.time()

    async def end(self) -> None:
        await self.scheduler.shutdown()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:  # unshare ignores SIGTERM; its worker ends with it
                worker.kill()


async def killed(fleet: Fleet, *, survivor: tuple[str, ...] | None) -> str:
    """Kill the worker that runs all tasks, beside a survivor, or start another worker a second later."""
    worker = fleet.start_worker()
    await fleet.ready(1)
    await fleet.scheduler.create_tasks({"n": n} for n in range(TASKS))
    while len(fleet.begun(1)) < TASKS:
        await asyncio.sleep(0.05)
    if survivor is not None:
        fleet.start_worker(before=survivor)
        await fleet.ready(2)
        await asyncio.sleep(2)  # for a heartbeat of both: each learns of the other
    worker.kill()
    worker.wait()
    since = time.time()
    if survivor is None:
        await asyncio.sleep(1)
        since = time.time()
        fleet.start_worker()
    done = await fleet.completed(TASKS)
    return f"first again after {min(fleet.begun(2)) - since:.2f} s, all done after {done - since:.1f} s"


async def poison(fleet: Fleet) -> str:
    """Let one task of a hundred end its process each time."""
    fleet.start_worker("--processes", "2")
    await fleet.ready(2)
    await asyncio.sleep(45 if "RECOVERY_MODE" in os.environ else 0)  # until the children are warm
    since = time.time()
    await fleet.scheduler.create_tasks(
        TaskSpec({"n": n, "poison": True} if n == TASKS // 2 else {"n": n}, f"{n}") for n in range(TASKS)
    )
    done = await fleet.completed(TASKS - 1)
    end = await fleet.scheduler.wait_task(f"{TASKS // 2}", timeout=600)
    kind = "-" if end.error is None else end.error.type
    failed = (await fleet.scheduler.get_queue_stats()).failed_count
    return f"innocent tasks done after {done - since:.1f} s; {failed} failed: the guilty one, as {kind}, {end.status}"


Row = Callable[[Fleet], Coroutine[Any, Any, str]]

ROWS: dict[str, tuple[str, Row]] = {
    "host": ("SIGKILL of one of two workers of a host", lambda fleet: killed(fleet, survivor=())),
    "only": ("SIGKILL of the only worker, a new one 1 s later", lambda fleet: killed(fleet, survivor=None)),
    "elsewhere": (
        "SIGKILL, the survivor in another pid namespace",
        lambda fleet: killed(fleet, survivor=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")),
    ),
    "poison": ("one task of 100 ends its worker each time", poison),
    "children": ("the same in child processes", poison),
}


def may_unshare() -> bool:
    found = shutil.which("unshare")
    return found is not None and subprocess.run([found, "--pid", "--fork", "true"], check=False).returncode == 0


async def measured(row: Row) -> str:
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        try:
            return await row(fleet)
        finally:
            await fleet.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="rows by name, separated by commas")
    args = parser.parse_args()
    print(f"{machine()}; {TASKS} tasks of {SECONDS} s, lease 30 s")
    for name in args.rows.split(","):
        title, row = ROWS[name]
        if name == "elsewhere" and not may_unshare():
            print(f"{title:50} left out: unshare is not allowed here", flush=True)
            continue
        with contextlib.ExitStack() as stack:
            os.environ["RECOVERY_URL"] = stack.enter_context(started_server())
            if name == "children":
                os.environ["RECOVERY_MODE"] = "process"
                stack.callback(os.environ.pop, "RECOVERY_MODE")
            print(f"{title:50} {asyncio.run(measured(row))}", flush=True)


if __name__ == "__main__":
    main()
