"""Looks at the keys of a queue while all is well: no batch that is due waits while a worker has a free slot."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import hiredis
from chaos.checker import Violation

from simulation.batches import BatchKind
from simulation.loop import Node

if TYPE_CHECKING:
    from simulation.world import World

EVERY = 1.0
"""Seconds between two looks. A look takes no virtual time."""

CALM_AFTER = 15.0
"""Seconds after a fault for which messages may be repeated, and a wake-up may be lost with a worker."""

BOUND = 4.0
"""Seconds after which a batch that is due must have started: two slow messages. A worker looks by itself after 5."""

LONGEST = 5000.0
"""Seconds after which no history needs looks any more."""

PREFIX = "maas:{chaos}:"


@attrs.define
class Look:
    """Finds batches that wait for nothing."""

    world: "World"
    lanes: dict[str, bool] = attrs.field(factory=dict[str, bool])
    """For each task in a kind that runs in batches, whether it has a tenant or limits."""
    costs: dict[str, float] = attrs.field(factory=dict[str, float])
    _calm_since: float = 0.0
    _rooms: dict[Node, float] = attrs.field(factory=dict[Node, float])
    """Since when each worker has had a free slot."""
    _innocent: dict[Node, float] = attrs.field(factory=dict[Node, float])
    """The same of workers that run no suspect. The others may take no suspects of another cohort."""
    _waits: dict[tuple[str, ...], float] = attrs.field(factory=dict[tuple[str, ...], float])
    """Since when tasks have waited for nothing, as far as is known."""

    def disturb(self) -> None:
        """Note a fault."""
        self._calm_since = self.world.loop.now + CALM_AFTER

    async def run(self) -> None:
        """Look again and again."""
        loop = self.world.loop
        last = loop.now + LONGEST  # then a history in which nothing is left to happen is noticed
        while loop.now < last:
            await asyncio.sleep(EVERY)
            if not self._is_well():
                self.disturb()
            self._note_rooms()
            waits = self._found() if loop.now > self._calm_since else {}
            self._waits = {key: self._waits.get(key, loop.now) for key in waits}
            for key, (bound, since) in waits.items():
                if loop.now - max(self._waits[key], since) > bound:
                    text = f"a batch of {key[1]!r} is due ({key[2]}), and a worker has a free slot"
                    self.world.violations.append(Violation("idle", key[0], text))
                    return

    def _is_well(self) -> bool:
        network = self.world.network
        is_hurt = network.noise or network.slowness > 1 or network.down or network.denied or network.cut
        return not is_hurt and not any(node.still for node, _ in self.world.workers.values())

    def _note_rooms(self) -> None:
        now = self.world.loop.now
        rooms: dict[Node, float] = {}
        calm: dict[Node, float] = {}
        for node, scheduler in self.world.workers.values():
            service = scheduler._service
            is_ready = service is not None and service._started and not service._stopping.is_set()
            if not node.dead and is_ready and self.world.busy[node] < scheduler.config.threadpool.concurrency:
                rooms[node] = self._rooms.get(node, now)
                if not any(one.claimed.counts.suspect for one in service.parts.slots.attempts.values()):
                    calm[node] = self._innocent.get(node, now)
        self._rooms, self._innocent = rooms, calm

    def _found(self) -> dict[tuple[str, ...], tuple[float, float]]:
        """Return the first task of each batch that is due, with its kind and a reason.

        The values are the bound in seconds, and since when a worker has a free slot.
        """
        found: dict[tuple[str, ...], tuple[float, float]] = {}
        assert self.world.plan.batches is not None
        for kind in self.world.plan.batches.kinds:
            rooms = self._since(self._rooms, kind)
            if rooms is None or (reason := self._reason(kind)) is None:
                continue
            head, why = reason
            since = self._since(self._innocent, kind) if why == "suspect" else rooms
            if since is not None:
                # A worker that is busy with other kinds looks less often.
                is_soon = why == "old" or self.world.plan.batches.alone
                found[head, kind.name, why] = BOUND + (0 if is_soon else kind.max_wait), since
        return found

    def _since(self, workers: Mapping[Node, float], kind: BatchKind) -> float | None:
        return min((since for node, since in workers.items() if kind.name in self.world.functions[node]), default=None)

    def _ask(self, *commands: tuple[object, ...]) -> list[object]:
        packed = b"".join(hiredis.pack_command(command) for command in commands)
        return self.world.server.ask(packed, len(commands))

    def _reason(self, kind: BatchKind) -> tuple[str, str] | None:
        """Return the first task of a batch that is due, and why it is."""
        base = f"{PREFIX}k:{kind.name}:"
        ready, suspects, state = self._ask(
            ("ZRANGE", f"{base}ready", 0, kind.max_size - 1),
            ("ZRANGE", f"{base}suspects", 0, 0),
            ("HGET", f"{PREFIX}kinds", kind.name),
        )
        if state and not state.startswith(b"~"):
            return None  # paused
        for suspect in suspects:
            if not self.lanes[suspect.decode()]:
                return suspect.decode(), "suspect"
        if not ready:
            return None
        ids = [one.decode() for one in ready]
        if len(ids) >= kind.max_size:
            return ids[0], "full"
        costs = list(itertools.accumulate(self.costs[one] for one in ids))
        if kind.max_cost is not None and costs[-1] >= kind.max_cost:
            return ids[0], "full"
        rows = self._ask(*(("HMGET", f"{PREFIX}t:{one}", "u", "p") for one in ids))
        now = self.world.queue_ms()
        dues = [float(due or created.split(b" ", 1)[0]) for due, created in rows if created]
        return (ids[0], "old") if dues and min(dues) + kind.max_wait * 1000 <= now else None
