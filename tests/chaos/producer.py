"""A producer of a chaos run: `CHAOS_FOLDER=… python -m chaos.producer PORT SEED SECONDS RATE`.

It also runs with the code of the last release: it may use only what both releases have.
"""

import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from chaos.functions import FUNCTIONS, function_of_task
from chaos.history import History
from chaos.releases import CODE
from chaos.setting import POISON_MAX_LOST, setting
from chaos.shares import CHAOTIC, noted, share_of_task

from maas_backoff import StorageUnavailableError, TaskBackoffScheduler, TaskConfig, TaskEntity

HISTORY = History(Path(os.environ.get("CHAOS_FOLDER", "")))
KINDS = {"plain": 60, "flaky": 20, "doomed": 5, "delayed": 8, "regretted": 5, "interrupted": 2, "poison": 0.5}
if hasattr(TaskConfig(), "start_within"):  # the last release knows no deadlines
    KINDS["limited"] = 10
HAS_KINDS = os.environ.get("CHAOS_FUNCTIONS", "-") != "-"


def declared(scheduler: TaskBackoffScheduler, name: str) -> Any:
    """Declare a kind, to create its tasks."""

    async def function(task: TaskEntity, kind: str, seconds: float, fails: int) -> dict[str, int]:
        raise NotImplementedError

    return scheduler.task(name=name)(function)


async def produce(scheduler: TaskBackoffScheduler, seed: str, seconds: float, rate: float) -> None:
    choice = random.Random(seed)
    deadline = time.monotonic() + seconds
    kinds = {name: declared(scheduler, name) for name in FUNCTIONS if name} if HAS_KINDS else {}
    async with anyio.create_task_group() as group:
        number = 0
        while time.monotonic() < deadline:
            kind = choice.choices(list(KINDS), list(KINDS.values()))[0]
            group.start_soon(one, scheduler, kinds, f"{seed}-{number}", kind, random.Random(f"{seed}-{number}"))
            number += 1
            await anyio.sleep(choice.expovariate(rate))


async def one(
    scheduler: TaskBackoffScheduler, kinds: Mapping[str, Any], task_id: str, kind: str, choice: random.Random
) -> None:
    """Create one task, and change one's mind about some."""
    fails = {"flaky": choice.randint(1, 2), "doomed": 99}.get(kind, 0)
    seconds = 2.0 if kind == "interrupted" else choice.uniform(0, 0.6)
    delay = choice.uniform(0.3, 3) if kind in {"delayed", "regretted"} else 0.0
    params = {"kind": kind, "seconds": round(seconds, 3), "fails": fails}
    limits: dict[str, Any] = {}
    if kind == "limited":
        limits = {choice.choice(["start_within", "complete_within"]): round(choice.choice([0.5, 3, 30]), 3)}
    function = function_of_task(choice) if kinds else ""
    share = share_of_task(choice, CHAOTIC) if kinds else {}  # the last release knows no tenants
    about = {"kind": kind, "delay": delay, "fails": fails, "function": function, **noted(share)}
    HISTORY.note("invoke", id=task_id, code=CODE, **about, **limits)
    options = {"max_lost": POISON_MAX_LOST} if kind == "poison" else {"delay": delay, **limits}
    options |= share
    while True:
        try:
            if function:
                await kinds[function].options(task_id=task_id, **options).create(**params)
            else:
                await scheduler.create_task(params, task_id, **options)
        except StorageUnavailableError:
            HISTORY.note("unknown", id=task_id)
            if choice.random() < 0.5:
                return
        else:
            HISTORY.note("acked", id=task_id)
            break
    if kind in {"regretted", "interrupted"}:
        await anyio.sleep(choice.uniform(0, 1))
        try:
            answer = await scheduler.cancel_task(task_id, running=kind == "interrupted")
        except StorageUnavailableError:
            HISTORY.note("cancel", id=task_id, answer=None)
        else:
            # A request to stop a running attempt may come second to its end.
            HISTORY.note("cancel", id=task_id, answer=answer if kind == "regretted" else None)


async def main() -> None:
    port, seed, seconds, rate = sys.argv[1:]
    # Not started, as that may meet a server that is down: each call connects on its own, and is repeated.
    scheduler = TaskBackoffScheduler(setting(int(port), timeout=3))
    try:
        await produce(scheduler, seed, float(seconds), float(rate))
    finally:
        await scheduler.shutdown()


if __name__ == "__main__":
    anyio.run(main)
