"""Spans of calls that settle tasks of other processes: operations, in the caller's trace, and the reaper."""

import itertools
from collections.abc import Iterator, Sequence

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support import eventually
from test_otel import Breaks, Spans, linked, place
from test_otel_metrics import measured

from maas_backoff import Selection, StorageUnavailableError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.common.process_name import process_name
from maas_backoff.otel import OpenTelemetry
from maas_backoff.store.batch import BatchRequest, Settle
from maas_backoff.store.writer import SETTLE_LIMIT
from maas_backoff.worker.loops.reap import Reaper

pytestmark = pytest.mark.anyio


@pytest.fixture
def spans() -> Iterator[Spans]:
    provider = Spans()
    yield provider
    provider.shutdown()


async def test_operations_have_spans_in_the_trace_of_their_caller(config: TaskBackoffConfig, spans: Spans) -> None:
    """Each links to the create, if there is one, and says whether it has changed the task. A dry run has none."""
    reader = InMemoryMetricReader()
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans, MeterProvider([reader])))
    plain = TaskBackoffScheduler(config)
    await plain.create_task({}, "plain")
    for task_id in ("a", "b", "c", "d"):
        await scheduler.create_task({}, task_id)
    creates = {span["attributes"]["messaging.message.id"]: place(span) for span in spans("create test")}
    with spans.get_tracer("web").start_as_current_span("POST /cancel"):
        assert await scheduler.cancel_task("a")
        assert not await scheduler.cancel_task("a")
        assert await scheduler.cancel_task("plain")
        assert await scheduler.mark_task_completed("b", 1)
        assert await scheduler.mark_task_failed("c", retry=False)
        assert await scheduler.cancel_tasks(Selection(id_prefix="d"), dry_run=True) == 1
        assert await scheduler.cancel_tasks(Selection(id_prefix="d")) == 1
    caller = await spans.one("POST /cancel")
    settles = [span for span in spans() if span["attributes"].get("messaging.operation.type") == "settle"]
    told = []
    for span in settles:
        attributes = span["attributes"]
        assert (span["parent_id"], place(span)[0]) == (place(caller)[1], place(caller)[0])
        assert span["kind"] == "SpanKind.CLIENT" and span["status"] == {"status_code": "UNSET"}
        assert span["name"] == f"{attributes['messaging.operation.name']} test"
        assert attributes["messaging.client.id"] == process_name()
        assert attributes["server.port"] == config.storage.port
        names = ("messaging.message.id", "messaging.batch.message_count", "maas_backoff.changed")
        told.append((span["name"], *(attributes.get(name) for name in names), linked(span)))
    assert told == [
        ("cancel test", "a", None, 1, [creates["a"]]),
        ("cancel test", "a", None, 0, []),
        ("cancel test", "plain", None, 1, []),
        ("complete test", "b", None, 1, [creates["b"]]),
        ("fail test", "c", None, 1, [creates["c"]]),
        ("cancel test", None, 1, 1, []),
    ]
    durations = measured(reader)["messaging.client.operation.duration"]
    numbers = {point["messaging.operation.name"]: number for point, number in durations}
    assert numbers == {"create": 4, "cancel": 4, "complete": 1, "fail": 1}
    assert not any("messaging.client.id" in point or "messaging.message.id" in point for point, _ in durations)
    await scheduler.shutdown()
    await plain.shutdown()


async def test_the_span_of_an_operation_that_fails_has_what_it_changed(
    config: TaskBackoffConfig, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    await scheduler.create_tasks([{"n": n} for n in range(SETTLE_LIMIT + 1)])
    settle_all, calls = scheduler._client.store.writer.settle_all, itertools.count()

    async def once(settles: Sequence[Settle]) -> list[str]:
        if next(calls):
            raise StorageUnavailableError("the server does not answer")
        return await settle_all(settles)

    monkeypatch.setattr(scheduler._client.store.writer, "settle_all", once)
    with pytest.raises(StorageUnavailableError):
        await scheduler.cancel_tasks(Selection(status="pending"))
    span = await spans.one("cancel test")
    assert span["attributes"]["maas_backoff.changed"] == SETTLE_LIMIT
    assert span["attributes"]["messaging.batch.message_count"] == SETTLE_LIMIT
    assert span["attributes"]["error.type"]
    await scheduler.shutdown()


async def test_the_reaper_has_one_span_for_the_losses_of_a_look(config: TaskBackoffConfig, spans: Spans) -> None:
    """And one for the tasks whose deadline has passed. A look that finds nothing has none."""
    tracing = OpenTelemetry(spans)
    scheduler = TaskBackoffScheduler(config, tracing=tracing)
    await scheduler.create_tasks([{"n": n} for n in range(3)])
    store = scheduler._client.store
    client = store.connection.server.new_client(connections=1, timeout=10)

    async def look() -> None:
        reaper.due = 0
        await reaper.look(client, within=10)

    reaper = Reaper(store, "w", 300, tracing.of_worker("test", "w", None))
    try:
        request = BatchRequest((), 3, may_claim_suspect=False, request_id="1", exchange=0)
        ids = [one.task.task_id for one in (await store.exchange.send(request, "dead")).claimed]
        await look()
        assert not spans("reap test") and not spans("expire test")
        assert await store.registry.expire("dead") == 3
        await scheduler.create_task({}, "late", start_within=0.001)
        await eventually(lambda: _expired(scheduler), "its deadline has passed")
        await look()
        await look()
    finally:
        await client.aclose()
    reap, expire = await spans.one("reap test"), await spans.one("expire test")
    several, late = spans("create test")
    assert reap["parent_id"] is None and reap["kind"] == "SpanKind.CLIENT"
    assert linked(reap) == [place(several)] * 3
    assert {link["attributes"]["messaging.message.id"] for link in reap["links"]} == set(ids)
    common = {
        "messaging.system": "maas_backoff",
        "messaging.destination.name": "test",
        "messaging.client.id": "w",
        "messaging.operation.type": "settle",
    }
    assert reap["attributes"] == {
        **common,
        "messaging.operation.name": "reap",
        "messaging.batch.message_count": 3,
        "maas_backoff.changed": 3,
    }
    assert expire["attributes"] == {
        **common,
        "messaging.operation.name": "expire",
        "messaging.message.id": "late",
        "maas_backoff.changed": 1,
    }
    assert late["attributes"]["messaging.message.id"] == "late" and not expire["links"]
    await scheduler.shutdown()


async def _expired(scheduler: TaskBackoffScheduler) -> bool:
    task = await scheduler.get_task("late")
    return task is not None and task.cancel_reason == "expired"


async def test_the_reaper_of_a_worker_is_traced(config: TaskBackoffConfig, spans: Spans) -> None:
    """In the thread of its heartbeat, under the name of the worker."""
    dead, began = TaskBackoffScheduler(config), anyio.Event()
    await dead.create_task({}, "x", max_lost=1)
    store = dead._client.store
    request = BatchRequest((), 1, may_claim_suspect=False, request_id="1", exchange=0)
    assert (await store.exchange.send(request, "dead")).claimed
    assert await store.registry.expire("dead") == 1
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        began.set()

    async with scheduler:
        reap = await spans.one("reap test")
        (worker,) = await scheduler.workers()
        assert reap["attributes"]["messaging.client.id"] == worker.name and reap["links"] == []
        assert (await scheduler.wait_task("x", 20)).status == "failed"
    assert not began.is_set()
    await dead.shutdown()


async def test_broken_tracing_fails_no_operation(config: TaskBackoffConfig, spans: Spans) -> None:
    spans.add_span_processor(Breaks())
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    for task_id in ("a", "b"):
        await scheduler.create_task({}, task_id)
    assert await scheduler.cancel_task("a")
    assert await scheduler.mark_task_completed("b")
    await scheduler.shutdown()
