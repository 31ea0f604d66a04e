"""The dashboard without a browser: who may do what, what is shown, what it costs."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from served import PATIENCE, Served
from support import Server, load_scripts

from maas_backoff import Limit, LimitStats, TaskBackoffConfig, TaskBackoffScheduler, TaskSpec, TenantStats
from maas_backoff.client.selected import MOST_READ
from maas_backoff.dashboard import Access, Visitor, dashboard, server_dashboard
from maas_backoff.dashboard.feed import PERIOD, Feed
from maas_backoff.dashboard.reading import Reading
from maas_backoff.dashboard.selecting import Shown
from maas_backoff.dashboard.stream import MOST_STREAMS
from maas_backoff.dashboard.views import shares_view
from maas_backoff.store.shares import Shares

SAME = {"Sec-Fetch-Site": "same-origin"}
SECRET = "s3cr3t-of-a-task"


def status(served: Served, task_id: str) -> str | None:
    response = served.client.get("/tasks/api/task", params={"id": task_id})
    return response.json()["status"] if response.status_code == 200 else None


def test_every_answer_forbids_what_it_does_not_need(served: Served) -> None:
    """Nothing inline and nothing from elsewhere may run; nobody may frame it; data is not kept."""
    for path in ("/tasks/", "/tasks/api/snapshot", "/tasks/none", "/tasks/api/tasks?limit=0"):
        headers = served.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and headers["x-content-type-options"] == "nosniff"
    assert served.client.get("/tasks/api/snapshot").headers["cache-control"] == "no-store"
    assert served.client.get("/tasks").headers["location"].endswith("/tasks/")


def test_the_files_of_the_page_are_kept_under_a_name_that_changes_with_them(served: Served) -> None:
    page = served.client.get("/tasks/").text
    for name in ("app.js", "style.css", "icon.svg"):
        path = next(part for part in page.split('"') if part.endswith(name))
        response = served.client.get(f"/tasks/{path}")
        assert "immutable" in response.headers["cache-control"] and response.text
        assert served.client.get(f"/tasks/static/other/{name}").status_code == 404
    folder = path.rpartition("/")[0]
    for name in ("index.html", "..%2f__init__.py", "%2e%2e/app.py", "none.js"):
        assert served.client.get(f"/tasks/{folder}/{name}").status_code == 404


def test_a_task_is_shown_with_the_last_lines_of_its_log(served: Served, create: Callable[..., None]) -> None:
    create(TaskSpec({"lines": [f"line {n}" for n in range(70)]}, "x"), TaskSpec({}, "silent"))
    served.until(lambda: status(served, "x") == status(served, "silent") == "completed", "both are completed")
    log = served.client.get("/tasks/api/task?id=x").json()["log"]
    assert [line["text"] for line in log] == [f"line {n}" for n in range(20, 70)]
    assert {line["attempt"] for line in log} == {1}
    assert served.client.get("/tasks/api/task?id=silent").json()["log"] == []


def test_the_history_of_a_tenant_and_of_a_kind(served: Served, create: Callable[..., None]) -> None:
    create(TaskSpec({}, "a", tenant="acme"), TaskSpec({"error": "x"}, "b", tenant="bolt", max_retry_count=0))
    served.until(lambda: status(served, "a") == "completed" and status(served, "b") == "failed", "both have ended")
    served.until(
        lambda: len(served.client.get("/tasks/api/breakdown").json()["tenant"]) == 2, "the worker has sent sums"
    )
    told = served.client.get("/tasks/api/breakdown").json()
    assert told["kind"] == [] and sorted(told["tenant"]) == ["acme", "bolt"]
    told = served.client.get("/tasks/api/breakdown?by=tenant&name=bolt").json()
    assert told["name"] == "tenant bolt" and len(told["minutes"]) == 60 and told["recent"]["failed"] == 1
    assert sum(minute["failed"] for minute in told["minutes"]) == 1
    told = served.client.get("/tasks/api/breakdown?by=kind&name=none").json()
    assert len(told["minutes"]) == 60 and told["recent"]["run"] == [None]
    for query in ("by=kind&name=1", "by=x&name=none", "name=none"):
        assert served.client.get(f"/tasks/api/breakdown?{query}").status_code == 400


def test_a_title_is_text(served: Served) -> None:
    assert "<h1>&lt;b&gt;&quot;All&quot;&lt;/b&gt;</h1>" in served.client.get("/all/").text


def test_only_who_may_and_from_our_own_page_can_act(served: Served) -> None:
    here = f"http://127.0.0.1:{served.port}"
    for mount, headers, expected in [
        ("/tasks", SAME, 200),
        ("/tasks", {"Origin": here}, 200),
        ("/tasks", {}, 403),
        ("/tasks", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/tasks", {"Sec-Fetch-Site": "same-site", "Origin": here}, 403),
        ("/tasks", {"Sec-Fetch-Site": "none"}, 403),
        ("/tasks", {"Origin": "http://elsewhere.example"}, 403),
        ("/tasks", {"Origin": "null"}, 403),
        ("/tasks", {**SAME, "X-User": "reader"}, 403),
        ("/tasks", {**SAME, "X-User": "stranger"}, 403),
        ("/tasks", {**SAME, "X-User": "nobody"}, 401),
        ("/look", SAME, 403),
    ]:
        response = served.client.post(f"{mount}/api/queue/pause", headers=headers)
        assert response.status_code == expected, headers
        assert served.client.get("/tasks/api/snapshot").json()["queue"]["paused"] == (expected == 200)
        served.client.post("/tasks/api/queue/resume", headers=SAME)


@pytest.mark.anyio
async def test_each_action_is_logged_with_its_queue_and_visitor(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    # It reads its files: a program makes it before its event loop runs.
    app = await anyio.to_thread.run_sync(lambda: dashboard(scheduler, authorize=lambda _: Visitor(Access.ACT, "ada")))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
        with caplog.at_level("INFO", "maas_backoff.dashboard"):
            assert (await client.post("/api/queue/pause", headers=SAME)).json() == {"done": True}
            assert (await client.get("/api/snapshot")).json()["queue"]["paused_by"] == "ada"
            await client.post("/api/queue/resume", headers=SAME)
    assert "pause in queue 'test': True, requested by 'ada' at 127.0.0.1" in caplog.messages


@pytest.mark.parametrize("make", [dashboard, server_dashboard])
def test_a_page_for_everybody_is_a_warning(
    make: Any, config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture
) -> None:
    make(TaskBackoffScheduler(config), authorize=lambda _: True)
    assert not caplog.messages
    make(TaskBackoffScheduler(config))
    assert "everybody who reaches it may read" in caplog.text


def test_who_may_not_look_sees_nothing(served: Served) -> None:
    for path in ("/", "/api/snapshot", "/api/events", "/api/tasks", "/api/task?id=x", "/static/x/app.js", "/none"):
        assert served.client.get(f"/tasks{path}", headers={"X-User": "stranger"}).status_code == 403
        response = served.client.get(f"/tasks{path}", headers={"X-User": "nobody"})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Basic")
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert served.client.request(method, "/look/api/queue/pause", headers=SAME).status_code in {403, 405}
    assert served.client.get("/tasks/api/queue/pause").status_code == 405


def test_actions_say_what_has_come_of_them(served: Served, create: Callable[..., None]) -> None:
    def post(path: str, **query: str) -> Any:
        return served.client.post(f"/tasks/api/{path}", params=query, headers=SAME).json()["done"]

    create(
        TaskSpec({}, "later", delay=600),
        TaskSpec({"seconds": 60}, "long"),
        *(TaskSpec({"error": error}, f"{error}/../{n}", max_retry_count=0) for error in ("a", "b") for n in range(3)),
    )
    served.until(lambda: status(served, "long") == "processing" and status(served, "b/../2") == "failed", "they ran")
    assert post("queue/pause") is True
    assert post("queue/pause") is False
    assert post("task/now", id="later") is True
    assert post("task/now", id="long") is False
    assert post("queue/retry", error="ModelError: b") == 3
    assert post("task/retry", id="a/../0") is True
    assert post("task/retry", id="a/../0") is False
    assert post("task/cancel", id="a/../0") is True
    assert post("task/cancel", id="none") is False
    assert post("queue/retry") == 2
    assert post("task/cancel", id="long") is True
    served.until(lambda: status(served, "long") == "cancelled", "the running one is stopped")
    assert post("queue/resume") is True
    served.until(lambda: status(served, "later") == "completed", "it did not wait")
    assert served.client.post("/tasks/api/queue/drop", headers=SAME).status_code == 404
    assert served.client.post("/tasks/api/task/drop?id=x", headers=SAME).status_code == 404


def test_a_list_has_what_is_due_and_short_texts(served: Served, create: Callable[..., None]) -> None:
    """Not what is due later, or waits for a GPU; a task by itself has its error whole."""
    served.client.post("/tasks/api/queue/pause", headers=SAME)
    create(
        TaskSpec({}, "later", delay=60),
        TaskSpec({}, "gpu", min_gpu_memory_gb=100),
        TaskSpec({}, "now"),
        TaskSpec({"error": "e" * 5000, "type": "T" * 70_000, "progress": "p" * 900_000}, "long", max_retry_count=0),
    )
    due = served.client.get("/tasks/api/tasks?waiting_for=slot").json()["tasks"]
    assert [task["task_id"] for task in due] == ["now", "long"]
    ids = [task["task_id"] for task in served.client.get("/tasks/api/tasks?waiting_for=gpu").json()["tasks"]]
    assert ids == ["gpu"]
    served.client.post("/tasks/api/queue/resume", headers=SAME)
    served.until(lambda: status(served, "long") == "failed", "it has failed")
    (row,) = served.client.get("/tasks/api/tasks?state=failed").json()["tasks"]
    assert (len(row["error"]["type"]), len(row["error"]["message"]), len(row["progress_message"])) == (200, 300, 300)
    whole = served.client.get("/tasks/api/task?id=long").json()
    assert (len(whole["error"]["message"]), len(whole["progress_message"])) == (5000, 2000)


def test_payloads_are_shown_only_where_somebody_has_said_so(served: Served, create: Callable[..., None]) -> None:
    create(
        TaskSpec({"result": [SECRET], "progress": "half"}, "x"),
        TaskSpec({"seconds": 0, "of": SECRET}, "later", delay=60),
    )
    served.until(lambda: status(served, "x") == "completed", "it has run")
    for mount, shown in (("/tasks", False), ("/look", False), ("/all", True)):
        task = served.client.get(f"{mount}/api/task?id=x").text
        assert (SECRET in task) is shown
        with served.client.stream("GET", f"{mount}/api/events?task=x") as stream:
            data = next(line for line in stream.iter_lines() if '"task_id"' in line)
        assert (SECRET in data) is shown
        for path in ("tasks?state=completed", "tasks", "snapshot"):
            assert SECRET not in served.client.get(f"{mount}/api/{path}").text


def test_errors_are_shown_only_where_somebody_has_said_so(served: Served, create: Callable[..., None]) -> None:
    """Their types always are; no condition may tell what is hidden."""
    create(TaskSpec({"error": SECRET, "type": "LoadError"}, "x", max_retry_count=0))
    served.until(lambda: status(served, "x") == "failed", "it has failed")
    for mount, shown in (("/look", False), ("/tasks", True), ("/all", True)):
        for path in ("task?id=x", "tasks?state=failed", "groups", "tasks?state=failed&text=x"):
            text = served.client.get(f"{mount}/api/{path}").text
            assert "LoadError" in text and (SECRET in text) is shown, (mount, path)
    for condition in ({"error": SECRET}, {"text": SECRET}):
        found = served.client.get("/look/api/count", params={"state": "failed", **condition}).json()
        assert found == {"count": 0} or "as errors are not shown here" in found["error"]
    assert served.client.get("/tasks/api/groups").json()["groups"][0]["text"] == f"LoadError: {SECRET}"


def test_what_cannot_be_asked_is_said_in_one_sentence(served: Served) -> None:
    for query, message in [
        ("limit=101", "limit: expected a whole number from 1 to 100, got '101'"),
        ("limit=0", "limit: expected"),
        ("limit=-1", "limit: expected a whole number"),
        ("limit=9%2e5", "limit: expected a whole number"),
        ("limit=99999999999999999999", "limit: expected a whole number"),
        ("state=done", "status: expected one of pending"),
        ("cursor=1%20x%200", "cursor: expected"),
        ("due_in=soon", "due_in: expected a whole number"),
        ("due_in=0&state=failed", "due_from: expected None but for pending tasks"),
        ("waiting_for=love", 'waiting_for: expected "slot", "gpu"'),
    ]:
        response = served.client.get(f"/tasks/api/tasks?{query}")
        assert response.status_code == 400 and message in response.json()["error"], query
    assert served.client.get("/tasks/api/events", params={"task": "x" * 300}).status_code == 400
    assert served.client.get("/tasks/api/task").status_code == 400
    assert served.client.get("/tasks/api/task?id=none").status_code == 404


def test_a_search_finds_text_and_stops_in_between(served: Served, create: Callable[..., None]) -> None:
    """However many tasks there are, a request looks at some of them and gives the cursor to go on with."""
    create(*(TaskSpec({}, f"task-{n:05}", delay=3600 + n) for n in range(MOST_READ + 500)))
    query = {"text": "TASK-02"}
    page = served.client.get("/tasks/api/tasks", params=query).json()
    assert page["tasks"] == [] and page["cursor"]
    found = served.client.get("/tasks/api/tasks", params={**query, "cursor": page["cursor"]}).json()
    assert [task["task_id"] for task in found["tasks"]][:3] == ["task-02000", "task-02001", "task-02002"]


def test_tasks_of_a_selection_are_listed_counted_and_changed(served: Served, create: Callable[..., None]) -> None:
    served.client.post("/tasks/api/queue/pause", headers=SAME)
    mine = {"label": "nightly", "tenant": "acme", "kind": ""}
    create(*(TaskSpec({}, f"n-{n}", labels=["nightly"], tenant="acme", delay=n % 2 * 600) for n in range(6)))
    create(TaskSpec({"secret": SECRET}, "other"))

    def post(action: str, **query: str) -> Any:
        return served.client.post(f"/tasks/api/selection/{action}", params={**mine, **query}, headers=SAME).json()

    listed = served.client.get("/tasks/api/tasks", params={**mine, "due_in": "0"}).json()["tasks"]
    assert [(task["task_id"], task["labels"], task["worker"]) for task in listed] == [
        (f"n-{n}", ["nightly"], None) for n in (1, 3, 5)
    ]
    assert served.client.get("/tasks/api/count", params={**mine, "waiting_for": "slot"}).json() == {"count": 3}
    assert post("now", due_in="0") == {"done": 3} and post("now", due_in="0") == {"done": 0}
    assert post("cancel", id_prefix="n-1") == {"done": 1} and post("retry", state="cancelled") == {"done": 1}
    assert post("delete", waiting_for="slot") == {"done": 6} and status(served, "other") == "pending"
    assert "expected failed or cancelled for retry_tasks, got" in post("retry")["error"]
    assert "as params are not shown here" in post("delete", params=SECRET)["error"]
    found = served.client.get("/all/api/tasks", params={"params": SECRET}).json()["tasks"]
    assert [task["task_id"] for task in found] == ["other"]
    assert served.client.post("/tasks/api/selection/drop", headers=SAME).status_code == 404
    assert served.client.post("/look/api/selection/delete", headers=SAME).status_code == 403
    assert served.client.post("/tasks/api/task/delete?id=other", headers=SAME).json() == {"done": True}


@pytest.mark.long
def test_a_server_that_is_away_is_said_and_not_a_crash(served: Served, server: Server) -> None:
    server.pause()
    try:
        response = served.client.get("/tasks/api/snapshot")
        assert response.status_code == 200 and "answer" in response.json()["trouble"]["reason"]
    finally:
        server.go_on()
    served.until(lambda: served.client.get("/tasks/api/snapshot").json()["trouble"] is None, "it is back")


@pytest.mark.anyio
async def test_all_pages_together_cost_what_one_costs(scheduler: TaskBackoffScheduler, server: Server) -> None:
    load_scripts(server)
    feed = Feed(scheduler)

    async def cost(pages: int) -> int:
        feed.read_again()
        server.client.config_resetstat()
        async with anyio.create_task_group() as group:
            for _ in range(pages):
                group.start_soon(feed.changes, 0)
        return server.client.info("commandstats")["cmdstat_evalsha"]["calls"]

    await feed.changes(0)
    assert await cost(50) < 2 * await cost(1)


@pytest.mark.anyio
async def test_what_cannot_be_read_keeps_nothing_else_from_being_shown(
    scheduler: TaskBackoffScheduler, server: Server
) -> None:
    """A record that somebody has written over is told of."""
    await scheduler.create_task({}, delay=60)
    server.client.set("maas:{test}:scheduled", "not a zset", ex=60)
    feed = Feed(scheduler)
    parts = await feed.changes(0)
    assert "WRONGTYPE" in parts["trouble"]
    assert json.loads(parts["workers"]) == {"count": 0, "first": []}
    server.client.delete("maas:{test}:scheduled")


@pytest.mark.anyio
async def test_a_stream_gives_a_clock_then_the_parts_and_ends_to_be_asked_for_again(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last part has an id: who is cut off in between gets all of them again. Then `authorize` is asked."""
    monkeypatch.setattr("maas_backoff.dashboard.reading.STREAM_LIFE", 0.01)
    reading = Reading(scheduler, Feed(scheduler), Shown())
    events = [event async for event in reading._events(0, None)]
    names = [event["event"] for event in events]
    assert names == ["clock", "queue", "shares", "workers", "gpus", "upcoming", "history", "trouble"]
    assert [event["event"] for event in events if "id" in event] == ["trouble"]


@pytest.mark.anyio
async def test_a_page_that_comes_back_gets_what_it_has_missed(scheduler: TaskBackoffScheduler) -> None:
    """And nothing else; one that saw another process gets all."""
    feed = Feed(scheduler)
    await feed.changes(0)
    seen = feed.version
    await scheduler.create_task({}, delay=60)
    with anyio.fail_after(PATIENCE):
        while not (changes := await feed.changes(seen)):
            await anyio.sleep(PERIOD / 10)
    assert "queue" in changes and json.loads(changes["queue"])["counts"]["scheduled"] == 1
    assert "gpus" not in changes


@pytest.mark.anyio
async def test_tenants_and_limits_are_read_where_there_are_some(scheduler: TaskBackoffScheduler) -> None:
    """A queue without any costs no further call."""
    await scheduler.create_task({}, delay=60)
    calls: list[str] = []
    real = Shares._page

    async def noting(self: Shares, part: str, cursor: str, limit: int) -> Any:
        calls.append(part)
        return await real(self, part, cursor, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shares, "_page", noting)
        parts = await Feed(scheduler).changes(0)
        assert json.loads(parts["shares"]) == {
            "tenants": {"count": 0, "first": []},
            "limits": {"count": 0, "first": []},
        }
        assert calls == []
        await scheduler.create_task({}, tenant="acme")
        await scheduler.set_limit("openai", tokens=(1000, 60))
        parts = await Feed(scheduler).changes(0)
        assert set(calls) == {"waiting", "tenants", "limits", "opens", "closed"}
    shares = json.loads(parts["shares"])
    assert shares["tenants"]["first"] == [
        {"name": "acme", "waiting": 1, "weight": 1, "paused_since": None, "paused_by": ""}
    ]
    (limit,) = shares["limits"]["first"]
    assert (limit["name"], limit["rates"], limit["shut"]) == ("openai", ["1000/1m"], "")


def test_a_view_has_the_tenants_and_limits_with_most_waiting_tasks() -> None:
    tenants = [TenantStats(f"t{n}", 100 - n) for n in range(30)]
    limits = [LimitStats(f"l{n}", Limit(1), f"l{n}", waiting_tasks=n) for n in range(30)]
    view = shares_view(tenants, limits)
    assert (view["tenants"]["count"], view["limits"]["count"]) == (30, 30)
    assert [one["name"] for one in view["tenants"]["first"]] == [f"t{n}" for n in range(20)]
    assert [one["name"] for one in view["limits"]["first"]] == [f"l{29 - n}" for n in range(20)]


def test_streams_are_counted_and_bounded(served: Served) -> None:
    """One too many is told to come back; there is room again when one is closed."""
    limits = httpx2.Limits(max_connections=None)
    with httpx2.Client(base_url=served.url, timeout=PATIENCE, limits=limits, trust_env=False) as client:
        request = client.build_request("GET", "/look/api/events")
        streams = [client.send(request, stream=True) for _ in range(MOST_STREAMS)]
        lines = [stream.iter_lines() for stream in streams]
        for line in lines:
            next(line)
        refused = client.get("/look/api/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        streams[0].close()

        def accepted() -> bool:
            with client.stream("GET", "/look/api/events") as again:
                return again.status_code == 200

        served.until(accepted, "there is room")
        for stream in streams:
            stream.close()


def test_a_producer_can_show_it(tmp_path: Path, server: Server) -> None:
    """The scheduler need not be started: neither it nor the dashboard has a lifespan here."""
    env = {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "PRODUCER": "1"}
    service = Served("dashboard_service:app", env, tmp_path / "uvicorn.log", "--lifespan", "off")
    try:
        service.answering("/tasks/")
        assert service.client.get("/tasks/api/snapshot").json()["workers"] == {"count": 0, "first": []}
    finally:
        service.end()


@pytest.mark.parametrize(("options", "acts"), [((), False), (("--act",), True)])
def test_the_command_serves_this_machine_only(server: Server, options: tuple[str, ...], acts: bool) -> None:
    """Under no other name, so that no page elsewhere can have its own name lead here; Ctrl-C ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"redis://127.0.0.1:{server.port}"
    command = [sys.executable, "-m", "maas_backoff", "dashboard", "--url", url, "--queue", "test", "--port", str(port)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and f"http://127.0.0.1:{port}/" in process.stdout.readline()
            client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False)
            with client:
                for _ in range(500):
                    try:
                        page = client.get("/")
                        break
                    except httpx2.ConnectError:
                        anyio.run(anyio.sleep, 0.02)
                assert ('data-access="act"' in page.text) is acts
                assert client.get("/", headers={"Host": "rebound.example"}).status_code == 400
                code = client.post("/api/queue/pause", headers=SAME).status_code
                assert code == (200 if acts else 403)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        finally:
            process.kill()


def test_the_command_says_what_it_lacks(tmp_path: Path) -> None:
    """A server (3), or its extra (2)."""
    command = [sys.executable, "-m", "maas_backoff", "dashboard", "--url", "redis://127.0.0.1:1", "--queue", "test"]
    env = {**os.environ, "MAAS_BACKOFF_TIMEOUT": "1"}
    away = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert away.returncode == 3 and away.stderr.startswith("maas-backoff dashboard: ")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['starlette'] = None\n")
    env["PYTHONPATH"] = str(tmp_path)
    bare = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert bare.returncode == 2
    expected = 'maas-backoff dashboard: The dashboard needs an extra: pip install "maas_backoff[dashboard]"\n'
    assert bare.stderr == expected


def test_a_port_that_is_taken_is_said(server: Server) -> None:
    """Before anything is printed of an address that is somebody else's."""
    url = f"redis://127.0.0.1:{server.port}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "maas_backoff", "dashboard", "--url", url, "--queue", "test"]
        command += ["--port", str(taken.getsockname()[1])]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert (run.returncode, run.stdout) == (2, "") and "port: expected one that is free" in run.stderr
