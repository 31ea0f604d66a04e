"""A queue half of which is on another node already: a script does all it should there, or nothing."""

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load import strays
from support import quick_config
from topology import KINDS, ClusterRig, Node

from maas_backoff import StorageConfig, StorageUnavailableError, TaskError
from maas_backoff.domain.emission import Part, Unsent
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.store.batch import BatchRequest, Claimed, Settle
from maas_backoff.store.connect import Client
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.streams import Emitted, Place

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(120)]

ROUNDS = 40
WORKER = "w"


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClusterRig]:
    with ClusterRig(request.param, tmp_path) as rig:
        yield rig


class Queue:
    """A queue with one worker, driven by hand. `step` does something, or is refused as the queue is on its way."""

    def __init__(self, rig: ClusterRig) -> None:
        config = quick_config(StorageConfig(type="cluster", nodes=rig.addresses))
        self.store = QueueStore.of(config)
        self._patiently = self.store.connection.server.patiently
        self.policy = config.task.policy
        self._random = random.Random(5)
        self._ids = 0
        self._held: list[Claimed] = []
        self._unanswered: BatchRequest | None = None
        self._places: dict[int, int] = {}
        self.done = self.refused = 0

    async def create(self, due: float = 0) -> str:
        self._ids += 1
        task = NewTask(f"t{self._ids}", "{}", 0, due, self.policy, "")
        await self.store.writer.enqueue([task])
        return task.task_id

    async def exchange(self, claims: int, settles: tuple[Settle, ...] = ()) -> None:
        """Send a batch request; one that was not answered is sent first, as an exchange loop does."""
        request = self._unanswered or BatchRequest(settles, claims, True, f"request-{self._random.getrandbits(64)}", 0)
        self._unanswered = request
        answer = await self.store.exchange.send(request, WORKER)
        self._unanswered = None
        settled = {settle.token for settle in request.settles}
        self._held = [held for held in self._held if held.token not in settled] + answer.claimed

    async def outside(self, task_id: str, settlement: Settlement, *, external: bool = False) -> None:
        settle = Settle(task_id, "pending", None, settlement)
        await self.store.writer.settle(settle, external=external)

    async def fill(self, client: Any) -> None:
        """Make the queue anew, with every key it can have: a Cluster refuses a script that names a missing one."""
        keys = self.store.connection.keys
        for key in client.scan_iter(match=keys("*")):
            client.delete(key)
        self._held, self._unanswered, self._ids, self._places = [], None, 0, {}
        self.store.connection.server.patiently = self._patiently
        await self.create()
        while not self._held:
            with contextlib.suppress(StorageUnavailableError):
                await self.exchange(1)
        error = TaskError("E", "failed")
        for ended in (
            Settlement.complete("1", self.policy),
            Settlement.fail(error, self.policy),
            Settlement.cancel(self.policy),
        ):
            await self.outside(await self.create(60), ended)
        await self.outside(await self.create(60), Settlement.release(self.policy), external=True)
        await self.create(60)
        await self.create()
        client.hset(keys("demands"), "1024:0", "1024:0")
        for index in ("gpu:1024:0", "suspects"):
            task_id = await self.create(60)
            client.zrem(keys("scheduled"), task_id)
            client.zadd(keys(index), {task_id: 1})
        client.zadd(keys("marker"), {"0": 0})
        client.zadd(keys("workers"), {WORKER: 9_999_999_999_999})
        self.store.connection.server.patiently = self._once

    async def _once(self, send: Callable[[Client], Awaitable[Any]], _: float | None = None) -> Any:
        return await send(await self.store.connection.server.connect())

    def _settles(self) -> tuple[Settle, ...]:
        makes: list[Callable[[Claimed], Settlement]] = [
            lambda _: Settlement.complete("1", self.policy),
            lambda _: Settlement.release(self.policy),
            lambda held: Settlement.lose(TaskError("E", "lost"), Counts(lost=1, suspect=True), self.policy),
        ]
        chosen = self._random.sample(self._held, self._random.randint(0, len(self._held)))
        make = self._random.choice(makes)
        return tuple(Settle(held.task.task_id, "lease", held.token, make(held), held.counts) for held in chosen)

    async def emit(self) -> None:
        """Append a part to the stream of each running task, or nothing to any."""
        for held in self._held:
            unsent = Unsent(False, 1 + self._places.get(held.token, 0), [Part("t", "x")], 1, ["1 line"])
            emitted = Emitted(held.task.task_id, held.token, held.task.attempt, unsent)
            (length,) = await self.store.streams.emit([emitted])
            if length is not None:
                self._places[held.token] = length

    async def step(self) -> None:
        task_id = f"t{self._random.randint(1, self._ids)}"
        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: self.create(self._random.choice((0, 0, 60))),
            lambda: self.outside(task_id, Settlement.cancel(self.policy)),
            lambda: self.outside(task_id, Settlement.release(self.policy), external=True),
            lambda: self.store.writer.report_progress([(task_id, None, 50, "half")]),
            lambda: self.store.writer.request_cancel(task_id),
            lambda: self.store.writer.delete(task_id),
            lambda: self.store.lost.look(1e6, 0),
            lambda: self.store.reader.get(task_id, watch=10),
            lambda: self.store.streams.read_first([Place("parts", task_id, "")], watch=10),
            self.emit,
            lambda: self.store.shares.limits(10),
            *[lambda: self.exchange(self._random.randint(0, 3), self._settles())] * 8,
        ]
        try:
            await self._random.choice(steps)()
        except StorageUnavailableError:
            self.refused += 1
        else:
            self.done += 1


async def test_no_script_is_cut_in_half_while_its_queue_is_moved(
    rig: ClusterRig, request: pytest.FixtureRequest
) -> None:
    """Tasks first, in any order, and something done after each key: no task drops out of its index."""
    queue = Queue(rig)
    order = random.Random(7)
    slot, source = rig.slot("test"), rig.owner("test")
    target = next(master for master in rig.masters if master is not source)
    try:
        for number in range(ROUNDS):
            await queue.fill(source.client)
            await queue.step()
            assert not strays(source.client)
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", rig.id(source))
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", rig.id(target))
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            order.shuffle(keys)
            keys.sort(key=lambda key: b"}:t:" not in key)
            await queue.step()
            for key in keys:
                source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
                await queue.step()
            _finish(rig, slot, source, target)
            assert not strays(target.client), f"round {number}"
            source, target = target, source
    finally:
        await queue.store.aclose()
    print(f"{request.node.name}: {queue.done} calls answered, {queue.refused} refused")
    assert queue.refused


def _finish(rig: ClusterRig, slot: int, source: Node, target: Node) -> None:
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        for key in keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    for node in (target, *(node for node in rig.masters if node is not target)):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", rig.id(target))
