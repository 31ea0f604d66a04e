"""The README's web service under real uvicorn: alone, as two workers with an embedded server, stopped and killed."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from served import PATIENCE, Served
from support import Server

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig, TaskEntity

pytestmark = pytest.mark.timeout(120)


class Service(Served):
    """The README's service."""

    def __init__(self, env: dict[str, str], log: Path, *options: str) -> None:
        super().__init__("web_service:app", env, log, *options)

    def create(self, seconds: float = 0, key: str | None = None) -> httpx2.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.client.post("/images", json={"prompt": "a cat", "seconds": seconds}, headers=headers)

    def status(self, task_id: str) -> str:
        return self.client.get(f"/images/{task_id}").json()["status"]

    @contextlib.contextmanager
    def events(self, task_id: str, last: str | None = None) -> Iterator[Iterator[dict[str, str]]]:
        headers = {} if last is None else {"Last-Event-ID": last}
        with self.client.stream("GET", f"/images/{task_id}/events", headers=headers) as response:
            assert response.status_code == 200
            yield _parsed(response.iter_lines())


def _parsed(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in {"id", "event", "data"}:
            event[name] = value
        elif not line and event:
            yield event
            event = {}


@pytest.fixture
def serve(tmp_path: Path, server: Server) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(*options: str, **env: str) -> Service:
        env = env or {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}"}
        started.append(Service(env, tmp_path / f"uvicorn-{len(started)}.log", *options))
        return started[-1].answering("/readyz")

    yield start
    for service in started:
        service.end()


def test_a_client_creates_follows_and_cancels(serve: Callable[..., Service]) -> None:
    """202 and the same id for the same key; progress as it comes; a stream that is taken up again misses no end."""
    service = serve()
    assert service.client.get("/healthz").json() == {"alive": True}
    first = service.create(0.5, "one")
    assert (first.status_code, first.json()) == (202, {"task_id": "one"})
    assert service.create(0.5, "one").json() == {"task_id": "one"}
    assert service.create(9, "one").status_code == 409
    with service.events("one") as events:
        seen = list(events)
    assert seen[-1]["event"] == "completed" and json.loads(seen[-1]["data"])["result"] == {"image": "/images/one.png"}
    assert any(0 < json.loads(event["data"])["progress"] < 100 for event in seen)
    assert "a cat" not in "".join(event["data"] for event in seen)

    service.create(60, "two")
    with service.events("two") as events:
        cut = next(event for event in events if event["event"] == "processing")
    assert service.client.delete("/images/two").json() is True
    with service.events("two", cut["id"]) as events:
        assert list(events)[-1]["event"] == "cancelled"
    with service.events("one", seen[-1]["id"]) as events:
        assert list(events) == []
    assert service.client.get("/images/none").status_code == 404
    assert service.client.get("/images/none/events").status_code == 404


def test_a_full_queue_is_503_with_the_time_to_come_back(serve: Callable[..., Service], server: Server) -> None:
    service = serve(MAAS_BACKOFF_URL=f"redis://127.0.0.1:{server.port}", MAAS_BACKOFF_MAX_QUEUE_SIZE="1")
    assert service.create(60, "one").status_code == 202
    full = service.create(0)
    assert full.status_code == 503 and int(full.headers["Retry-After"]) >= 1
    service.client.delete("/images/one")
    service.until(lambda: service.create(0).status_code == 202, "there is room again")


def test_ctrl_c_with_a_client_that_listens_ends_at_once_and_hands_the_task_back(
    serve: Callable[..., Service], server: Server
) -> None:
    """Long before the task would be over; it is pending again with no retry used, and the next process runs it."""
    env = {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "MAAS_BACKOFF_SHUTDOWN_GRACE": "0.5"}
    service = serve(**env)
    service.create(60, "one")
    with service.events("one") as events:
        next(event for event in events if event["event"] == "processing")
        begun = time.monotonic()
        os.killpg(service.process.pid, signal.SIGINT)
        service.process.wait(PATIENCE)
        took = time.monotonic() - begun
    print(f"ended {took:.2f} s after Ctrl-C, with an open stream")
    assert took < 15
    task = _task("one", StorageConfig(host="127.0.0.1", port=server.port))
    assert (task.status, task.retry_count, task.lost_count, task.attempt) == ("pending", 0, 0, 1)
    again = serve(**env)
    again.until(lambda: again.status("one") == "processing", "the next process has it")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are found by psutil, as children of uvicorn")
def test_two_workers_share_an_embedded_server_and_one_that_is_killed_loses_nothing(
    serve: Callable[..., Service], tmp_path: Path
) -> None:
    """`uvicorn --workers 2` without any server: uvicorn starts another worker, and the lost task runs again."""
    env = {"MAAS_BACKOFF_TYPE": "embedded", "MAAS_BACKOFF_PATH": str(tmp_path / "data"), "MAAS_BACKOFF_LEASE": "3"}
    service = serve("--workers", "2", MAAS_BACKOFF_CONCURRENCY="1", **env)
    service.create(3, "one")
    service.create(3, "two")
    service.until(lambda: {service.status("one"), service.status("two")} == {"processing"}, "both run, one in each")
    workers = [c for c in psutil.Process(service.process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    ended = service.until(lambda: _ended(service), "both are over")
    assert ended == ["completed", "completed"]
    tasks = [_read(service, name) for name in ("one", "two")]
    assert sorted(task["lost_count"] for task in tasks) == [0, 1]
    assert [task["retry_count"] for task in tasks] == [0, 0]
    os.killpg(service.process.pid, signal.SIGTERM)
    service.process.wait(PATIENCE)


def _ended(service: Service) -> list[str]:
    with contextlib.suppress(httpx2.TransportError):
        states = [service.status(name) for name in ("one", "two")]
        return states if states == ["completed"] * 2 else []
    return []


def _read(service: Service, task_id: str) -> dict[str, Any]:
    return service.client.get(f"/images/{task_id}").json()


def _task(task_id: str, storage: StorageConfig) -> TaskEntity:
    import anyio

    async def read() -> TaskEntity | None:
        scheduler = TaskBackoffScheduler(TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="test")))
        try:
            return await scheduler.get_task(task_id)
        finally:
            await scheduler.shutdown()

    task = anyio.run(read)
    assert task is not None
    return task
