"""Admission to GPUs: looks at what waits for one, reserves room, and claims exactly what has got some.

Devices are reserved first and tasks claimed after: a full GPU costs no writes, and a busy box leaves tasks to others.
"""

import logging
import time

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.gate.fit import Plan, Start
from maas_backoff.gate.gate import HOLD, Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.loops.lane import Lane
from maas_backoff.loops.patience import Patience
from maas_backoff.running import Running
from maas_backoff.store.redis import RedisStore

log = logging.getLogger("maas_backoff.gpu")

PAUSE = 1.0
"""Seconds between two looks while something waits that does not fit. A new reading comes as often."""


class Admission:
    """Starts tasks that need a GPU where there is room. One for each worker; idle while nothing waits."""

    def __init__(self, store: RedisStore, running: Running, gate: Gate, lane: Lane, *, interval: float) -> None:
        """`lane` is one that nobody else uses. `interval`: the longest time between two looks, in seconds."""
        self._store = store
        self._running = running
        self._gate = gate
        self._lane = lane
        self._interval = interval
        self._usable = False
        self._patience = Patience("a worker cannot look after GPUs")

    async def run(self) -> None:
        """Look, and look again when something has changed."""
        while True:
            self._gate.pulse.clear()
            try:
                waiting = await self._look()
                self._patience.restored()
            except StorageError as error:
                await self._patience.after(error)
                continue
            unsettled = self._gate.unsettled
            if unsettled:
                self._gate.soon()
            watchful = waiting or unsettled or self._gate.keeps_children
            with anyio.move_on_after(PAUSE if watchful else self._interval):
                await self._pulsed(watchful=watchful)

    async def _pulsed(self, *, watchful: bool) -> None:
        """Wait for something that matters: a new reading alone does not while nothing waits."""
        while True:
            await self._gate.pulse.wait()
            if watchful or self._gate.unsettled or self._running.gpu_marked or bool(self._gate.usable) != self._usable:
                return
            self._gate.pulse.clear()

    async def _look(self) -> bool:
        """Start what fits; True where something is left that waits."""
        await self._gate.tidy()
        readings = self._gate.usable
        self._usable = bool(readings)
        marked, self._running.gpu_marked = self._running.gpu_marked, False
        if self._running.closing or not readings:
            self._running.listens_for_gpu = False
            self._running.spare_slots = 0
            return False
        waiting, first_ready, held = await self._store.demands()
        while waiting:
            slots = self._running.free
            made = await self._gate.plan(waiting, slots=max(1, slots), held=held)
            await self._post(made)
            # While all slots are taken, the next free one is for whoever comes first.
            first = made.starts[0].waiting.rank if made.starts else None
            self._running.spare_slots = int(not slots and first is not None and first <= first_ready)
            if not slots or not made.starts or not await self._start(made.starts):
                break
            waiting, first_ready, held = await self._store.demands()
        else:
            self._running.spare_slots = 0
        self._running.listens_for_gpu = not waiting
        if not waiting and not self._running.hears_gpu:
            await self._store.rouse(self._running.worker)  # it sleeps without an ear for this
        if waiting and marked:
            await self._store.mark_gpu()  # another worker may have room
        return bool(waiting)

    async def _post(self, made: Plan) -> None:
        name = made.hold.waiting.name if made.hold else ""
        if made.hold is not None:
            value = f"{name} {made.hold.reading.uuid} {self._running.worker}"
            if not await self._store.hold(value, HOLD):
                made.hold = None
            else:
                log.info("GPU %s is held for tasks that need %s", made.hold.reading.uuid, made.hold.waiting.demand)
        await self._gate.post(made, name)

    async def _start(self, starts: list[Start]) -> bool:
        """Reserve, claim, and give back what was not needed; False where nothing could be started."""
        grants: list[Grant] = []
        fits: list[str] = []
        for start in starts:
            grant = await self._gate.reserve(start)
            if grant is not None:
                grants.append(grant)
                fits.append(f"{start.waiting.name} {grant.uuid} {grant.index} {start.waiting.demand.memory}")
        frame = self._running.gpu_frame(fits, self._lane.number) if fits else None
        if frame is None:
            for grant in grants:
                grant.attempt_ended()
            return False
        sent = time.monotonic()
        answer = await self._lane.send(frame)
        taken = {claimed.fit for claimed in answer.claimed}
        for claimed in answer.claimed:
            self._gate.claimed(grants[claimed.fit], claimed.task.task_id, claimed.demand)
        self._lane.apply(frame, answer, sent, grants)
        for number, grant in enumerate(grants):
            if number not in taken:
                grant.attempt_ended()
        await self._gate.tidy()
        return bool(taken)
