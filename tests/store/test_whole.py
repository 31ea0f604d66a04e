"""A script does all it should, or nothing: whichever right its user lacks, whichever key somebody has written over."""

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest
from support import Server, quick_config

from maas_backoff import StorageConfig, StorageError
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.emission import Part, Unsent
from maas_backoff.domain.limit import Limit
from maas_backoff.domain.outcome import Failed, LeaseExpired
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskError
from maas_backoff.errors import StorageDeniedError
from maas_backoff.store import scripts
from maas_backoff.store.batch import NO_SUSPECTS, BatchRequest, Claimed, Settle
from maas_backoff.store.creation import NewTask
from maas_backoff.store.ledger import Ledgers, Reservation
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.streams import Emitted, Place

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
ERROR = TaskError("ValueError", "boom")
COMMANDS = sorted(
    {name.lower() for script in scripts.ALL for name in re.findall(r"redis\.p?call\('([A-Z]+)'", script.text)}
)
HINTS = {"publish"}
"""The message to those who watch: without it a script does the rest, and they look by themselves."""
Step = Callable[[QueueStore, Ledgers], Awaitable[Any]]
Stores = tuple[QueueStore, Ledgers]


@attrs.define
class Way:
    """Steps through all that is done to a queue, each with another script, or another way through one."""

    client: Any
    policy: Any
    held: dict[str, Claimed] = attrs.field(factory=dict[str, Claimed])
    requests: int = 0

    def steps(self) -> list[tuple[str, Step]]:
        release, cancel = Settlement.release(self.policy), Settlement.cancel(self.policy)
        anew = attrs.evolve(release, counts=Counts())
        complete = Settlement.complete("1", self.policy)
        return [
            ("reap first", lambda s, _: s.lost.look(1e6, 0)),
            ("create", self.creates("a", "b", "c", "d", "e", "f")),
            ("create later", self.creates("later", due=5)),
            ("create for a gpu", self.creates("gpu", "gpu2", gpu=1)),
            ("claim", self.claims(6)),
            ("watch", lambda s, _: s.reader.get("a", watch=60)),
            ("read what waits", lambda s, _: s.reader.get("later")),
            ("renew", self.renews("a", "b")),
            ("progress", lambda s, _: s.writer.report_progress([("a", None, 50, "half")])),
            ("emit", self.emits("a", "b", "c")),
            ("emit more", self.emits("a", "b", "c", place=3)),
            ("read a stream", lambda s, _: s.streams.read_first([Place("parts", "a", "")], watch=60)),
            ("read a log", lambda s, _: s.streams.read_first([Place("log", "a", "last 1")])),
            ("complete", self.settles("a", lambda _: complete)),
            ("complete beyond the limit, and claim", self.settles("b", lambda _: complete, claims=1)),
            ("retry at once", self.settles("c", lambda counts: self.retry(counts, 0))),
            ("retry later", self.settles("d", lambda counts: self.retry(counts, 30))),
            ("reap what is lost", self.reaps(after=4000)),
            ("lose", self.loses("e", after=4000)),
            ("ask to cancel", lambda s, _: s.writer.request_cancel("f")),
            ("retry what is to be cancelled", self.settles("f", lambda counts: self.retry(counts, 0))),
            ("create with a deadline", self.creates_limited("late", "late too")),
            ("claim what has become due, and meet what is late", self.claims(6, after=6000)),
            ("emit for a failure", self.emits("later")),
            ("fail", self.settles("later", lambda _: Settlement.fail(ERROR, self.policy))),
            ("requeue", self.by_hand("later", "finished", anew)),
            ("mark processing", self.by_hand("later", "pending", release, external=True)),
            ("mark completed", self.by_hand("later", "external", complete)),
            ("move", self.by_hand("d", "pending", release, extra=("u", f"at {START + 60_000}"))),
            ("count settles", lambda s, _: s.writer.count_settles("k kind 1 0 0 0 5\nt acme 1 0 0 0 5", "sums")),
            ("claim on a gpu", self.claims(1, fits=("1:0 GPU-a 0 1",))),
            ("run out of memory", self.settles("gpu", self.out_of_memory)),
            ("cancel what waits for a gpu", self.by_hand("gpu", "pending", cancel)),
            ("be refused", self.by_hand("gpu", "pending", cancel)),
            ("look at demands", lambda s, _: s.reader.demands(NO_SUSPECTS)),
            ("hold", lambda s, _: s.writer.hold("1:0 GPU-a w", 60)),
            ("reap", lambda s, _: s.lost.look(1e6, 0)),
            ("pause", lambda s, _: s.writer.pause(on=True, by="ada")),
            ("resume", lambda s, _: s.writer.pause(on=False)),
            ("pause a kind", lambda s, _: s.writer.pause(on=True, kind="kind", by="ada")),
            ("resume a kind", lambda s, _: s.writer.pause(on=False, kind="kind")),
            ("stats", lambda s, _: s.reader.stats()),
            ("history", lambda s, _: s.reader.history(2)),
            ("breakdown", lambda s, _: s.breakdowns.read("kind", 2)),
            ("upcoming", lambda s, _: s.reader.upcoming(60, 5)),
            ("delete", lambda s, _: s.writer.delete("gpu2")),
            ("create for a batch", self.creates("m", kind="of")),
            ("wait for a batch", self.claims_batch("3 60000 -")),
            ("create more for a batch", self.creates("m2", kind="of")),
            ("create the last one for a batch", self.creates("m3", kind="of")),
            ("claim a batch", self.claims_batch("3 60000 -")),
            ("complete one of a batch", self.settles("m2", lambda _: complete)),
            ("create some of each", self.creates_some),
            ("purge", lambda s, _: s.writer.purge(TaskStatus.PENDING)),
            ("set a limit", lambda s, _: s.shares.set_limit("openai", Limit(concurrency=1).setting)),
            ("pause a tenant", lambda s, _: s.shares.set_tenant("acme", paused=True, by="ada")),
            ("read tenants", lambda s, _: s.shares.tenants()),
            ("read limits", lambda s, _: s.shares.limits(10)),
            ("resume a tenant", lambda s, _: s.shares.set_tenant("acme", paused=False)),
            ("remove a limit", lambda s, _: s.shares.set_limit("openai", "")),
            ("expire", lambda s, _: s.registry.expire("w")),
            ("leave", lambda s, _: s.registry.leave("w")),
            ("reserve", lambda _, ledgers: self.reserve(ledgers)),
            ("keep", lambda _, ledgers: ledgers.keep("GPU-a", [self.reservation()])),
            ("post", lambda _, ledgers: ledgers.hold("GPU-a", "q 1:0", 1, 60)),
            ("doubt", lambda _, ledgers: ledgers.doubt("GPU-a", "t", "Xid", limit=1, seconds=60)),
            ("trust", lambda _, ledgers: ledgers.trust("GPU-a")),
            ("read a ledger", lambda _, ledgers: ledgers.read("GPU-a")),
        ]

    def emits(self, *ids: str, place: int = 1) -> Step:
        async def step(store: QueueStore, _: Ledgers) -> None:
            unsent = Unsent(False, place, [Part("t", "text"), Part("j", "1")], place, ["1 line"])
            held = [self.held[task_id] for task_id in ids]
            emitted = [Emitted(one.task.task_id, one.token, one.task.attempt, unsent) for one in held]
            # A task whose own keys were written over is left out. The others are not.
            assert {place + 1} <= {*await store.streams.emit(emitted)} <= {place + 1, None}

        return step

    async def creates_some(self, store: QueueStore, _: Ledgers) -> None:
        """Create tasks of several kinds in one call; none of them is in the way of later calls."""
        on_gpu = self.policy.overridden({"min_gpu_memory_gb": 3 / 1024})
        kinds = [("now", 0, self.policy), ("soon", 3000, self.policy), ("big", 0, on_gpu)]
        await store.writer.enqueue([NewTask(name, "{}", -1, due, policy, "{}") for name, due, policy in kinds])

    def creates_limited(self, *ids: str) -> Step:
        """Tasks that must start within a ms. They are due before all others."""
        own = '{"@by":[0,0,1,0,60]}'
        return lambda s, _: s.writer.enqueue([NewTask(task_id, "{}", -1000, 0, self.policy, own) for task_id in ids])

    def creates(self, *ids: str, due: float = 0, gpu: int = 0, kind: str = "") -> Step:
        policy = self.policy.overridden({"min_gpu_memory_gb": gpu / 1024}) if gpu else self.policy
        return lambda s, _: s.writer.enqueue([NewTask(task_id, "{}", 0, due, policy, "", kind) for task_id in ids])

    def claims_batch(self, batch: str) -> Step:
        async def step(store: QueueStore, _: Ledgers) -> None:
            self.requests += 1
            request = BatchRequest((), 1, True, f"{self.requests}", 0, batch=batch, kind="of")
            answer = await store.exchange.send(request, "w")
            self.held |= {claimed.task.task_id: claimed for claimed in answer.claimed}

        return step

    def claims(self, count: int, *, after: float = 0, fits: tuple[str, ...] = ()) -> Step:
        async def step(store: QueueStore, _: Ledgers) -> None:
            store.connection.clock = f"{START + max(after, float(store.connection.clock) - START):.0f}"
            self.requests += 1
            answer = await store.exchange.send(BatchRequest((), count, True, f"{self.requests}", 0, fits=fits), "w")
            self.held |= {claimed.task.task_id: claimed for claimed in answer.claimed}

        return step

    def settles(self, task_id: str, settlement: Callable[[Counts], Settlement | None], *, claims: int = 0) -> Step:
        async def step(store: QueueStore, _: Ledgers) -> None:
            held = self.held[task_id]
            self.requests += 1
            what = settlement(held.counts)
            assert what is not None
            settle = Settle(task_id, "lease", held.token, what, held.counts)
            answer = await store.exchange.send(
                BatchRequest((settle,), claims, False, f"{self.requests}", 0, "r1 1"), "w"
            )
            assert answer.answers in (["ok"], ["cancelled"])

        return step

    def by_hand(
        self, task_id: str, kind: Any, settlement: Settlement, *, external: bool = False, extra: Any = ()
    ) -> Step:
        settle = Settle(task_id, kind, None, settlement, extra=extra)
        return lambda s, _: s.writer.settle(settle, external=external)

    def retry(self, counts: Counts, delay: float) -> Settlement:
        return Settlement.retry(Failed(ERROR), counts, delay, self.policy)

    @staticmethod
    def reaps(*, after: float) -> Step:
        async def step(store: QueueStore, _: Ledgers) -> None:
            store.connection.clock = f"{START + after:.0f}"
            await store.lost.look(1e6, 0)

        return step

    def loses(self, task_id: str, *, after: float) -> Step:
        async def step(store: QueueStore, _: Ledgers) -> None:
            store.connection.clock = f"{START + after:.0f}"
            held = self.held[task_id]
            what = decide(LeaseExpired(2, "cohort", 1), task_id, held.counts, self.policy, self.policy.backoff())
            assert what is not None
            assert await store.lost.settle([Settle(task_id, "expired", held.token, what, held.counts)], "w") == ["ok"]

        return step

    def out_of_memory(self, counts: Counts) -> Settlement:
        again = attrs.evolve(counts, oom=counts.oom + 1)
        return Settlement.retry_on_gpu(Failed(ERROR), again, 0, Demand(3), "GPU-a", self.policy)

    def renews(self, *ids: str) -> Step:
        def step(store: QueueStore, _: Ledgers) -> Awaitable[Any]:
            keys = store.connection.keys.all(scripts.RENEW.keys, info=store.connection.keys.info("w"))
            args: list[Any] = [store.connection.clock, store.connection.keys.prefix, "w", "{}", "3000", "a/1/2/3"]
            for task_id in ids:
                args += task_id, self.held[task_id].token
            return store.connection.server.run(scripts.RENEW, keys, args)

        return step

    @staticmethod
    def reservation() -> Reservation:
        return Reservation("w/1", 1, "running", "-", "w", "q", "t")

    async def reserve(self, ledgers: Ledgers) -> None:
        await ledgers.reserve("GPU-a", self.reservation(), free=9, used={}, limit=0, start_grace=0, holder="q 1:0")

    # The server's state

    def state(self) -> dict[bytes, object]:
        """Return all there is, but for times to live and wake-ups, which are hints.

        A count that was taken back is 0, as if it were not there.
        """
        keys = [key for key in self.client.scan_iter(count=1000) if not key.endswith(b"marker")]
        kinds = self._together(keys, lambda pipe, key: pipe.type(key))
        reads = {b"hash": "HGETALL", b"string": "GET"}
        pipe = self.client.pipeline(transaction=False)
        for key, kind in zip(keys, kinds, strict=True):
            if kind == b"zset":
                pipe.zrange(key, 0, -1, withscores=True)
            elif kind == b"stream":
                pipe.xrange(key)
            else:
                pipe.execute_command(reads[kind], key)
        contents = pipe.execute()
        return {key: _without_zeros(content) for key, content in zip(keys, contents, strict=True)}

    def saved(self) -> list[tuple[bytes, int, bytes]]:
        keys = self.client.keys()
        ttls = self._together(keys, lambda pipe, key: pipe.pttl(key))
        dumps = self._together(keys, lambda pipe, key: pipe.dump(key))
        return [(key, max(0, ttl), dumped) for key, ttl, dumped in zip(keys, ttls, dumps, strict=True)]

    def restore(self, saved: list[tuple[bytes, int, bytes]]) -> None:
        self.client.flushdb()
        self._together(saved, lambda pipe, one: pipe.restore(*one))

    def _together(self, items: Any, add: Callable[[Any, Any], object]) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for item in items:
            add(pipe, item)
        return pipe.execute()


def _without_zeros(content: object) -> object:
    if not isinstance(content, dict):
        return content
    return {name: value for name, value in content.items() if value != b"0"}


@contextlib.asynccontextmanager
async def stores(server: Server) -> AsyncIterator[tuple[Way, Stores, Stores]]:
    """Give a way, and its stores twice: of the server's own user, and of one whose rights the test changes."""
    _rights(server)
    own = StorageConfig(host="127.0.0.1", port=server.port, username="app", password="secret")
    made = [_stores(server.storage), _stores(own)]
    try:
        yield Way(server.client, made[0][0].connection.config.task.policy), *made
    finally:
        for store, ledgers in made:
            await ledgers.aclose()
            await store.aclose()
        server.client.execute_command("ACL", "DELUSER", "app")


def _stores(storage: StorageConfig) -> Stores:
    config = quick_config(storage)
    config.task.max_finished = 1
    store = QueueStore.of(config)
    ledgers = Ledgers(storage, store.connection.server, lease=3)
    store.connection.clock = ledgers.clock = f"{START}"
    return store, ledgers


def _rights(server: Server, *rules: str) -> None:
    server.client.execute_command(
        "ACL", "SETUSER", "app", "reset", "on", ">secret", "allkeys", "allchannels", "+@all", *rules
    )


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_without_a_right_a_script_writes_nothing(any_server: Server) -> None:
    """Each step without each command in turn, without channels and without the keys: done, or refused as a whole."""
    refused: set[str] = set()
    async with stores(any_server) as (way, (admin, ledgers), (user, user_ledgers)):
        for name, step in way.steps():
            user.connection.clock = admin.connection.clock
            before, saved, held = way.state(), way.saved(), dict(way.held)
            for rule in [*(f"-{command}" for command in COMMANDS), "resetchannels", "resetkeys"]:
                _rights(any_server, rule)
                try:
                    await step(user, user_ledgers)
                except StorageDeniedError:
                    refused.add(rule)
                    assert way.state() == before, f"{name} without {rule}: cut in half"
                else:
                    way.restore(saved)
                    way.held = dict(held)
                user.connection.clock = admin.connection.clock
            await step(admin, ledgers)
    # TIME is not asked for: the clock is the test's own.
    assert {f"-{command}" for command in COMMANDS} - refused == {*(f"-{hint}" for hint in HINTS), "-time"}
    assert "resetkeys" in refused


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_with_a_key_of_another_type_a_script_does_nothing_by_halves(server: Server) -> None:
    """Each key that there is, and each that a script names, written over by hand: done, or refused as a whole."""
    named = {name for script in scripts.QUEUE for name in script.keys} - {"task", "call", "request", "info"}
    refused = 0
    async with stores(server) as (way, (admin, ledgers), _):
        for name, step in way.steps():
            saved, held, clock = way.saved(), dict(way.held), admin.connection.clock
            others = {admin.connection.keys(other).encode() for other in named | {"gpu:1:0", "gpu:3:0", "lost:w"}}
            for key in sorted({key for key, _, _ in saved} | others):
                server.client.set(key, "nonsense")
                before = way.state()
                try:
                    await step(admin, ledgers)
                except (StorageError, AssertionError):
                    refused += 1
                    assert way.state() == before, f"{name} with {key!r} written over: cut in half"
                way.restore(saved)
                way.held, admin.connection.clock = dict(held), clock
            await step(admin, ledgers)
    assert refused > 100
