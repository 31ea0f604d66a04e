"""Stand-ins for clocks, threads, the network and chance: the library runs on the loop of the simulation."""

import asyncio
import contextlib
import logging
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from maas_backoff.domain.settlement import Settlement
from maas_backoff.store.batch import Settle
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.loops import exchange
from maas_backoff.worker.outbox import Outbox
from simulation.loop import empty_context
from simulation.network import START_MS, SimulatedLink

if TYPE_CHECKING:
    from simulation.world import World


class OwnLoopHere:
    """Stands in for worker/own_loop.py: runs the coroutine on the loop of the simulation, and not in a thread."""

    def __init__(self, main: Callable[[], Any], name: str, when_failed: str) -> None:
        self._main = main
        self.stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._main())

    async def stop(self) -> None:
        self.stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


@contextlib.contextmanager
def simulated(world: "World") -> Iterator[None]:
    """Put the world in the place of clocks, threads, the network and chance."""
    chance = random.Random(f"chance {world.plan.seed}")
    report = exchange.report

    def note_settle(attempt: Attempt, settlement: Settlement, answer: str, *more: str) -> None:
        status = "cancelled" if answer == "cancelled" else str(settlement.status)
        error = None if settlement.error is None else settlement.error.type
        world.note("settle", id=attempt.task.task_id, token=attempt.token, status=status, error=error, answer=answer)
        report(attempt, settlement, answer, *more)

    put, renewed = Outbox.put, Attempt.renewed

    def kept(self: Attempt, lease: Lease) -> None:
        world.note_renewal(self, START_MS / 1000 + lease.until)
        renewed(self, lease)

    def sent(self: Outbox, settle: Settle, attempt: Attempt) -> None:
        settlement = settle.settlement
        error = None if settlement.error is None else settlement.error.type
        about = {"status": str(settlement.status), "error": error}
        if settlement == Settlement.release(attempt.claimed.policy):
            about["released"] = True
        world.note("sent", id=settle.task_id, token=attempt.token, **about)
        put(self, settle, attempt)

    async def nothing(*_: object, **__: object) -> list[object]:
        return []

    SimulatedLink.network = world.network
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (time, "monotonic", world.monotonic),
            (time, "time", world.time),
            (secrets, "token_hex", lambda size: f"{chance.getrandbits(8 * size):0{2 * size}x}"),
            (secrets, "token_bytes", lambda size: chance.getrandbits(8 * size).to_bytes(size)),
            (secrets, "randbits", chance.getrandbits),
            (exchange, "report", note_settle),
            (Outbox, "put", sent),
            (Attempt, "renewed", kept),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        for place, value in (
            ("maas_backoff.client.client.check_queue", nothing),
            ("maas_backoff.worker.service.check_queue", nothing),
            ("maas_backoff.worker.loops.heartbeat.OwnLoop", OwnLoopHere),
            ("maas_backoff.worker.loops.orphans.check", nothing),
            ("maas_backoff.worker.loops.neighbours.os", SimpleNamespace(pidfd_open=_no_pidfd, close=lambda _: None)),
            ("maas_backoff.common.orphans.Origin.has_ended", lambda origin: world.has_ended(origin)),  # noqa: PLW0108 - as a method
            ("maas_backoff.worker.service.this_process", world.origin),
            ("maas_backoff.worker.executors.call.Context", empty_context),
            ("maas_backoff.worker.service.in_thread", _here),
            ("maas_backoff.worker.loops.neighbours.in_thread", _here),
            ("maas_backoff.store.location.Location.link", lambda _self, _address, timeout: SimulatedLink(timeout)),
        ):
            stack.enter_context(mock.patch(place, value))
        # Tasks of dead nodes print errors when they are collected. Nobody needs the log of a whole fleet.
        stack.enter_context(mock.patch.object(sys, "unraisablehook"))
        library = logging.getLogger("maas_backoff")
        stack.callback(library.setLevel, library.level)
        library.setLevel(logging.CRITICAL + 1)
        stack.callback(random.setstate, random.getstate())
        random.seed(f"jitter {world.plan.seed}")
        yield


async def _here(read: Callable[[], object]) -> object:
    return read()


def _no_pidfd(_: int) -> int:
    raise OSError(38, "a simulated process has no file")
