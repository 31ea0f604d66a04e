"""docs/data-model.md is true: the keys of a queue, seen while it lives, are those of the page."""

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from support import Server, eventually, table

from maas_backoff import Retry, Snooze, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.client.creator import TaskCreator
from maas_backoff.domain.emission import Part, Unsent
from maas_backoff.domain.kind import NAMELESS, Kinds
from maas_backoff.domain.settlement import Settlement, decide
from maas_backoff.store import scripts
from maas_backoff.store.batch import BatchRequest, Settle
from maas_backoff.store.keys import Keys
from maas_backoff.store.ledger import Ledgers, Reservation
from maas_backoff.store.markers import Markers
from maas_backoff.store.preflight import trial
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.registry import Registry
from maas_backoff.store.streams import Emitted
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "maas_backoff/docs/data-model.md").read_text(encoding="utf-8")
SPAN = re.compile(r"`([^`]+)`")
GPU = "GPU-a"
PARTS = {"<n>": r"\d+", "<minute>": r"\d+", "<exchange>": r"\d+", "<tenant>": ".*"}
PARTS["<set>"] = r"(?:[^/]+/)?~?\d+(?::\d+)?"
"""Expressions of parts of a name; any other part is at least one character."""

LEASE, RESULT_TTL, FAILED_TTL = 3, 500, 700

UNSEEN = {"check:<name>": "one EVAL makes these keys and removes them"}
"""Keys of the page that nobody sees from outside, and the reason."""


class OutOfMemoryError(Exception):
    """As PyTorch names it."""


ERRORS = {
    "memory": OutOfMemoryError("CUDA out of memory"),
    "fault": RuntimeError("uncorrectable ECC error encountered"),
    "params": Retry(after=0, params={"other": "params"}),
    "snooze": Snooze(after=0.01),
}


# The page


@attrs.frozen
class Key:
    """A row of the table of keys."""

    name: str
    type: str
    lives: str
    writers: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """The longest time to live with the configuration of this test; None where the row says none."""
        expression = SPAN.match(self.lives)
        if expression is None:
            assert self.lives.startswith("none"), self
            return None
        words = expression[1].split()  # "lease", "10 s", or a product with a sign between
        return {"s": 1, "lease": LEASE}[words[-1]] * (float(words[0]) if len(words) > 1 else 1)


def section(heading: str) -> str:
    found = re.search(rf"^##+ {heading}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading!r}"
    return found[1]


@cache
def keys() -> dict[str, Key]:
    head, *rows = table(section("Keys"))
    assert head == ["key", "type", "holds", "bound", "time to live", "written by"]
    found = [Key(row[0].strip("`").replace("\\|", "|"), row[1], row[4], tuple(SPAN.findall(row[5]))) for row in rows]
    assert all(all(row) for row in rows)
    assert len({key.name for key in found}) == len(found)
    return {key.name: key for key in found}


@cache
def fields() -> dict[str, list[str]]:
    """Return the documented fields of each hash, and the members of a worker's status, by the name of the key."""
    found: dict[str, list[str]] = {}
    for heading in re.findall(r"^### (.*)$", PAGE, re.MULTILINE):
        text = section(heading)
        rows = list(table(text))
        if rows and rows[0][0] in {"field", "member"}:
            named = re.match(r"\s*(?:Hash|Hashes|String) (.*?)[.:]\s", text)
            assert named is not None, heading
            for name in SPAN.findall(named[1]):
                others = re.compile(rf"only in (?!`{name}`)")
                found[name] = [row[0].strip("`") for row in rows[1:] if not others.search(row[1])]
    return found


def matches(pattern: str, name: str) -> bool:
    parts = re.split(r"(<[^>]+>)", pattern)
    expression = "".join(PARTS.get(part, ".+") if part.startswith("<") else re.escape(part) for part in parts)
    return re.fullmatch(expression, name, re.DOTALL) is not None


def only(name: str, patterns: Any) -> str:
    found = [pattern for pattern in patterns if matches(pattern, name)]
    assert len(found) == 1, f"{name}: expected one pattern of the page, found {found}"
    return found[0]


# The server


class Seen:
    """All keys of the library that were seen, each compared with the page when it was seen."""

    def __init__(self, server: Server) -> None:
        self._client = server.client
        self.prefix = Keys("test").prefix
        self.names: set[str] = set()
        self.fields: defaultdict[str, set[str]] = defaultdict(set)
        self.longest: defaultdict[str, float] = defaultdict(float)

    def look(self) -> set[str]:
        """Compare the keys that are there now; return their names."""
        found = sorted(self._client.scan_iter("*", count=1000))
        pipe = self._client.pipeline(transaction=True)  # a key is of one moment
        for key in found:
            pipe.type(key).pttl(key).hgetall(key).get(key).zrange(key, 0, -1, withscores=True).xrange(key)
        answers = pipe.execute(raise_on_error=False)
        now = set[str]()
        columns = (answers[n::6] for n in range(6))
        for key, kind, ttl_ms, fields_, text, entries, stream in zip(found, *columns, strict=True):
            if kind != b"none":  # gone since the scan
                name = key.decode().removeprefix(self.prefix)
                now.add(name)
                content = {b"hash": fields_, b"string": text, b"zset": entries, b"stream": stream}[kind]
                self._compare(name, kind.decode(), ttl_ms / 1000, content)
        return now

    def _compare(self, name: str, kind: str, ttl: float, content: Any) -> None:
        key = keys()[only(name, keys())]
        self.names.add(key.name)
        assert kind == key.type, name
        longest = key.seconds
        if key.name == "t:<id>":
            state = content.get(b"s", b"pending")
            if state in {b"completed", b"failed", b"cancelled"}:
                longest = FAILED_TTL if state == b"failed" else RESULT_TTL
        if longest is None:
            assert ttl < 0, f"{name} has a time to live of {ttl} s"
        else:
            assert 0 <= ttl <= longest + 1, f"{name} has a time to live of {ttl} s"  # 0: it ends in this ms
            self.longest[key.name] = max(self.longest[key.name], ttl)
        if kind == "zset":
            assert all(isinstance(score, float) for _, score in content)
            return
        if key.name == "w:<worker>":
            content = {member.encode(): value for member, value in json.loads(content).items()}
        elif kind != "hash":
            return
        for field in content:
            self.fields[key.name].add(only(field.decode(), fields()[key.name]))

    async def until(self, *patterns: str) -> None:
        """Look until keys of all these patterns are there at once."""
        await eventually(
            lambda: {only(name, keys()) for name in self.look()}.issuperset(patterns),
            f"{', '.join(patterns)} are there",
        )


# The life of a queue


@pytest.fixture
def config(config: TaskBackoffConfig) -> TaskBackoffConfig:
    config.task.result_ttl, config.task.failed_ttl = RESULT_TTL, FAILED_TTL
    config.scheduler.lease = LEASE
    config.scheduler.shutdown_grace = 0
    config.gpu.starvation_after = 0
    return config


async def test_the_keys_of_a_queue_are_those_of_the_page(
    server: Server, config: TaskBackoffConfig, scheduler: TaskBackoffScheduler
) -> None:
    seen = Seen(server)
    with server.client.pubsub() as heard:
        heard.psubscribe("*")
        assert heard.get_message(timeout=20)["type"] == "psubscribe"
        await by_producers(scheduler, seen)
        await by_tenants(scheduler, seen)
        await by_a_worker_that_emits(scheduler, seen)
        await by_a_worker_that_dies(scheduler, config, seen)
        await by_a_worker(config, seen)
        await by_a_broken_gpu(scheduler, config, seen)
        seen.look()
        messages = list(iter(lambda: heard.get_message(timeout=0), None))
    assert seen.names == keys().keys() - UNSEEN.keys()
    documented = {(key, field) for key, names in fields().items() for field in names}
    found = {(key, field) for key, names in seen.fields.items() for field in names}
    assert found == documented
    short = {name: ttl for name, ttl in seen.longest.items() if ttl < 0.5 * (keys()[name].seconds or RESULT_TTL)}
    assert not short, "times to live that are much shorter than the page says"
    head, *rows = table(section("Channels"))
    assert head[0] == "channel"
    channels = {row[0].strip("`") for row in rows}
    assert {only(message["channel"].decode().removeprefix(seen.prefix), channels) for message in messages} == channels
    assert b"watched" in {message["data"] for message in messages}


async def by_producers(scheduler: TaskBackoffScheduler, seen: Seen) -> None:
    """Without a worker, so that nothing leaves its place."""
    await scheduler.create_task({}, "watched", priority=5, max_retry_count=20, backoff_interval=60)
    await scheduler.create_task({}, "later", delay=60)
    await scheduler.create_task({}, "on a GPU", min_gpu_memory_gb=4)
    store = scheduler._client.store
    of_kind = TaskCreator(scheduler.config, store.writer, None, "kind")
    await of_kind.create({}, "of a kind", {})
    await of_kind.create({}, "of a kind, on a GPU", {"min_gpu_memory_gb": 4})
    await seen.until("kinds", "k:<kind>:ready", "k:<kind>:marker", "k:<kind>:gpu_marker")
    await seen.until("t:<id>", "ready", "scheduled", "gpu:<set>", "demands", "policies", "meta", "marker", "gpu_marker")
    async with anyio.create_task_group() as group:
        group.start_soon(watch, scheduler)
        await seen.until("watched")
        assert await scheduler.mark_task_processing("watched")
        assert await scheduler.update_task_progress("watched", 50, "half")
        await seen.until("external", "call:<call id>")
        for n in range(11):
            assert await scheduler.mark_task_failed("watched", f"reason {n}")
        assert await scheduler.cancel_task("watched")
        await seen.until("cancelled", "totals", "h:<minute>", "errors")
    assert await scheduler.retry_task("watched")
    assert await scheduler.mark_task_failed("watched", retry=False)
    assert await scheduler.mark_task_completed("later", "a result")
    await seen.until("completed", "failed")
    assert await scheduler.pause(by="ada") and await scheduler.pause(kind="render", by="ada")
    seen.look()
    assert await scheduler.resume(kind="render")
    seen.look()
    assert await scheduler.resume()
    assert await scheduler.purge_tasks("pending") == 3
    assert await scheduler.delete_task("later")


async def by_tenants(scheduler: TaskBackoffScheduler, seen: Seen) -> None:
    """Tasks of tenants in lanes of each index, and limits of each sort. One limit waits for a task that runs."""
    assert await scheduler.set_weight("acme", 2)
    assert await scheduler.pause(tenant="paused", by="ada")
    assert await scheduler.set_limit("one", concurrency=1, rate=(5, "1m"), tokens=(1000, "1m"))
    assert await scheduler.set_limit("user:*", concurrency=2)
    store = scheduler._client.store
    of_kind = TaskCreator(scheduler.config, store.writer, None, "kind")
    for creator in (TaskCreator(scheduler.config, store.writer, None), of_kind):
        for options in ({}, {"min_gpu_memory_gb": 4.0}):
            await creator.create({}, None, {"tenant": "acme", **options})
            await creator.create({}, None, {"tenant": "acme", "limits": {"one": 1, "user:7": 1}, **options})
    await scheduler.create_task({}, tenant="paused")
    await seen.until("lanes", "laned", "waiting", "tenants", "limits")
    await seen.until("ready|<lane>", "ready:turns", "ready:limited|<tenant>")
    await seen.until("k:<kind>:ready|<lane>", "k:<kind>:ready:turns", "k:<kind>:ready:limited|<tenant>")
    await seen.until("gpu:<set>|<lane>", "gpu:<set>:turns", "gpu:<set>:limited|<tenant>")
    kinds = Kinds((NAMELESS, "kind"))
    request = BatchRequest((), 9, may_claim_suspect=False, request_id="tenants", exchange=0)
    claimed = (await store.exchange.send(request, "w", kinds)).claimed
    assert len(claimed) == 3, "the paused tenant's task waits, and one that waits for a limit"
    await seen.until("virtual", "use", "held", "arrivals", "shut:<limit>", "opens")
    settles = tuple(
        Settle(
            one.task.task_id,
            "lease",
            one.token,
            Settlement.complete("1", one.policy),
            used=["c one 1"],
        )
        for one in claimed
    )
    request = BatchRequest(settles, 0, may_claim_suspect=False, request_id="used", exchange=0)
    assert (await store.exchange.send(request, "w", kinds)).answers == ["ok"] * 3
    await store.writer.count_settles("t acme 3 0 0 0 15", "sums")
    await seen.until("closed", "ht:<minute>", "ht10:<n>")
    assert await scheduler.resume(tenant="paused")
    assert await scheduler.purge_tasks("pending") == 6


async def by_a_worker_that_emits(scheduler: TaskBackoffScheduler, seen: Seen) -> None:
    """Its task ends; a second one is retried by hand, and keeps its log."""
    store = scheduler._client.store
    for task_id in ("emits", "fails"):
        await scheduler.create_task({}, task_id)
        request = BatchRequest((), 1, may_claim_suspect=False, request_id=task_id, exchange=0)
        ((held,),) = [(await store.exchange.send(request, "emits")).claimed]
        unsent = Unsent(continues=False, place=1, parts=[Part("t", "a"), Part("j", "1")], line=1, lines=["1 line"])
        assert await store.streams.emit([Emitted(task_id, held.token, 1, unsent)]) == [2]
        await seen.until("parts:<id>", "log:<id>")
        assert await scheduler.mark_task_failed(task_id, retry=False)
        seen.look()
    assert await scheduler.retry_task("fails")
    seen.look()
    assert await scheduler.cancel_task("fails")


async def watch(scheduler: TaskBackoffScheduler) -> None:
    async for _ in scheduler.watch("watched"):
        pass


async def by_a_worker_that_dies(scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, seen: Seen) -> None:
    """It claims three tasks and completes one. The next is cancelled; the leases of both that are left run out.

    The reaper's clock is far ahead, so that the clock of the next one was set back. It ends a task that has expired.
    """
    store = scheduler._client.store
    await scheduler.create_tasks([{"n": n} for n in range(3)])
    await TaskCreator(config, store.writer, None, "kind").create({}, "of a kind", {})
    kinds = Kinds(("kind",))
    request = BatchRequest((), 1, may_claim_suspect=False, request_id="kind", exchange=1)
    assert len((await store.exchange.send(request, "dead", kinds)).claimed) == 1
    request = BatchRequest((), 3, may_claim_suspect=False, request_id="first", exchange=0)
    *claimed, last = (await store.exchange.send(request, "dead")).claimed
    settle = Settle(last.task.task_id, "lease", last.token, Settlement.complete("1", last.policy))
    gpu_memory = "g40 1\nn40 1\ngsum 1024\nnsum 1024"  # no fake GPU tells the memory of a process
    request = BatchRequest((settle,), 0, may_claim_suspect=False, request_id="next", exchange=0, tally=gpu_memory)
    assert (await store.exchange.send(request, "dead")).answers == ["ok"]
    await store.markers.wake("dead")
    assert await scheduler.cancel_task(claimed[0].task.task_id, running=True)
    await seen.until("leases", "req:<worker>:<exchange>", "ctl:<worker>", "marker:<worker>")
    await scheduler.create_task({}, "expires", start_within=0.001)
    await seen.until("deadlines")
    later = QueueStore.of(config)
    later.connection.clock = f"{claimed[0].started_ms + 1000 * (LEASE + 30):.0f}"
    for one in (await later.lost.look(gap=LEASE / 2, grace=0))[0]:
        settlement = decide(one.loss, one.task_id, attrs.evolve(one.counts, lost=1), one.policy, one.policy.backoff())
        assert settlement is not None
        assert await later.lost.settle([one.settle(settlement)], "reaper") != ["lost"]
    await later.aclose()
    await seen.until("suspects", "k:<kind>:suspects", "lost:<worker>")
    assert "w" in seen.fields["t:<id>"]


async def by_a_worker(config: TaskBackoffConfig, seen: Seen) -> None:
    """Run the rest. Tasks want the same GPU, come back for each reason, and one is handed back at the end."""
    config.scheduler.worker_name = "first"
    worker = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([FakeGpu(GPU, total_gb=16)]))
    go_on = anyio.Event()

    @worker.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        match task.task_params.get("does"):
            case "wait":
                await go_on.wait()
            case "sleep":
                await anyio.sleep_forever()
            case str(error) if task.attempt == 1:
                raise ERRORS[error]

    @worker.batch()
    async def batch(items: list[int]) -> list[int]:
        return items

    async with worker:
        large = [await worker.create_task({"does": "wait", "n": n}, min_gpu_memory_gb=10) for n in (1, 2)]
        await seen.until(
            "workers", "w:<worker>", "host:<boot>/<namespace>", "name:<name>", "leases", "maas:gpu:{<uuid>}", "hold"
        )
        # The ledger is told after the queue.
        await eventually(lambda: seen.look() and "hold" in seen.fields["maas:gpu:{<uuid>}"], "the device is held")
        go_on.set()
        again = [await worker.create_task({"does": error}, min_gpu_memory_gb=1) for error in ERRORS]
        for task_id in (*large, *again):
            assert (await worker.wait_task(task_id, 20)).status == "completed"
            seen.look()
        assert await (await batch.create(1)).result(20) == 1
        await worker.create_task({"does": "sleep"}, "handed back")
        await eventually(lambda: is_processing(worker, "handed back"), "the last one runs")
        assert [one.name for one in await worker.quiet_workers("first")]
        await seen.until("quiet:<worker>")


async def is_processing(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and task.status == "processing"


async def by_a_broken_gpu(scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, seen: Seen) -> None:
    """Write the fields of children and faults by hand, as a worker does with its reservations."""
    server = scheduler._client.store.connection.server
    for queue in ("test", ""):  # a fault of a task, and of the device itself
        ledgers = Ledgers(config.storage, server, lease=LEASE, queue=queue or "test")
        uuid = f"GPU-b{queue}"
        one = Reservation(id="w/1", mib=1, state="running", owner="1:1", worker="w", queue="test", task_id="x", seen=1)
        await ledgers.need(uuid, 1, 5)
        assert await ledgers.doubt(uuid, queue and "x", "broken", limit=1, seconds=0)
        assert await ledgers.reserve(uuid, one, free=9, used={}, limit=0, start_grace=0, holder="test 1:0") == "ok"
        await ledgers.keep(uuid, [one])
        seen.look()


# The page alone


def test_no_name_matches_two_patterns_of_the_page() -> None:
    for patterns in (keys(), *fields().values()):
        for pattern in patterns:
            assert only(re.sub(r"<(?:n|minute|exchange|set)>", "1", pattern), patterns) == pattern


def test_each_hash_has_its_fields_on_the_page() -> None:
    hashes = {key.name for key in keys().values() if key.type == "hash"}
    assert fields().keys() - hashes == {"w:<worker>"}
    assert hashes <= fields().keys()


OWN = {"task": "t:<id>", "info": "w:<worker>", "request": "req:<worker>:<exchange>", "call": "call:<call id>"}
OWN |= {"ledger": "maas:gpu:{<uuid>}", "host": "host:<boot>/<namespace>", "name": "name:<name>"}
OWN |= {"quiet": "quiet:<worker>"}
"""Keys that a script is given under another name."""


def reached(script: scripts.Script[object]) -> set[str]:
    """Return the keys that a script is given, and those whose names it makes of the prefix."""
    given = {OWN.get(name, name) for name in script.keys}
    if script.name == "settle":
        given.add("call:<call id>")  # the request of an operation
    if script.name == "purge":
        given |= {"ready", "suspects", "scheduled", "completed", "failed", "cancelled"}
    made = set(re.findall(r"(?:prefix|ARGV\[[12]\]) \.\. '([^']+)'", script.text)) - {"never", "changed"}
    made |= set(re.findall(r"base \.\. '([^']+)'", script.text))
    made |= {f"ready{end}" for end in re.findall(r"index \.\. '([|:][^']*)'", script.text)}
    return given | {name for name in keys() if name.partition("<")[0] in made} | {n for n in made if n not in _heads()}


def _heads() -> set[str]:
    return {name.partition("<")[0] for name in keys()}


@pytest.mark.parametrize("script", scripts.ALL, ids=lambda script: script.name)
def test_the_keys_of_a_script_are_on_the_page(script: scripts.Script[object]) -> None:
    assert reached(script) <= keys().keys()


@pytest.mark.parametrize("key", keys().values(), ids=lambda key: key.name)
def test_a_key_is_written_by_scripts_that_reach_it(key: Key) -> None:
    known = {script.name: script for script in scripts.ALL}
    places = {"Markers": Markers, "Ledgers": Ledgers, "Registry": Registry, "": trial}
    assert key.writers
    for writer in key.writers:
        owner, _, name = writer.rpartition(".")
        if writer in known:
            assert key.name in reached(known[writer]), writer
        else:
            assert hasattr(places[owner], name), writer
