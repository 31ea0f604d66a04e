"""One scheduler in the lifespan of a FastAPI application, as in the README: accept, run, poll."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, Header, HTTPException
from starlette.testclient import TestClient
from support import Server

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskConflictError, TaskEntity


def application(config: TaskBackoffConfig) -> FastAPI:
    """A service that answers prompts in the background; the client's key is the task's id."""
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        if task.task_params.get("fails"):
            raise ValueError("no such model")
        await anyio.sleep(task.task_params.get("seconds", 0))
        return task.task_params["prompt"][::-1]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with scheduler:
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.scheduler = scheduler

    @app.post("/tasks", status_code=202)
    async def create(body: dict[str, Any], idempotency_key: Annotated[str | None, Header()] = None) -> dict[str, str]:
        try:
            return {"task_id": await scheduler.create_task(body, idempotency_key, max_retry_count=0)}
        except TaskConflictError as error:
            raise HTTPException(409, str(error)) from error

    @app.get("/tasks/{task_id}")
    async def read(task_id: str) -> dict[str, Any]:
        task = await scheduler.get_task(task_id)
        if task is None:
            raise HTTPException(404)
        return task.to_dict()

    @app.delete("/tasks/{task_id}")
    async def cancel(task_id: str) -> bool:
        return await scheduler.cancel_task(task_id, running=True)

    return app


@pytest.fixture
def app(config: TaskBackoffConfig) -> FastAPI:
    return application(config)


def polled(client: TestClient, task_id: str) -> dict[str, Any]:
    """Ask for a task until it is finished, as a client of the service would."""
    deadline = time.monotonic() + 20
    while True:
        answer = client.get(f"/tasks/{task_id}")
        assert answer.status_code == 200
        task: dict[str, Any] = answer.json()
        if task["status"] not in {"pending", "processing"}:
            return task
        assert time.monotonic() < deadline, task
        time.sleep(0.01)


def accepted(client: TestClient, body: dict[str, Any], key: str | None = None) -> str:
    answer = client.post("/tasks", json=body, headers={} if key is None else {"Idempotency-Key": key})
    assert answer.status_code == 202
    task_id = answer.json()["task_id"]
    assert isinstance(task_id, str)
    return task_id


def test_a_request_is_accepted_run_and_polled(app: FastAPI) -> None:
    with TestClient(app) as client:
        task_id = accepted(client, {"prompt": "abc"}, "order-1")
        assert task_id == "order-1"
        task = polled(client, task_id)
        assert (task["status"], task["result"], task["progress"]) == ("completed", "cba", 100)
        failed = polled(client, accepted(client, {"fails": True}))
        assert (failed["status"], failed["error"]["message"]) == ("failed", "no such model")
        assert client.get("/tasks/nobody").status_code == 404


def test_an_idempotency_key_makes_one_task(app: FastAPI) -> None:
    """The same key gives the same id while it waits and when it is done; with another body it is a conflict."""
    with TestClient(app) as client:
        for _ in range(3):
            assert accepted(client, {"prompt": "abc", "seconds": 0.1}, "order-1") == "order-1"
        task = polled(client, "order-1")
        assert accepted(client, {"seconds": 0.1, "prompt": "abc"}, "order-1") == "order-1"
        assert polled(client, "order-1") == task
        assert task["attempt"] == 1
        conflict = client.post("/tasks", json={"prompt": "xyz"}, headers={"Idempotency-Key": "order-1"})
        assert conflict.status_code == 409
        assert "order-1" in conflict.json()["detail"]
        assert accepted(client, {"prompt": "abc"}) != accepted(client, {"prompt": "abc"})


def test_a_running_request_can_be_cancelled(app: FastAPI) -> None:
    with TestClient(app) as client:
        task_id = accepted(client, {"prompt": "abc", "seconds": 60})
        while client.get(f"/tasks/{task_id}").json()["status"] != "processing":
            time.sleep(0.01)
        assert client.delete(f"/tasks/{task_id}").json() is True
        assert polled(client, task_id)["status"] == "cancelled"
        assert client.delete(f"/tasks/{task_id}").json() is False


def test_the_scheduler_stops_with_the_application_and_starts_again_with_it(app: FastAPI, server: Server) -> None:
    """Each time on a new event loop. Nothing is left behind: no worker, no lease, no connection."""
    for n in range(3):
        with TestClient(app) as client:
            assert repr(app.state.scheduler) == "<TaskBackoffScheduler of 'test', running>"
            assert polled(client, accepted(client, {"prompt": "abc"}, f"order-{n}"))["result"] == "cba"
            # The earlier results are still known.
            assert polled(client, "order-0")["result"] == "cba"
            while not server.client.zcard("maas:{test}:workers"):
                time.sleep(0.01)  # its first heartbeat is on its way
        assert repr(app.state.scheduler) == "<TaskBackoffScheduler of 'test', stopped>"
        assert server.client.zcard("maas:{test}:workers") == 0
        assert server.client.zcard("maas:{test}:leases") == 0
        ours = [one for one in server.client.client_list() if one["name"] == "maas-backoff"]
        assert ours == []


def test_what_runs_when_the_application_ends_is_finished_first(app: FastAPI) -> None:
    with TestClient(app) as client:
        task_id = accepted(client, {"prompt": "abc", "seconds": 0.5})
        while client.get(f"/tasks/{task_id}").json()["status"] != "processing":
            time.sleep(0.01)
    with TestClient(app) as client:
        task = client.get(f"/tasks/{task_id}").json()
        assert (task["status"], task["attempt"], task["result"]) == ("completed", 1, "cba")


def test_what_waits_when_the_application_ends_is_run_by_the_next(config: TaskBackoffConfig) -> None:
    with TestClient(application(config)) as client:
        task_id = accepted(client, {"prompt": "abc", "seconds": 60})
        while client.get(f"/tasks/{task_id}").json()["status"] != "processing":
            time.sleep(0.01)
        client.delete(f"/tasks/{task_id}")
        waiting = accepted(client, {"prompt": "later"})
    with TestClient(application(config)) as client:
        assert polled(client, waiting)["result"] == "retal"


def test_two_applications_share_a_queue(config: TaskBackoffConfig) -> None:
    """Two processes of a service: either answers for what the other has accepted."""
    with TestClient(application(config)) as one, TestClient(application(config)) as other:
        ids = [accepted(client, {"prompt": f"{n}!"}) for n, client in enumerate([one, other] * 10)]
        assert [polled(client, task_id)["result"] for task_id, client in zip(ids, [other, one] * 10, strict=True)] == [
            f"{n}!"[::-1] for n in range(20)
        ]
