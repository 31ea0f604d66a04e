"""The README's web service under real uvicorn: alone, as two workers with an embedded server, stopped and killed."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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

    def events(self, task_id: str, last: str | None = None) -> AbstractContextManager[Iterator[dict[str, str]]]:
        return self.opened(f"/images/{task_id}/events", last)


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


WRONG: dict[str, tuple[str, dict[str, str], int]] = {
    "an empty key": ('{"prompt": "x"}', {"Idempotency-Key": ""}, 422),
    "a long key": ('{"prompt": "x"}', {"Idempotency-Key": "k" * 300}, 422),
    "a key with a tab": ('{"prompt": "x"}', {"Idempotency-Key": "a\tb"}, 422),
    "NaN": ('{"prompt": "x", "seconds": NaN}', {}, 422),
    "NaN of another type": ('{"prompt": NaN}', {}, 422),
    "infinity": ('{"prompt": "x", "seconds": 1e400}', {}, 422),
    "half of an emoji": ('{"prompt": "\\ud83d"}', {}, 422),
    "half of an emoji of another type": ('{"prompt": "x", "seconds": "\\ud83d"}', {}, 422),
    "no prompt": ("{}", {}, 422),
    "no JSON": ("{", {}, 422),
    "JSON nested too deep": ("[" * 100_000, {}, 400),
    "2 MB": (json.dumps({"prompt": "x" * 2_000_000}), {}, 413),
}


def test_a_client_that_is_wrong_is_told_so(serve: Callable[..., Service]) -> None:
    """Never 500: that would be a fault of the service, and wake somebody up."""
    service = serve()
    for name, (body, headers, status) in WRONG.items():
        for path in ("/images", "/images/now"):
            if path == "/images/now" and headers:
                continue  # it has no key
            response = service.client.post(path, content=body, headers={"Content-Type": "application/json", **headers})
            assert (response.status_code, bool(response.json()["detail"])) == (status, True), (name, path)
    for bad in ("%00", "k" * 300, "%E2%80%8B"):
        for method, path in ("GET", ""), ("DELETE", ""), ("GET", "/events"):
            assert service.client.request(method, f"/images/{bad}{path}").status_code == 422
    assert service.create(0).status_code == 202


def test_a_client_that_waits_gets_the_image_and_one_that_leaves_ends_the_work(
    serve: Callable[..., Service], server: Server
) -> None:
    service = serve()
    image = service.client.post("/images/now", json={"prompt": "a cat"})
    assert image.status_code == 200 and image.json()["image"].startswith("/images/")
    with pytest.raises(httpx2.ReadTimeout):
        service.client.post("/images/now", json={"prompt": "a cat", "seconds": 60}, timeout=1)
    begun = time.monotonic()
    service.until(lambda: server.client.zcard("maas:{test}:cancelled") == 1, "the task of the client is cancelled")
    print(f"cancelled {time.monotonic() - begun:.2f} s after its client left")
    assert "Traceback" not in service.log.read_text()


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


@pytest.mark.long
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
