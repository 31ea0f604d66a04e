"""Admission to GPUs: looks at what waits for one, reserves room, and claims exactly what has got some.

Devices are reserved first and tasks claimed after: a full GPU costs no writes, and a busy box leaves tasks to others.
"""

import math
import time

import anyio

from maas_backoff.common.guard import log_for
from maas_backoff.errors import StorageError
from maas_backoff.gate.fit import Plan, Start
from maas_backoff.gate.gate import HOLD, Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.store.frame import Answer, Frame
from maas_backoff.store.redis import RedisStore
from maas_backoff.worker.loops.lane import Lane
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.running import Running

log = log_for("gpu")

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
        self._held = ""
        self._patience = Patience("a worker's admission to GPUs", store.server.outage)

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
            if self._gate.grants.unsettled:
                self._gate.grants.soon()
            await self._pause(waiting=waiting)

    async def _pause(self, *, waiting: bool) -> None:
        """Wait until a look is worth its while: a new reading alone is not while nothing waits."""
        longest = anyio.current_time() + self._interval
        while True:
            with anyio.move_on_after(PAUSE):
                await self._gate.pulse.wait()
            self._gate.pulse.clear()
            if waiting or self._is_watchful() or anyio.current_time() >= longest:
                return

    def _is_watchful(self) -> bool:
        """Whether something here may have changed that matters to tasks, or nothing would tell of one that comes."""
        gate, running = self._gate, self._running
        return (
            gate.grants.unsettled
            or gate.grants.untold
            or gate.grants.keep_children
            or running.gpu_marked
            or bool(gate.devices.usable) != self._usable
            # While it is busy with other tasks it does not sleep where the marker could wake it.
            or (self._usable and running.hungry)
        )

    async def _look(self) -> bool:
        """Start what fits; True where something is left that waits."""
        await self._gate.tidy()
        readings = self._gate.devices.usable
        self._usable = bool(readings)
        able = bool(readings) and not self._running.closing
        if not able:
            self._running.spare(0)
        waiting = able and await self._start_what_fits()
        useless = waiting or not able
        self._running.listens_for_gpu = not useless
        if not useless and not self._running.hears_gpu and not self._running.hungry:
            await self._store.rouse(self._running.worker)  # it sleeps without an ear for this
        if useless and self._running.gpu_marked:
            await self._store.mark_gpu()  # another worker may have room
        self._running.gpu_marked = False
        return waiting

    async def _start_what_fits(self) -> bool:
        """Start one task after the other, the oldest that fits first; True where something is left that waits."""
        running = self._running
        waiting, first_ready, held = await self._store.demands(running.suspects.on_gpus(running.attempts.values()))
        while waiting:
            slots = running.free
            made = await self._gate.plan(waiting, slots=max(1, slots), held=held)
            await self._post(made)
            # While all slots are taken, the next free one is for whoever comes first.
            first = made.starts[0].waiting.rank if made.starts else math.inf
            running.spare(len(made.starts) if slots else int(bool(made.starts) and first <= first_ready))
            if not slots:
                if running.spare_slots and running.sleeps_on_slots:
                    await self._store.rouse(running.worker)
                return True
            starts = [one for one in made.starts[: running.free] if one.grant is not None or running.may_start_child()]
            started = bool(starts) and await self._start(starts)
            running.spare(0)
            if not started:
                return True
            waiting, first_ready, held = await self._store.demands(running.suspects.on_gpus(running.attempts.values()))
        running.spare(0)
        return False

    async def _post(self, made: Plan) -> None:
        name, value = made.hold.waiting.name if made.hold else "", ""
        if made.hold is not None:
            value = f"{name} {made.hold.reading.uuid} {self._running.worker}"
            if not await self._store.hold(value, HOLD):
                made.hold = None
            elif value != self._held:
                log.info("GPU %s is held for tasks that need %s", made.hold.reading.uuid, made.hold.waiting.demand)
        self._held = value if made.hold is not None else ""
        await self._gate.post(made, name)

    async def _start(self, starts: list[Start]) -> bool:
        """Reserve, claim, and give back what was not needed; False where nothing could be started."""
        grants: list[Grant] = []
        fits: list[str] = []
        try:
            for start in starts:
                grant = await self._gate.reserve(start)
                if grant is not None:
                    grants.append(grant)
                    fits.append(f"{start.waiting.name} {grant.uuid} {grant.index} {start.waiting.demand.memory}")
            frame = self._running.gpu_frame(fits, self._lane.number)
            return frame is not None and await self._claim(frame, grants)
        finally:
            # What no task has taken, also when the server did not answer.
            for grant in grants:
                if not grant.task_id:
                    grant.attempt_ended()

    async def _claim(self, frame: Frame, grants: list[Grant]) -> bool:
        """Claim tasks for what was reserved; False where there were none (any more)."""
        sent = time.monotonic()
        try:
            answer = await self._lane.send(frame)
        except StorageError:
            self._running.answered(frame, Answer([], [], None, hit=False))
            raise
        for claimed in answer.claimed:
            grants[claimed.fit].claimed(claimed.task.task_id, claimed.demand)
        self._lane.apply(frame, answer, sent, grants)
        await self._gate.tidy()  # so that the ledger tells of the tasks
        return bool(answer.claimed)
