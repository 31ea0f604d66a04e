"""Looks at the keys of tenants and limits: their invariants hold, and no task waits for nothing."""

import math
from typing import TYPE_CHECKING

import attrs
import lanes
from chaos.checker import Violation
from chaos.shares import SIMULATED

from simulation.mirror import Mirror

if TYPE_CHECKING:
    from simulation.world import World

LOOK_EVERY = 7
"""Messages to the server between two looks at all keys, in a history with tenants; twice as many with batches."""

MOST_WAIT = 45.0
"""Seconds for which a task may wait for nothing, after all is well again: workers look by themselves after 10."""


@attrs.define
class LaneLook:
    """The looks of one history with tenants. A look takes no virtual time."""

    world: "World"
    mirror: Mirror
    _messages: int = 0
    _waits: dict[tuple[str, float], float] = attrs.field(factory=dict[tuple[str, float], float])
    """Since when tasks have waited for nothing, by their rank, too: a task that has run meanwhile waits anew."""

    def at_message(self) -> None:
        """Check all keys of tenants and limits now and then, and that no limit is exceeded."""
        self._messages += 1
        if self._messages % (2 * LOOK_EVERY if self.world.plan.batches else LOOK_EVERY):
            return
        found = self.mirror.read()
        meta = found.hash("meta")
        try:
            lanes.check_keys(found, self.world.clock_ms(meta.get("ahead"), meta.get("reaped_at")))
        except AssertionError as error:
            if not any(one.promise == "keys" for one in self.world.violations):
                self.world.violations.append(Violation("keys", "", str(error)))
            return
        for name in found.hash("use"):
            most = SIMULATED.most_of(name)
            if most is not None and found.limit(name).use > most and not self.world.loses:
                self.world.violations.append(Violation("crowded", "", f"{found.limit(name).use} tasks of {name} run"))

    def for_waits(self) -> None:
        """Note tasks that wait for nothing: their tenant goes on, their limits have room, and workers have slots."""
        found, now_ms = self.mirror.read(), self.world.queue_ms()
        live = {node: scheduler for node, scheduler in self.world.workers.values() if not node.dead}
        functions = {name for node in live for name in self.world.functions[node]}
        slots = sum(scheduler.config.threadpool.concurrency for scheduler in live.values())
        waits: dict[tuple[str, float], float] = {}
        if self.world.plan.batches:  # a batch has many leases, and one slot
            busy = self.world.busy
            live = {node: one for node, one in live.items() if busy[node] < one.config.threadpool.concurrency / 2}
            functions = {name for node in live for name in self.world.functions[node]}
            slots = math.inf
        for key, entries in found.lanes.items() if len(found.zset("leases")) < slots / 2 else ():
            index, _, lane = key.partition("|")
            tenant, *limits = lane.partition("|")[0], *lanes.limits_of(lane)
            is_open = all(found.limit(name).opens(now_ms) <= now_ms for name in limits)
            if is_open and not found.is_paused(tenant) and (index.split(":")[1:2] or [""])[0] in functions:
                waits |= dict.fromkeys(entries.items(), self.world.loop.now)
        self._waits = {wait: self._waits.get(wait, since) for wait, since in waits.items()}
        for (task_id, _), since in self._waits.items():
            if self.world.loop.now - since > MOST_WAIT:
                self.world.violations.append(Violation("stuck", task_id, "its limits have room, and it does not start"))
