"""Traces: a span for each create and each attempt, linked, and the handler's own spans below its attempt's."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import handlers_for_children
import pytest
import traced_batches
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanContext, get_current_span
from support import Server, eventually

from maas_backoff import (
    InvalidValueError,
    Retry,
    Snooze,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConflictError,
    TaskEntity,
    TaskSpec,
    TaskStatus,
)
from maas_backoff.common.process_name import process_name
from maas_backoff.otel import OpenTelemetry

pytestmark = pytest.mark.anyio


class Spans(TracerProvider):
    """A tracer provider that keeps what has ended."""

    def __init__(self) -> None:
        super().__init__(shutdown_on_exit=False)
        self._kept = InMemorySpanExporter()
        self.add_span_processor(SimpleSpanProcessor(self._kept))

    def __call__(self, name: str = "") -> list[dict[str, Any]]:
        """Return the spans of this name, or all, in the order in which they have ended, as JSON tells them."""
        spans = [json.loads(span.to_json()) for span in self._kept.get_finished_spans()]
        return [span for span in spans if span["name"] == name or not name]

    async def one(self, name: str) -> dict[str, Any]:
        await eventually(lambda: self(name), f"{name} has ended")
        (span,) = self(name)
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    provider = Spans()
    yield provider
    provider.shutdown()


@pytest.fixture
async def traced(config: TaskBackoffConfig, spans: Spans) -> Any:
    """A scheduler that is not started, whose tasks are traced; stopped at the end."""
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    yield scheduler
    await scheduler.shutdown()


def place(span: dict[str, Any]) -> tuple[str, str]:
    return span["context"]["trace_id"], span["context"]["span_id"]


def linked(span: dict[str, Any]) -> list[tuple[str, str]]:
    return [place(link) for link in span["links"]]


def tree(spans: Sequence[dict[str, Any]], parent: str | None = None, depth: int = 0) -> None:
    """Print spans below those that they are children of."""
    for span in spans:
        if span["parent_id"] != parent:
            continue
        trace_id, span_id = (text.removeprefix("0x") for text in place(span))
        links = [f"{link[1].removeprefix('0x')} of {link[0][2:10]}…" for link in linked(span)]
        lead = "   " * depth + ("└─ " if depth else "")
        print(f"{lead}{span['name']}  {span['kind'].removeprefix('SpanKind.')}  {span['status']['status_code']}")
        lead = "   " * depth + "     "
        shown = "none" if parent is None else parent.removeprefix("0x")
        print(f"{lead}trace {trace_id[:8]}…  span {span_id}  parent {shown}  links {', '.join(links) or 'none'}")
        for name, value in span["attributes"].items():
            print(f"{lead}{name} = {value}")
        for event in span["events"]:
            print(f"{lead}event {event['name']}: {event['attributes']['exception.type']}")
        tree(spans, span["context"]["span_id"], depth + 1)


async def test_a_trace_leads_from_the_caller_to_the_span_of_a_handler_in_a_child_process(
    traced: TaskBackoffScheduler, spans: Spans, tmp_path: Path
) -> None:
    """Both attempts, the one that fails and the one that succeeds, link to the create; each has its handler's span."""
    traced.config.threadpool.proc_mode = "process"
    traced.set_custom_task_handler(handlers_for_children.makes_a_span)
    file = tmp_path / "spans"
    async with traced:
        with spans.get_tracer("web").start_as_current_span("POST /images") as current:
            await traced.create_task({"file": str(file), "prompt": "a secret cat"}, "one")
            assert get_current_span() is current
        task = await traced.wait_task("one", 20)
    assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 2)
    (caller,), (create,), attempts = spans("POST /images"), spans("create test"), spans("process test")
    own = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    tree([caller, create, *attempts, *own])

    assert create["kind"] == "SpanKind.PRODUCER"
    assert (create["parent_id"], place(create)[0]) == (place(caller)[1], place(caller)[0])
    messaging = {
        "messaging.system": "maas_backoff",
        "messaging.destination.name": "test",
        "messaging.message.id": "one",
        "server.address": "127.0.0.1",
        "server.port": traced.config.storage.port,
    }
    assert create["attributes"] == {
        **messaging,
        "messaging.client.id": process_name(),
        "messaging.operation.name": "create",
        "messaging.operation.type": "send",
    }
    assert create["status"] == {"status_code": "UNSET"}

    (worker,) = {span["attributes"]["messaging.client.id"] for span in [*attempts, *spans("settle test")]}
    tokens: list[int] = []
    for number, (attempt, handlers) in enumerate(zip(attempts, own, strict=True)):
        assert attempt["kind"] == "SpanKind.CONSUMER" and attempt["parent_id"] is None
        assert linked(attempt) == [place(create)]
        assert (handlers["parent_id"], place(handlers)[0]) == (place(attempt)[1], place(attempt)[0])
        tokens.append(attempt["attributes"].pop("maas_backoff.token"))
        assert attempt["attributes"].pop("error.type", "") == ("" if number else "ConnectionError")
        assert attempt["attributes"].pop("maas_backoff.wait_seconds") >= 0
        assert attempt["attributes"] == {
            **messaging,
            "messaging.client.id": worker,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "maas_backoff.attempt": number + 1,
            "maas_backoff.retry_count": number,
            "maas_backoff.outcome": "succeeded" if number else "failed",
        }
    assert len({place(span)[0] for span in (create, *attempts)}) == 3
    for attempt, settle in zip(attempts, spans("settle test"), strict=True):
        assert settle["kind"] == "SpanKind.CLIENT" and settle["status"] == {"status_code": "UNSET"}
        assert (settle["parent_id"], place(settle)[0]) == (place(attempt)[1], place(attempt)[0])
        assert settle["attributes"] == {
            **messaging,
            "messaging.client.id": worker,
            "messaging.operation.name": "settle",
            "messaging.operation.type": "settle",
        }
    failed, succeeded = attempts
    message = "ConnectionError: the model is still loading"
    assert failed["status"] == {"status_code": "ERROR", "description": message}
    (event,) = failed["events"]
    assert event["name"] == "exception" and event["attributes"]["exception.type"] == "ConnectionError"
    assert event["attributes"]["exception.stacktrace"].endswith(message + "\n")
    assert succeeded["status"] == {"status_code": "UNSET"} and not succeeded["events"]
    assert "secret" not in json.dumps([create, *attempts]), "neither params nor results"
    assert "traceparent" not in task.to_dict() and not task.to_dict().keys() & {"tp", "trace"}


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_the_span_of_an_attempt_is_current_in_its_handler(
    traced: TaskBackoffScheduler, spans: Spans, kind: str
) -> None:
    """The span that was current where the worker was started has nothing to do with its tasks."""
    tracer = spans.get_tracer("handler")

    def call(task: TaskEntity) -> None:
        with tracer.start_as_current_span("own"):
            if task.attempt == 1:
                raise Snooze(0)

    async def call_async(task: TaskEntity) -> None:
        await anyio.sleep(0.01)
        call(task)

    traced.set_custom_task_handler(call if kind == "thread" else call_async)
    with spans.get_tracer("main").start_as_current_span("start-up"):
        await traced.start()
    await traced.create_tasks([{"n": n} for n in range(5)])
    await eventually(lambda: len(spans("process test")) == 10, "all have run")
    attempts = {place(span): span for span in spans("process test")}
    assert all(span["parent_id"] is None for span in attempts.values())
    assert [span["attributes"]["maas_backoff.outcome"] for span in attempts.values()].count("snoozed") == 5
    below = [(place(span)[0], span["parent_id"]) for span in spans("own")]
    assert sorted(below) == sorted(attempts), "one in each"


async def test_a_batch_is_one_span_that_all_its_attempts_link_to(
    traced: TaskBackoffScheduler, spans: Spans, server: Server
) -> None:
    """Also where a task has options of its own. A small task is still a compact hash on the server."""
    seen: list[int] = []

    @traced.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        seen.append(task.max_retry_count)

    await traced.create_tasks([{"n": 1}, {"n": 2}, TaskSpec({"n": 3}, "own", max_retry_count=7)])
    assert await traced.create_tasks([]) == []
    task_id = (await traced.list_tasks("pending")).tasks[0].task_id
    assert server.client.execute_command("OBJECT", "ENCODING", f"maas:{{test}}:t:{task_id}") == b"listpack"
    create = await spans.one("create test")
    assert create["attributes"]["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in create["attributes"]
    async with traced:
        await eventually(lambda: len(spans("process test")) == 3, "all have run")
    assert all(linked(span) == [place(create)] for span in spans("process test"))
    assert sorted(seen) == [3, 3, 7]


async def test_what_comes_back_still_leads_to_its_create(config: TaskBackoffConfig, spans: Spans) -> None:
    """With other params, from a worker that was stopped to one that was started later, and retried by hand."""
    told: list[object] = []

    async def handle(task: TaskEntity) -> None:
        told.append(task.task_params["n"])
        if task.attempt == 1:
            raise Retry(after=0.3, params={"n": 2})
        if task.attempt == 2:
            raise ValueError

    for _ in range(2):
        scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
        scheduler.set_custom_task_handler(handle)
        async with scheduler:
            if not told:
                await scheduler.create_task({"n": 1}, "x", max_retry_count=1)
                await eventually(lambda: spans("process test"), "the first attempt has ended")
                continue
            assert (await scheduler.wait_task("x", 10)).status is TaskStatus.FAILED
            assert await scheduler.retry_task("x")
            assert (await scheduler.wait_task("x", 10)).status is TaskStatus.COMPLETED
    create = await spans.one("create test")
    attempts = spans("process test")
    assert told == [1, 2, 2] and [linked(span) for span in attempts] == [[place(create)]] * 3
    assert [span["attributes"].get("error.type") for span in attempts] == ["Retry", "ValueError", None]


async def test_the_same_task_created_again_in_another_trace_is_the_same_task(
    traced: TaskBackoffScheduler, spans: Spans, config: TaskBackoffConfig
) -> None:
    """It is idempotent as ever, also where others do not trace; a conflict is told by its span."""
    plain = TaskBackoffScheduler(config)
    for scheduler in (traced, traced, plain):
        assert await scheduler.create_task({"n": 1}, "x") == "x"
    assert await plain.create_task({"n": 2}, "y") == await traced.create_task({"n": 2}, "y") == "y"
    with pytest.raises(TaskConflictError):
        await traced.create_task({"n": 3}, "x")
    first, _, _, refused = spans("create test")
    assert refused["status"]["status_code"] == "ERROR"
    assert refused["attributes"]["error.type"] == "TaskConflictError"
    traced.set_custom_task_handler(_nothing)
    async with traced:
        await traced.wait_task("x", 10)
        await traced.wait_task("y", 10)
    links = {span["attributes"]["messaging.message.id"]: linked(span) for span in spans("process test")}
    assert links == {"x": [place(first)], "y": []}, "the one that made it; nobody traced the other"
    await plain.shutdown()


async def _nothing(task: TaskEntity) -> None:
    pass


@pytest.mark.parametrize("tracing", [None, OpenTelemetry(NoOpTracerProvider())], ids=["off", "no SDK"])
async def test_where_nothing_is_traced_nothing_is_stored_and_children_import_nothing(
    config: TaskBackoffConfig, server: Server, tracing: OpenTelemetry | None
) -> None:
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config, tracing=tracing)
    scheduler.set_custom_task_handler(handlers_for_children.knows_tracing)
    await scheduler.create_task({}, "x")
    await scheduler.create_tasks([TaskSpec({}, "y", delay=60)])
    assert server.client.hkeys("maas:{test}:t:x") == [b"p"]
    assert set(server.client.hkeys("maas:{test}:t:y")) == {b"p", b"u"}
    async with scheduler:
        assert (await scheduler.wait_task("x", 20)).result is False


async def test_a_child_process_without_opentelemetry_runs_its_tasks(
    traced: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once."""
    caplog.set_level(logging.INFO)
    traced.config.threadpool.proc_mode = "process"
    traced.set_custom_task_handler(handlers_for_children.knows_without)
    traced.set_worker_lifespan(handlers_for_children.without_opentelemetry)
    traced.config.threadpool.concurrency = 1
    async with traced:
        for _ in range(3):
            task = await traced.wait_task(await traced.create_task({}), 20)
            assert (task.status, task.result) == (TaskStatus.COMPLETED, False)
    assert caplog.text.count("will not be in the trace: Tracing needs an extra: pip install") == 1


@pytest.mark.parametrize("stored", ["nonsense", 5, ["00"], {"a": 1}, ""])
async def test_a_place_in_a_trace_that_is_none_is_no_link(
    traced: TaskBackoffScheduler, spans: Spans, server: Server, stored: object
) -> None:
    traced.set_custom_task_handler(_nothing)
    await traced.create_task({}, "x")
    server.client.hset("maas:{test}:t:x", "o", json.dumps({"tp": stored}))
    async with traced:
        assert (await traced.wait_task("x", 10)).status is TaskStatus.COMPLETED
    assert (await spans.one("process test"))["links"] == []


async def test_the_tracestate_goes_with_the_traceparent(traced: TaskBackoffScheduler, spans: Spans) -> None:
    from maas_backoff.otel.place import context_of

    place_of_a_vendor = context_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 vendor=a b,other=1")
    with spans.get_tracer("web").start_as_current_span("POST", context=place_of_a_vendor):
        await traced.create_task({}, "x")
    traced.set_custom_task_handler(_nothing)
    async with traced:
        await traced.wait_task("x", 10)
    (link,) = (await spans.one("process test"))["links"]
    assert link["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"
    assert "vendor" in link["context"]["trace_state"] and "other" in link["context"]["trace_state"]


async def test_a_request_that_settles_several_tasks_links_to_their_creates(
    config: TaskBackoffConfig, spans: Spans
) -> None:
    """It has a trace of its own. A settle of an attempt whose create was not traced has one link less."""
    config.threadpool.concurrency = 6
    plain, traced = TaskBackoffScheduler(config), TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    began: list[str] = []
    release = anyio.Event()

    @traced.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        began.append(task.task_id)
        await release.wait()

    await plain.create_task({}, "plain")
    await plain.shutdown()
    await traced.create_tasks([TaskSpec({}, f"{number}") for number in range(5)])
    async with traced:
        await eventually(lambda: len(began) == 6, "all run")
        release.set()
        await eventually(lambda: len(spans("process test")) == 6, "all have ended")
    settles = spans("settle test")
    several = [span for span in settles if "messaging.batch.message_count" in span["attributes"]]
    assert several and sum(span["attributes"].get("messaging.batch.message_count", 1) for span in settles) == 6
    create = place(await spans.one("create test"))
    for settle in several:
        ids = [link["attributes"]["messaging.message.id"] for link in settle["links"]]
        assert settle["parent_id"] is None and "messaging.message.id" not in settle["attributes"]
        assert set(linked(settle)) == {create} and "plain" not in ids
        assert settle["attributes"]["messaging.batch.message_count"] - len(ids) in {0, 1}


@pytest.mark.blocks  # the handler writes its span to a file
@pytest.mark.long
@pytest.mark.parametrize("kind", ["coroutine", "thread", "process"])
async def test_one_call_for_a_batch_is_one_span(
    traced: TaskBackoffScheduler, spans: Spans, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It links to all creates, and each attempt to it. The spans of the handler are below it."""
    file = tmp_path / "spans"

    def call(paths: list[str]) -> list[int]:
        return handlers_for_children.makes_a_span_for_a_batch(paths)

    async def call_async(paths: list[str]) -> list[int]:
        return call(paths)

    if kind == "process":
        scheduler, embed = traced_batches.scheduler, traced_batches.embed
        monkeypatch.setattr(scheduler, "_tracing", traced._tracing)
        scheduler.config = traced.config
        scheduler.config.threadpool.proc_mode = "process"
    else:
        scheduler = traced
        embed = traced.batch(max_size=3, max_wait=0.05)(call_async if kind == "coroutine" else call)
    handles = await embed.create_many([embed.spec(f"{file}") for _ in range(3)])
    async with scheduler:
        for handle in handles:
            assert await handle.result(20) == 1
    create = place(await spans.one("create test"))
    batches = [span for span in spans("process test") if "messaging.batch.message_count" in span["attributes"]]
    attempts = [span for span in spans("process test") if "messaging.message.id" in span["attributes"]]
    first = batches[0]
    assert first["parent_id"] is None and first["kind"] == "SpanKind.CONSUMER"
    assert first["attributes"]["messaging.batch.message_count"] == 3
    assert linked(first) == [create] * 3
    ids = {link["attributes"]["messaging.message.id"] for link in first["links"]}
    assert ids == {handle.task_id for handle in handles}
    assert first["attributes"]["error.type"] == "ConnectionError"
    outcomes = [span["attributes"]["maas_backoff.outcome"] for span in batches]
    assert outcomes == ["failed", *["succeeded"] * len(batches[1:])]
    assert len(batches) > 1 and len(attempts) == 6
    assert all(linked(span)[0] == create and linked(span)[1] in map(place, batches) for span in attempts)
    own = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert sorted((place(span)[0], span["parent_id"]) for span in own) == sorted(map(place, batches))


# How attempts end


@pytest.mark.parametrize("how", ["user", "shutdown", "lease_lost", "timeout", "finished first", "own cancel"])
async def test_the_span_of_an_attempt_that_is_stopped_ends_and_says_why(
    config: TaskBackoffConfig, spans: Spans, how: str
) -> None:
    """A cancel and a shutdown are no errors. A handler that finishes although it is stopped has finished."""
    config.scheduler.shutdown_grace = 0.1
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    began = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        began.set()
        if how == "own cancel":
            raise asyncio.CancelledError
        try:
            await anyio.sleep(60)
        except BaseException:
            if how != "finished first":
                raise

    left: list[SpanContext] = []

    @scheduler.set_custom_task_exception_handler
    async def after(task: TaskEntity) -> None:
        left.append(get_current_span().get_span_context())

    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=0, exec_timeout=0.3 if how == "timeout" else 60)
        await began.wait()
        if how in {"user", "finished first"}:
            await scheduler.cancel_task("x", running=True)
        if how == "lease_lost":
            await scheduler.mark_task_completed("x")
        if how != "shutdown":
            await eventually(lambda: spans("process test"), "it has ended")
    span = await spans.one("process test")
    attributes = span["attributes"]
    told = [attributes.get(f"maas_backoff.{name}") for name in ("outcome", "cancel_reason")]
    expected = {
        "timeout": (["failed", None], "timeout"),
        "own cancel": (["failed", None], "CancelledError"),
        "finished first": (["succeeded", None], None),
        "lease_lost": (["cancelled", "lease_lost"], "lease_lost"),
    }.get(how, (["cancelled", how], None))
    assert (told, attributes.get("error.type")) == expected
    assert span["status"]["status_code"] == ("ERROR" if expected[1] else "UNSET")
    assert not any(current.is_valid for current in left), "it is current in the handler only"
    assert len(left) == (how in {"timeout", "own cancel"})


async def test_a_thread_that_is_left_behind_has_an_ended_span(config: TaskBackoffConfig, spans: Spans) -> None:
    """It ends with its attempt; what the thread makes later is still below it."""
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    tracer, release = spans.get_tracer("handler"), threading.Event()

    @scheduler.set_custom_task_handler
    def handle(task: TaskEntity) -> None:
        release.wait()
        with tracer.start_as_current_span("own"):
            pass

    async with scheduler:
        await scheduler.create_task({}, "x", exec_timeout=0.1, max_retry_count=0)
        attempt = await spans.one("process test")
        assert not spans("own") and attempt["attributes"]["error.type"] == "timeout"
        release.set()
        assert (await spans.one("own"))["parent_id"] == place(attempt)[1]


async def test_an_attempt_that_a_shutdown_leaves_to_its_lease_is_abandoned(
    config: TaskBackoffConfig, spans: Spans
) -> None:
    """A thread cannot be stopped: nobody knows how it ends."""
    config.scheduler.shutdown_grace = 0.1
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(spans))
    began, release = threading.Event(), threading.Event()

    @scheduler.set_custom_task_handler
    def handle(task: TaskEntity) -> None:
        began.set()
        release.wait()

    async with scheduler:
        await scheduler.create_task({}, "x")
        await eventually(began.is_set, "it has begun")
    release.set()
    span = await spans.one("process test")
    assert span["attributes"]["maas_backoff.outcome"] == "abandoned" and span["status"]["status_code"] == "UNSET"


# Broken parts


class Breaks(SpanProcessor):
    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        raise RuntimeError("no room for spans")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("no room for spans")


class BreaksAtEnd(Breaks):
    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        pass


@pytest.mark.parametrize("kind", ["coroutine", "thread", "process"])
@pytest.mark.parametrize("broken", [Breaks, BreaksAtEnd])
async def test_tracing_that_is_broken_loses_no_task(
    config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture, broken: type[SpanProcessor], kind: str
) -> None:
    """It is logged once."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(broken())
    if kind == "process":
        config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config, tracing=OpenTelemetry(provider))
    handler = {"coroutine": _nothing, "thread": lambda task: None, "process": handlers_for_children.knows_tracing}
    scheduler.set_custom_task_handler(handler[kind])
    async with scheduler:
        ids = [*await scheduler.create_tasks([{"n": n} for n in range(20)]), await scheduler.create_task({})]
        for task_id in ids:
            task = await scheduler.wait_task(task_id, 20)
            assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 1)
    records = [record for record in caplog.records if record.name == "maas_backoff.otel"]
    assert [record.levelno for record in records] == [logging.ERROR] and "no room for spans" in caplog.text


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import maas_backoff; import maas_backoff.otel"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = 'maas_backoff.errors.MissingExtraError: Tracing needs an extra: pip install "maas_backoff[otel]"'
    assert run.stderr.splitlines()[-1] == last


@pytest.mark.parametrize("tracing", [True, OpenTelemetry, TracerProvider(shutdown_on_exit=False)])
def test_what_cannot_trace_is_refused(tracing: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"tracing: expected a maas_backoff.otel.OpenTelemetry\(\), or None"):
        TaskBackoffScheduler(tracing=tracing)
