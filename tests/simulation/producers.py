"""The creation of one task by a producer."""

import asyncio
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chaos.functions import function_of_task
from chaos.setting import POISON_MAX_LOST
from chaos.shares import SIMULATED, noted, share_of_task

from maas_backoff import StorageError, TaskBackoffScheduler, TaskKind
from simulation.batches import HOW, BatchKind
from simulation.plan import KINDS

if TYPE_CHECKING:
    from simulation.world import World


async def create(
    world: "World",
    scheduler: TaskBackoffScheduler,
    kinds: Mapping[str, TaskKind[Any, Any]],
    task_id: str,
    choice: random.Random,
    batch: BatchKind | None = None,
) -> None:
    """Create one task, and change one's mind about some, as chaos/producer.py does."""
    kind = choice.choices(list(KINDS), list(KINDS.values()))[0]
    fails = {"flaky": choice.randint(1, 2), "doomed": 99}.get(kind, 0)
    seconds = 40.0 if kind == "interrupted" else choice.choice([0.0, choice.uniform(0, 1), choice.uniform(0, 80)])
    delay = choice.uniform(0.3, 60) if kind in {"delayed", "regretted"} else 0.0
    params = {"kind": kind, "seconds": round(seconds, 3), "fails": fails}
    limits: dict[str, Any] = {}
    if kind == "limited":
        names = choice.choice([["start_within"], ["complete_within"], ["start_within", "complete_within"]])
        limits = {name: round(choice.choice([1, 10, 100]) * choice.uniform(0.5, 2), 3) for name in names}
    function = function_of_task(random.Random(f"function {task_id}")) if world.plan.homes else ""
    share = share_of_task(random.Random(f"share {task_id}"), SIMULATED) if world.plan.has_tenants else {}
    if share.get("limits"):
        params["seconds"] = round(min(seconds, 20), 3)
    about = noted(share)
    if batch is not None:
        function = batch.name
        how = choice.choices(list(HOW), list(HOW.values()))[0]
        params["how"] = "returns" if how == "hangs" and kind == "doomed" else how
        params["seconds"] = round(params["seconds"] * batch.pace / 2, 3)
        if not share and batch.max_cost is not None:
            share = about = {"cost": choice.choice([1, 1, 3, 11])}
    if batch is not None and world.look is not None:
        world.look.lanes[task_id] = bool(share.get("tenant") or share.get("limits"))
        world.look.costs[task_id] = share.get("cost", 1)
    world.note("invoke", id=task_id, kind=kind, delay=delay, fails=fails, function=function, **limits, **about)
    while True:
        try:
            options: dict[str, Any] = {"max_lost": POISON_MAX_LOST} if kind == "poison" else {"delay": delay}
            options |= limits | share
            if batch is not None:
                await kinds[function].options(task_id=task_id, **options).create(params)
            elif function:
                await kinds[function].options(task_id=task_id, **options).create(**params)
            else:
                await scheduler.create_task(params, task_id, **options)
        except StorageError:
            world.note("unknown", id=task_id)
            if choice.random() < 0.5:
                return
            await asyncio.sleep(0.5)
        else:
            world.note("acked", id=task_id)
            break
    if world.readers is not None and batch is None:
        world.readers.follow(task_id)
    if kind in {"regretted", "interrupted"}:
        await asyncio.sleep(choice.uniform(0, 20))
        try:
            answer = await scheduler.cancel_task(task_id, running=kind == "interrupted")
        except StorageError:
            answer = None
        world.note("cancel", id=task_id, answer=answer if kind == "regretted" else None)
