"""`maas-backoff metrics`: a process that serves /metrics and /scale."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import httpx2
import pytest
from fastapi import FastAPI
from support import Server, eventually

from maas_backoff import (
    Limit,
    LimitStats,
    QueueStats,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TenantStats,
    Worker,
)
from maas_backoff.commands.exporter import MOST_CLIENTS, Exporter
from maas_backoff.domain.histogram import BatchSizes, Durations
from maas_backoff.domain.history import Activity
from maas_backoff.domain.scale import scale_of, startable
from maas_backoff.prometheus import CONTENT_TYPE, ScaleApp, scale

pytestmark = pytest.mark.anyio


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def exported(url: str, *arguments: str) -> AsyncIterator[tuple[httpx2.AsyncClient, "asyncio.subprocess.Process"]]:
    """Run the command; give a client for it, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "maas_backoff", "metrics", "--url", url, "--queue", "test", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, *arguments, stdout=-1, stderr=-1, env=_env())
    assert process.stdout is not None
    try:
        told = await process.stdout.readline()
        assert told.decode() == f"http://127.0.0.1:{port}/metrics and /scale  (Ctrl-C ends it)\n"
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client, process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def _env() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("MAAS_BACKOFF_")}


async def test_the_command_serves_the_numbers(server: Server, scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_tasks([{}] * 3)
    async with exported(f"redis://127.0.0.1:{server.port}") as (client, process):
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
        assert 'maas_backoff_tasks{queue="test",state="due"} 3.0' in answer.text
        assert 'maas_backoff_created_tasks_total{queue="test"} 3.0' in answer.text
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"") and int(head.headers["content-length"]) > 1000
        assert (await client.get("/scale?slots=2&within=5")).json() == {
            "queue": "test", "workers": 1, "live_workers": 0, "slots": 2, "slots_per_worker": 2, "waiting": 3,
            "running": 0, "run_seconds": None, "tasks_per_call": 1,
        }  # fmt: skip
        assert (await client.get("/scale?within=soon")).status_code == 400
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


@pytest.mark.long
async def test_a_server_that_is_away_ends_nothing() -> None:
    """The scrape says so; an autoscaler gets no number."""
    async with exported("redis://127.0.0.1:1") as (client, _):
        assert 'maas_backoff_up{queue="test"} 0.0' in (await client.get("/metrics")).text
        answer = await client.get("/scale")
        assert answer.status_code == 503 and answer.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1"])
def test_an_address_that_cannot_be_used_is_named(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "maas_backoff", "metrics", "--queue", "q", "--host", host, "--port", str(port)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=_env())
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert "host and port: expected a free port of this machine" in run.stderr and f"{host}:{port}" in run.stderr


async def test_clients_that_send_nothing_or_too_much_are_ended(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maas_backoff.commands.exporter.PATIENCE", 0.3)
    exporter = Exporter(scheduler)
    server = await asyncio.start_server(exporter._client, "127.0.0.1", 0, limit=16_384)
    port = server.sockets[0].getsockname()[1]

    async def said(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    assert await said(b"") == b"" and await said(b"GET /met") == b""
    assert await said(b"x" * 40_000) == b""
    assert (await said(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
    assert (await said(b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    exporter._clients = MOST_CLIENTS
    assert await said(b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    server.close()


# The number of workers


def stats(due: int = 0, running: int = 0, **changes: Any) -> QueueStats:
    return QueueStats(due, 0, running, 0, 0, 0, 0, **changes)


def measured(seconds: float, calls: int = 10) -> Durations:
    return Durations((calls, *[0] * 23), seconds * calls)


NONE = Durations()


def wanted(found: QueueStats, runs: Durations = NONE, workers: int = 0, slots: int = 4, **limits: int) -> int:
    fleet = [Worker(f"w{n}", slots=slots) for n in range(workers)]
    shut = [LimitStats(name, Limit(1), name, waiting_tasks=number) for name, number in limits.items()]
    return scale_of(found, Activity(runs=runs), fleet, shut, within=60, slots_per_worker=4).workers


def test_the_number_of_workers() -> None:
    assert wanted(stats()) == wanted(stats(), measured(1), workers=3) == 0
    # 600 tasks of 10 s in 60 s: 100 slots, beside those that run
    assert wanted(stats(600), measured(10), workers=2) == 25
    assert wanted(stats(600, 8), measured(10), workers=2) == 27
    # more slots than tasks are of no use
    assert wanted(stats(3), measured(600), workers=1) == 1
    assert wanted(stats(5), measured(600), workers=1) == 2
    assert wanted(stats(0, 9), measured(600), workers=9) == 3
    # nothing was measured: one, or those that there are
    assert wanted(stats(1000)) == 1 and wanted(stats(1000), workers=3) == 3
    # the slots of the workers count
    assert wanted(stats(600), measured(10), workers=2, slots=50) == 2


def test_tasks_that_more_workers_would_not_start_do_not_count() -> None:
    runs = measured(60)
    assert wanted(stats(40), runs) == 10
    assert wanted(stats(40, paused=True), runs) == 0
    assert wanted(stats(40, gpu_count=40, unfit_count=36), runs) == 1
    assert wanted(stats(40), runs, openai=20, other=16) == 1
    assert wanted(stats(40, kinds={"a": 20, "b": 20}, paused_kinds={"a": None}), runs) == 5
    assert wanted(stats(40), runs, openai=50) == 0


def test_tasks_of_paused_tenants_do_not_count() -> None:
    """Their delayed ones are not due: as many of them as the queue has may be among these numbers."""
    acme, bolt = TenantStats("acme", 30, 1, datetime.now(UTC)), TenantStats("bolt", 10, 1)
    assert startable(stats(40), (), [acme, bolt]) == 10
    assert startable(attrs.evolve(stats(45), scheduled_count=5), (), [acme, bolt]) == 15
    held = stats(40, kinds={"a": 30}, paused_kinds={"a": None})
    assert startable(held, (), [acme, bolt]) == 10, "tasks of the kind and the tenant count once"
    assert startable(attrs.evolve(stats(40), unfit_count=30), (), [acme, bolt]) == 10, "so do unfit ones"


def test_a_batch_takes_one_slot() -> None:
    # 100 batches of 30 tasks, beside 600 tasks alone: 3,600 tasks in 700 calls, each of 10 s
    runs = Durations((3600, *[0] * 23), 36_000)
    batches = BatchSizes((0, 0, 0, 0, 0, 100, *[0] * 6), 3000)
    found = scale_of(stats(3600, 36), Activity(runs=runs, batch_sizes=batches), [], within=60, slots_per_worker=4)
    assert (found.tasks_per_call, found.slots, found.workers) == (5.143, 7 + 117, 31)
    assert scale_of(stats(3600, 36), Activity(runs=runs), [], within=60, slots_per_worker=4).slots == 36 + 600


def test_older_workers_send_no_sums() -> None:
    runs = Durations((0,) * 10 + (10,) + (0,) * 13)
    found = scale_of(stats(600), Activity(runs=runs), [], within=60, slots_per_worker=4)
    assert found.run_seconds is not None and 0.5 <= found.run_seconds <= 1.1


async def test_a_queue_that_works_asks_for_its_workers(config: TaskBackoffConfig, server: Server) -> None:
    """Mounted in a web service."""
    config.threadpool.concurrency = 2
    worker = TaskBackoffScheduler(config.copy())

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await anyio.sleep(task.task_params["seconds"])

    producer = TaskBackoffScheduler(config)
    app = FastAPI()
    app.mount("/scale", ScaleApp(producer))
    async with worker, httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        await producer.wait_task(await producer.create_task({"seconds": 0.2}), 20)
        await producer.create_tasks([{"seconds": 60, "n": n} for n in range(40)])

        async def runs() -> bool:
            return (await producer.get_queue_stats()).processing_count == 2

        await eventually(runs, "both slots are taken")
        found = (await client.get("/scale/?within=0.5")).json()
        assert found["waiting"] == 38 and found["running"] == 2 and found["live_workers"] == 1
        assert found["run_seconds"] >= 0.2 and found["slots_per_worker"] == 2
        slots = 2 + min(38, math.ceil(38 * found["run_seconds"] / 0.5))
        assert found["slots"] == slots and found["workers"] == math.ceil(slots / 2)
        assert (await client.get("/scale/?size=1")).status_code == 400
        server.pause()
        try:
            scale_patience, scale.PATIENCE = scale.PATIENCE, 0.2
            assert (await client.get("/scale/")).status_code == 503
        finally:
            scale.PATIENCE = scale_patience
            server.go_on()
        for status in ("pending", "processing"):
            for task in (await producer.list_tasks(status)).tasks:
                await producer.cancel_task(task.task_id, running=True)
    await producer.shutdown()
    assert json.dumps(found)
