"""The numbers for Prometheus are the server's, once and for all processes, in a format that no text breaks."""

import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import Server, eventually

from maas_backoff import (
    Activity,
    GpuStatus,
    Limit,
    LimitStats,
    QueueStats,
    Snooze,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    TenantStats,
    Worker,
    __version__,
)
from maas_backoff.prometheus import CONTENT_TYPE, MetricsApp, exposition, metrics
from maas_backoff.prometheus.collector import Collector
from maas_backoff.prometheus.snapshot import Snapshot
from maas_backoff.store.batch import BatchRequest
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio

Numbers = dict[str, float]

AWAY = {"up": 0, f"build_info,version={__version__}": 1}

HOSTILE = 'Evil"} 1\\\n# HELP \u2028{\r'


def parsed(text: bytes) -> Numbers:
    """Return the samples by name and labels as they would be written without escapes, but for the queue's label."""
    found: Numbers = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation and family.type != "unknown"
        for sample in family.samples:
            shared = (
                family.name.startswith("maas_backoff_gpu_") and family.type == "gauge" and "info" not in family.name
            )
            assert sample.labels.pop("queue", None) == (None if shared else "test")
            name = sample.name.removeprefix("maas_backoff_")
            key = ",".join([name, *(f"{label}={value}" for label, value in sorted(sample.labels.items()))])
            assert key not in found
            found[key] = sample.value
    return found


async def scraped(scheduler: TaskBackoffScheduler) -> Numbers:
    return parsed(await metrics(scheduler))


@pytest.fixture
async def other(config: TaskBackoffConfig) -> AsyncIterator[TaskBackoffScheduler]:
    """Another process' scheduler of the same queue."""
    scheduler = TaskBackoffScheduler(config.copy())
    yield scheduler
    await scheduler.shutdown()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[TaskBackoffScheduler], list[Any]]:
    """Gives the scripts that a scheduler runs from now on."""

    def listen(scheduler: TaskBackoffScheduler) -> list[Any]:
        server, names = scheduler._client.store.connection.server, list[Any]()
        send = server.patiently

        async def noting(call: Any, deadline: float | None = None) -> Any:
            names.append(call)
            return await send(call, deadline)

        monkeypatch.setattr(server, "patiently", noting)
        return names

    return listen


def busy(config: TaskBackoffConfig, *gpus: FakeGpu) -> TaskBackoffScheduler:
    """A worker whose tasks say how they go."""
    scheduler = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe(gpus))

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        match task.task_params["way"]:
            case "fails":
                raise type(HOSTILE, (Exception,), {})
            case "is retried" if task.attempt == 1:
                raise ConnectionError
            case "runs out" if task.attempt == 1:
                raise type("OutOfMemoryError", (Exception,), {})
            case "snoozes" if task.attempt == 1:
                raise Snooze(0)
            case "runs":
                await anyio.sleep(600)

    return scheduler


async def test_the_numbers_of_a_queue_with_a_gpu(
    config: TaskBackoffConfig, scheduler: TaskBackoffScheduler, other: TaskBackoffScheduler
) -> None:
    """Also those of a process that is not started and runs nothing; the same, whoever is asked."""
    gpu = FakeGpu("GPU-of-prometheus", total_gb=16, other_processes_gb=6, name=f"Fake {HOSTILE}", utilization=25)
    async with busy(config.copy(), gpu) as worker:
        ways = ["goes well", "fails", "is retried", "runs out", "snoozes"]
        specs = [TaskSpec({"way": way}, max_retry_count=1, min_gpu_memory_gb=1) for way in ways]
        for task_id in await other.create_tasks(specs):
            await other.wait_task(task_id, 20)
        await other.create_task({"way": "comes later"}, delay=3600)
        await other.create_task({"way": "goes nowhere"}, min_gpu_memory_gb=64)
        await other.cancel_task(await other.create_task({"way": "is cancelled"}, delay=60))
        await other.create_task({"way": "runs"}, "runs", min_gpu_memory_gb=4)
        host = (await other.workers())[0].host
        device = f"gpu={gpu.uuid},host={host},index=0,name={gpu.name}"

        async def told() -> bool:
            found = await scraped(other)
            return found["running_slots"] == 1 and found[f"gpu_tasks,{device}"] == 1

        await eventually(told, "a heartbeat has told of the running task")
        found, theirs = await scraped(scheduler), await scraped(other)
        assert theirs.keys() == found.keys()
        changing = ("worker_event_loop_lag_seconds", "oldest_", "worker_oldest_")
        assert [theirs[name] for name in found if not name.startswith(changing)] == [
            number for name, number in found.items() if not name.startswith(changing)
        ]
        assert (
            found.items()
            >= {
                "up": 1,
                "paused": 0,
                "tasks,state=due": 0,
                "tasks,state=scheduled": 1,
                "tasks,state=waiting_for_gpu": 1,
                "tasks,state=processing": 1,
                "tasks,state=completed": 4,
                "tasks,state=failed": 1,
                "tasks,state=cancelled": 1,
                "unfit_tasks": 1,
                "suspect_tasks": 0,
                "finished_tasks_total,state=completed": 4,
                "finished_tasks_total,state=failed": 1,
                "finished_tasks_total,state=cancelled": 1,
                "retries_total": 2,
                "snoozes_total": 1,
                "out_of_memory_total": 1,
                "lost_leases_total": 0,
                "gpu_faults_total": 0,
                "released_attempts_total": 0,
                "errors_total,type=" + "".join(HOSTILE.split()): 2,
                "errors_total,type=ConnectionError": 1,
                "errors_total,type=OutOfMemoryError": 1,
                "wait_seconds_bucket,le=+Inf": 9,  # the last claim is told with the next settlement
                "run_seconds_bucket,le=+Inf": 9,
                "workers": 1,
                "slots": 10,
                "running_slots": 1,
            }.items()
        )
        assert found["oldest_pending_age_seconds"] == 0, "the task that waits can never start"
        assert found[f"build_info,version={__version__}"] == found[f"workers_of_release,version={__version__}"] == 1
        assert found[f"gpu_info,{device}"] == 1
        assert found["created_tasks_total"] == 9
        gpu_numbers = {
            name.split(",")[0]: number for name, number in found.items() if device in name and "info" not in name
        }
        assert gpu_numbers == {
            "gpu_memory_total_bytes": 16 << 30,
            "gpu_memory_free_bytes": 10 << 30,
            "gpu_memory_reserved_bytes": 4 << 30,
            "gpu_memory_other_processes_bytes": 6 << 30,
            "gpu_memory_room_bytes": 6 << 30,
            "gpu_utilization_ratio": 0.25,
            "gpu_healthy": 1,
            "gpu_tasks": 1,
        }
        await worker.cancel_task("runs", running=True)


async def test_buckets_only_grow_to_the_number_of_all(config: TaskBackoffConfig) -> None:
    """histogram_quantile needs this."""
    async with busy(config) as worker:
        for task_id in await worker.create_tasks([{"way": f"goes well {n}"} for n in range(20)]):
            await worker.wait_task(task_id, 20)
        (family,) = [
            family
            for family in text_string_to_metric_families((await metrics(worker)).decode())
            if family.name == "maas_backoff_wait_seconds"
        ]
    *buckets, number, total = family.samples
    ends = [float(sample.labels["le"]) for sample in buckets]
    counts = [sample.value for sample in buckets]
    assert family.type == "histogram" and {sample.name for sample in buckets} == {f"{family.name}_bucket"}
    assert (number.name, number.value) == (f"{family.name}_count", 20)
    assert total.name == f"{family.name}_sum" and total.value >= 0
    assert ends == sorted(ends) and ends[0] == 0.001 and ends[-1] == float("inf")
    assert counts == sorted(counts) and counts[-1] == 20


async def test_counters_never_go_back(config: TaskBackoffConfig) -> None:
    """When tasks are retried by hand, deleted or purged; the gauges do."""
    async with busy(config) as worker:
        specs = [TaskSpec({"way": way}, way, max_retry_count=0) for way in ("fails", "goes well")]
        for task_id in await worker.create_tasks(specs):
            await worker.wait_task(task_id, 20)
        before = await scraped(worker)
        await worker.purge_tasks("completed")
        await worker.retry_task("fails")
        await worker.wait_task("fails", 20)
        await worker.delete_task("fails")
        after = await scraped(worker)
    counters = [name for name in before if "_total" in name or "_bucket" in name]
    assert all(after[name] >= before[name] for name in counters)
    assert after["finished_tasks_total,state=failed"] == 2 and after["finished_tasks_total,state=completed"] == 1
    assert after["tasks,state=failed"] == after["tasks,state=completed"] == 0


async def test_kinds_are_counted(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.task
    async def render() -> None: ...

    await render.create()
    await render.options(min_gpu_memory_gb=1).create()
    await render.options(delay=60).create()
    await scheduler.pause(kind="new")
    found = await scraped(scheduler)
    await scheduler.shutdown()
    assert {name: number for name, number in found.items() if name.startswith("kind_")} == {
        "kind_due_tasks,kind=new": 0,
        "kind_due_tasks,kind=render": 2,
        "kind_paused,kind=new": 1,
        "kind_paused,kind=render": 0,
    }


async def test_tenants_and_limits_are_counted(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    await scheduler.set_limit("openai", concurrency=1)
    await scheduler.set_limit("starts", rate=(1, "1h"))
    await scheduler.set_limit("user:*", concurrency=1)
    specs = [TaskSpec({}, tenant="acme", limits={"openai": 1})] * 3 + [TaskSpec({}, tenant="bolt", delay=60)]
    specs += [TaskSpec({}, limits={f"user:{n % 2}": 1}) for n in range(5)]
    await scheduler.create_tasks(specs)
    await scheduler.pause(tenant="calm")
    store = scheduler._client.store
    claimed = await store.exchange.send(BatchRequest((), 10, False, "1", 0), "worker")
    assert len(claimed.claimed) == 3
    found = await scraped(scheduler)
    await scheduler.shutdown()
    limits = {"in_use": (1, 0, None), "most": (1, None, None), "shut": (1, 0, 2)}
    limits |= {"waiting_lanes": (1, 0, 2), "waiting_tasks": (2, 0, 3)}
    expected = {
        f"limit_{name},limit={limit}": number
        for name, numbers in limits.items()
        for limit, number in zip(("openai", "starts", "user:*"), numbers, strict=True)
        if number is not None
    }
    for tenant, number in (("acme", 2), ("bolt", 1), ("calm", 0)):
        expected[f"tenant_waiting_tasks,tenant={tenant}"] = number
    expected |= {"tenants": 2, "paused_tenants": 1}
    assert {name: number for name, number in found.items() if re.match("limit|tenant|paused_t", name)} == expected


def test_many_tenants_and_limits_have_few_metrics() -> None:
    """Each with most waiting tasks has its own; the other tenants are one. A tenant may have the name of the others."""
    tenants = [TenantStats("other", 1000), *(TenantStats(f"t{n}", 900 - n) for n in range(99))]
    limits = [LimitStats(f"l{n}", Limit(1), f"l{n}", waiting_tasks=n, waiting_lanes=1, most=1) for n in range(100)]
    stats = QueueStats(0, 0, 0, 0, 0, 0, 0)
    registry = CollectorRegistry()
    registry.register(Collector("test", Snapshot(stats, Activity(), tenants=tenants, limits=limits)))
    found = parsed(generate_latest(registry))
    own = {name: number for name, number in found.items() if name.startswith("tenant_waiting")}
    assert len(own) == 50 and own["tenant_waiting_tasks,tenant=t0"] == 900
    assert sum(own.values()) == sum(one.waiting for one in tenants)
    assert {name for name in found if name.startswith("limit_in_use")} == {
        f"limit_in_use,limit=l{n}" for n in range(50, 100)
    }


async def test_a_scrape_takes_three_commands(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, asked: Callable[..., list[Any]]
) -> None:
    """And where there are GPUs, one more, and one for each; another while tasks wait for one."""
    commands = asked(scheduler)
    await metrics(scheduler)
    assert len(commands) == 3
    async with busy(config.copy(), FakeGpu("GPU-p1"), FakeGpu("GPU-p2")):

        async def seen() -> object:
            return [worker.devices for worker in await scheduler.workers() if worker.devices]

        await eventually(seen, "a heartbeat has told of the GPUs")
        commands.clear()
        await metrics(scheduler)
        assert len(commands) == 3 + 1 + 2
        await scheduler.create_task({}, min_gpu_memory_gb=64)
        commands.clear()
        await metrics(scheduler)
        assert len(commands) == 3 + 1 + 2 + 1


def test_text_of_others_breaks_no_line() -> None:
    """Quotes, line ends, backslashes, braces, and what UTF-8 has no bytes for."""
    evil = f"{HOSTILE}\ud800"
    gpu = GpuStatus(evil, 0, evil, evil, 1, 1, 0, 0, None, 40, "quarantine: faults", 0)
    held = GpuStatus("held", 0, "", "", 1, 1, 0, 0, None, None, "ok, held for 'x'", 0)
    stats, errors, fleet = QueueStats(0, 0, 0, 0, 0, 0, 0), Activity(errors={evil: 7}), [Worker(evil, lag=0.5)]
    snapshot = Snapshot(stats, errors, fleet, [gpu, held])
    registry = CollectorRegistry()
    registry.register(Collector("test", snapshot))
    text = generate_latest(registry)
    found, shown = parsed(text), evil.replace("\ud800", "?")
    assert found[f"errors_total,type={shown}"] == 7
    assert found[f"worker_event_loop_lag_seconds,worker={shown}"] == 0.5
    where = f"gpu={shown},host={shown},index=0,name={shown}"
    assert found[f"gpu_healthy,{where}"] == 0 and found[f"gpu_temperature_celsius,{where}"] == 40
    assert f"gpu_utilization_ratio,{where}" not in found
    assert found["gpu_healthy,gpu=held,host=,index=0,name="] == 1, "for the one it is held for"
    assert all(line.startswith((b"maas_backoff_", b"# HELP maas", b"# TYPE maas")) for line in text.split(b"\n")[:-1])


async def test_a_server_that_is_away_is_told_and_not_raised(
    config: TaskBackoffConfig, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it refuses connections, or takes them and does not answer; the log says why."""
    config.storage = StorageConfig(port=1, password="a-secret", timeout=0.2)
    refused = TaskBackoffScheduler(config)
    with caplog.at_level(logging.WARNING, "maas_backoff.prometheus"):
        assert await scraped(refused) == AWAY
        assert await scraped(refused) == AWAY
    await refused.shutdown()
    assert len(caplog.records) == 1, "one line for an outage"
    assert "queue 'test' could not be read for Prometheus" in caplog.text and "a-secret" not in caplog.text
    config.storage = server.storage
    silent = TaskBackoffScheduler(config)
    assert (await scraped(silent))["up"] == 1
    monkeypatch.setattr(exposition, "PATIENCE", 0.1)
    server.pause()
    try:
        assert await scraped(silent) == AWAY
    finally:
        server.go_on()
    monkeypatch.setattr(exposition, "PATIENCE", 5)
    assert (await scraped(silent))["up"] == 1, "the connection is not left half read"
    await silent.shutdown()


async def test_an_application_serves_it(scheduler: TaskBackoffScheduler) -> None:
    """Mounted, with nothing of its own to start or to stop."""
    app = FastAPI()
    app.mount("/metrics", MetricsApp(scheduler))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get("/metrics", follow_redirects=True)
        assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
        assert parsed(answer.content)["up"] == 1
        assert (await client.post("/metrics/")).status_code == 405


async def test_scrapes_at_the_same_time_read_once(
    scheduler: TaskBackoffScheduler, server: Server, asked: Callable[..., list[Any]]
) -> None:
    """Also when the one that reads goes away: the next takes its place."""
    commands = asked(scheduler)
    app = MetricsApp(scheduler)
    texts: list[bytes] = []

    async def scrape() -> None:
        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                texts.append(message["body"])

        await app({"type": "http", "method": "GET"}, None, send)

    leader = anyio.CancelScope()

    async def leave() -> None:
        with leader:
            await scrape()

    server.pause()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            for _ in range(20):
                group.start_soon(scrape)
            await eventually(lambda: commands, "the first one reads")
            leader.cancel()
            server.go_on()
    finally:
        server.go_on()
    assert len(texts) == 20 and len(set(texts)) == 1
    assert len(commands) == 1 + 3
    await scrape()
    assert len(commands) == 1 + 3 + 3, "a later one reads anew"


def test_without_the_extra_its_name_is_told() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import maas_backoff; import maas_backoff.prometheus"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = 'MissingExtraError: maas_backoff.prometheus needs an extra: pip install "maas_backoff[prometheus]"'
    assert run.stderr.splitlines()[-1].endswith(told)
