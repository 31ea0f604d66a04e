"""The commands that look at a queue and steer it: what they print, their exit codes, and what they do to terminals."""

import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from command_line import Run, commands_on
from support import Server, eventually, quick_config

from maas_backoff import (
    GpuAssignment,
    RetryAhead,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    TaskStatus,
    current_task,
)
from maas_backoff.commands.task_text import task_lines
from maas_backoff.commands.text import cell, printable, span, table

HOSTILE = "\x1b[2J\x07 <b onload='x'>\n\u202e\"$(id)`\\"


@pytest.fixture
def command(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return commands_on(server, monkeypatch, capsys)


def run_tasks(config: TaskBackoffConfig, specs: list[TaskSpec]) -> None:
    """Create tasks and run them to their end; params may ask for a failure."""

    async def run() -> None:
        scheduler = TaskBackoffScheduler(config)

        @scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> object:
            if "error" in task.task_params:
                raise ValueError(task.task_params["error"])
            task.update_progress(50, HOSTILE)
            return {"n": 1}

        async with scheduler:
            for task_id in await scheduler.create_tasks(specs):
                await scheduler.wait_task(task_id, 20)

    anyio.run(run)


def test_a_task_from_its_creation_to_its_end(command: Run) -> None:
    code, out, _ = command("create", '{"n": 1}', "--id", "x", "--delay", "60", "--priority", "5")
    assert (code, out) == (0, "x\n")
    assert command("get", "x")[0] == 0
    assert json.loads(command("get", "x", "--json")[1])["priority"] == 5
    assert command("update", "x", "--priority", "-7")[0] == 0
    (task,) = json.loads(command("list", "--json")[1])["tasks"]
    assert task["priority"] == -7 and task["waiting_for"].startswith("due at")
    assert "x   pending  -7" in command("list")[1]
    assert command("cancel", "x") == (0, "cancelled\n", "")
    assert command("cancel", "x")[0] == 1 and command("update", "x", "--delay", "1")[0] == 1
    assert command("retry", "x") == (0, "pending again\n", "")
    assert command("retry", "x")[0] == 1
    assert command("purge", "pending")[0] == 2
    assert command("purge", "pending", "--yes") == (0, "1 task is deleted\n", "")
    assert command("get", "x") == (1, "", "maas-backoff get: no task x in queue test\n")


def test_the_log_of_a_task_is_shown(command: Run, config: TaskBackoffConfig) -> None:
    """The last lines, also of a task that goes on. A control character of a line is shown as text."""

    async def run() -> None:
        scheduler = TaskBackoffScheduler(config)

        @scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> None:
            for n in range(3):
                task.log(f"line {n} {HOSTILE}")

        async with scheduler:
            await scheduler.create_task({}, "x")
            await scheduler.wait_task("x", 20)
            await scheduler.create_task({}, "silent", delay=60)

    anyio.run(run)
    code, out, _ = command("logs", "x")
    assert code == 0 and "\x1b" not in out
    lines = out.splitlines()
    assert len(lines) == 3
    assert all(
        re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  attempt 1  line {n} ", one) for n, one in enumerate(lines)
    )
    assert command("logs", "x", "--last", "2")[1].splitlines() == lines[1:]
    assert command("logs", "x", "-f") == command("logs", "x", "--follow") == (0, out, "")
    last = json.loads(command("logs", "x", "--json", "--last", "1")[1])
    assert last["text"] == f"line 2 {HOSTILE}" and last["attempt"] == 1
    assert command("logs", "silent") == (0, "", "")
    code, _, complaint = command("logs", "nothing")
    assert code == 1 and "no task 'nothing'" in complaint
    assert command("logs", "x", "--last", "0")[0] == 2


def test_a_failed_attempt_is_shown_with_its_code(command: Run, config: TaskBackoffConfig) -> None:
    async def run() -> None:
        async with TaskBackoffScheduler(config) as scheduler:
            await scheduler.create_task({}, "x")
            await scheduler.mark_task_failed("x", "bad prompt", code=400)

    anyio.run(run)
    assert any(
        line.startswith("attempt 0: failed: bad prompt (") and line.endswith(", code 400)")
        for line in command("get", "x")[1].splitlines()
    )


def test_a_task_is_shown_in_words_and_in_exact_numbers(command: Run, config: TaskBackoffConfig) -> None:
    config.task.backoff_interval, config.task.max_retry_count = 100, 3
    create(config, TaskSpec({"n": 1}, "x", tenant="acme", labels=["nightly"], limits={"openai": 2.5}))

    async def fail() -> None:
        async with TaskBackoffScheduler(config) as scheduler:
            await scheduler.mark_task_failed("x", "not yet")

    anyio.run(fail)
    lines = dict(line.split(maxsplit=1) for line in command("get", "x")[1].splitlines())
    assert (lines["task"], lines["state"]) == ("x in queue test", "pending")
    assert (lines["tenant"], lines["limits"], lines["labels"]) == ("acme, cost 1", "openai 2.5", "nightly")
    assert lines["attempts"] == "0, 1 of 3 retries used" and lines["params"] == '{"n": 1}'
    assert re.fullmatch(r"20.*Z \(in 1\.\d+ min\)|20.*Z \(in \d+(\.\d+)? s\)", lines["due"])
    retries = [line for line in command("get", "x")[1].splitlines() if line.startswith("retry")]
    assert [re.sub("20.*Z", "…", line) for line in retries] == [
        "retry 2: … at the earliest, 3.33 min after a failure",
        "retry 3: … at the earliest, 6.67 min after a failure",
    ]
    told = json.loads(command("get", "x", "--json")[1])
    assert (told["retry_count"], told["lost_count"], told["cost"]) == (1, 0, 1)
    assert [(one["number"], one["shortest"], one["longest"]) for one in told["retries_ahead"]] == [
        (2, 200, 200),
        (3, 400, 400),
    ]
    assert command("cancel", "x")[0] == 0 and "state      cancelled: requested" in command("get", "x")[1]
    assert json.loads(command("get", "x", "--json")[1])["retries_ahead"] == []


def test_a_running_task_and_counters_in_words() -> None:
    gpu = GpuAssignment("GPU-a", 3, 4)
    counts = {"attempt": 7, "lost_count": 1, "oom_count": 2}
    running = TaskEntity("x", "q", {}, TaskStatus.PROCESSING, progress=40, gpu=gpu, **counts)
    lines = task_lines(running, [RetryAhead(2, 30, 30), RetryAhead(3, 0, 3000)])
    assert "progress   40 %" in lines and "gpu        3 (GPU-a), 4 GiB" in lines
    assert "attempts   7, 0 of 3 retries used, lost with its worker once, out of GPU memory 2 times" in lines
    assert lines[-2] == "retry 2: 30 s after a failure"
    assert lines[-1] == "retry 3: 0 ms to 50 min after a failure, as the backoff function decides"


def test_the_numbers_of_a_queue(command: Run, config: TaskBackoffConfig) -> None:
    failing = [TaskSpec({"error": f"no {n}"}, f"f{n}", max_retry_count=0) for n in range(3)]
    run_tasks(config, [TaskSpec({}, "x"), *failing])
    code, out, _ = command("stats")
    assert (
        code == 0
        and "The queue is empty, and no worker is connected." in out
        and "1 completed" in out
        and "ValueError  3" in out
    )
    told = json.loads(command("stats", "--json")[1])
    assert (told["completed_count"], told["failed_count"], told["paused"]) == (1, 3, False)
    assert told["last_hour"]["errors"] == {"ValueError": 3} and told["last_hour"]["runs"]["count"] == 4
    assert command("retry", "--all-failed", "--error", "no 2")[1] == "1 task is pending again\n"
    assert command("retry")[0] == 2 and command("retry", "f0", "--all-failed")[0] == 2
    assert "No worker is running: 1 task due." in command("stats")[1]
    assert command("workers")[0] == 1
    assert command("watch", "x") == (0, "completed  attempt 1, 100 %  " + cell(HOSTILE) + "\n", "")
    assert command("watch", "f0")[0] == 1
    assert command("watch", "none")[0] == 1


def test_the_gpu_memory_that_tasks_use_is_shown_beside_what_they_ask_for(
    command: Run, config: TaskBackoffConfig, server: Server
) -> None:
    """With advice. The counts are those of thirty attempts that were given 16 GiB, and used 4."""
    run_tasks(config, [TaskSpec({}, "x")])
    assert "GPU" not in command("stats")[1]
    (minute,) = server.client.keys("maas:{test}:h:*")
    server.client.hset(minute, mapping={"g48": 30, "n56": 30})
    out = command("stats")[1]
    assert "used of a GPU: 3.68 GiB (p50), 3.99 GiB (p99) of 30" in out
    assert "asked for: 14.7 GiB (p50), 16 GiB (p99) of 30" in out
    assert "min_gpu_memory_gb may be lower" in out
    told = json.loads(command("stats", "--json")[1])["last_hour"]
    assert told["gpu_peaks"]["p99"] < 4 < told["gpu_needs"]["p50"] and "may be lower" in told["gpu_hint"]


def test_many_tasks_are_selected_counted_and_changed(
    command: Run, config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [TaskSpec({}, f"img-{n}", labels=["nightly"], tenant="acme", delay=60) for n in range(12)]
    create(config, *specs, TaskSpec({}, "other", delay=60))
    mine = ("--label", "nightly", "--tenant", "acme")
    assert command("count", *mine) == (0, "12\n", "") and command("count", "--json")[1] == '{\n  "matched": 13\n}\n'
    assert len(json.loads(command("list", *mine, "--json")[1])["tasks"]) == 12
    assert command("list", "--state", "failed", *mine)[1].count("\n") == 1
    assert command("cancel", *mine, "--dry-run") == (0, "12 tasks match\n", "")
    code, out, told = command("cancel", *mine)
    assert (code, out) == (2, "") and "expected --yes, as 12 tasks would be changed" in told
    assert command("cancel", "--id-prefix", "img-1", "--yes") == (0, "3 tasks are cancelled\n", "")
    assert command("cancel", "--id-prefix", "img-1", "--yes")[1] == "0 tasks match\n"
    told = json.loads(command("update", *mine, "--delay", "0", "--yes", "--json")[1])
    assert told == {"matched": 9, "changed": 9, "dry_run": False}
    assert command("retry", "--state", "cancelled", "--created-from", "1h", "--yes")[1] == "3 tasks are pending again\n"
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    code, out, told = command("delete", *mine)
    assert (code, out) == (1, "") and told.startswith("delete 12 tasks? [y/N]")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert command("delete", *mine)[:2] == (0, "12 tasks are deleted\n")
    assert command("delete", "other") == (0, "deleted\n", "") and command("delete", "other")[0] == 1


def test_a_dry_run_with_an_id_changes_nothing(command: Run, config: TaskBackoffConfig, server: Server) -> None:
    """It says whether the command would change the task, by the same rules."""
    waits, gone = TaskSpec({}, "waits", delay=60, priority=3), TaskSpec({}, "gone", delay=60)
    create(config, waits, gone, TaskSpec({}, "runs"), TaskSpec({}, "elsewhere"))
    assert command("cancel", "gone")[0] == 0

    async def take() -> None:
        scheduler = TaskBackoffScheduler(config)
        assert await scheduler.mark_task_processing("elsewhere")
        await scheduler.shutdown()

    anyio.run(take)
    server.client.zrem("maas:{test}:ready", "runs")
    server.client.zadd("maas:{test}:leases", {"runs": (time.time() + 60) * 1000})
    server.client.hset("maas:{test}:t:runs", mapping={"s": "processing", "t": "1", "n": "1", "y": "1 gpu-7-1-abc"})
    before = everything(server)
    one, ids = (0, "1 task matches\n", ""), ("waits", "gone", "runs", "elsewhere", "none")
    would = {
        "update --priority 1": {"waits"},
        "cancel": {"waits"},
        "cancel --running": {"waits", "runs", "elsewhere"},
        "retry": {"gone"},
        "delete": {"waits", "gone", "elsewhere"},
    }
    for words, changed in would.items():
        name, *others = words.split()
        for task_id in ids:
            code, out, told = command(name, task_id, *others, "--dry-run")
            if task_id in changed:
                assert (code, out, told) == one, (words, task_id)
            else:
                assert (code, out) == (1, "") and task_id in told, (words, task_id)
            assert command(name, task_id, *others, "--dry-run", "--lang", "zh")[0] == code
            code_again, out, _ = command(name, task_id, *others, "--dry-run", "--json")
            told_json = {"matched": int(task_id in changed), "changed": 0, "dry_run": True}
            assert (code_again, json.loads(out)) == (code, told_json)
    assert command("update", "waits", "--priority", "5000", "--dry-run")[0] == 2
    assert command("update", "waits", "--dry-run")[0] == 2
    assert everything(server) == before
    for words in ("update runs --priority 1", "delete runs", "cancel runs", "cancel elsewhere", "retry waits"):
        assert command(*words.split())[0] == 1, words
    for words in ("cancel runs --running", "delete elsewhere", "retry gone", "delete waits"):
        assert command(*words.split())[0] == 0, words


def everything(server: Server) -> dict[str, bytes]:
    """Return the value of each task."""
    return {f"{key!r}": server.client.dump(key) for key in server.client.keys("maas:{test}:t:*")}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "words",
    [
        "cancel",
        "cancel x --kind a",
        "delete --all --kind a",
        "retry --all-failed --state failed",
        "cancel --state failed --yes",
        "delete --state processing --yes",
        "update --all --yes",
        "count --created-from 2weeks",
        "count --label a?b",
        "list --state nonsense",
    ],
)
def test_a_wrong_selection_changes_nothing(command: Run, config: TaskBackoffConfig, words: str) -> None:
    create(config, TaskSpec({}, "x", delay=60))
    code, out, told = command(*words.split())
    assert (code, out) == (2, "") and "expected" in told
    assert command("count")[1] == "1\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cancel --state completed", "--state: expected pending, or processing with --running, got 'completed'"),
        ("cancel --state failed --running", "--state: expected pending or processing, got 'failed'"),
        ("retry --state pending", "--state: expected failed or cancelled, got 'pending'"),
        ("update --state failed,pending --priority 1", "--state: expected pending, got 'pending, failed'"),
        ("delete --state processing", "--state: expected pending, failed, cancelled or completed, got 'processing'"),
        ("update x", "update: expected --priority or --delay, got 'neither'"),
        ("update --all", "update: expected --priority or --delay, got 'neither'"),
        ("update x --priority 1001", "priority: expected a whole number from -1000 to 1000, got 1001"),
        ("create [1]", "params: expected a JSON object, got list"),
        ("create 1 --priority 1", "params: expected a JSON object, got int"),
        ("create {", "params: expected a JSON object, got '{'"),
    ],
)
def test_an_error_speaks_of_the_options_of_the_command(
    command: Run, config: TaskBackoffConfig, words: str, expected: str
) -> None:
    create(config, TaskSpec({}, "x", delay=60))
    name = words.partition(" ")[0]
    assert command(*words.split()) == (2, "", f"maas-backoff {name}: {expected}\n")


def test_who_runs_what_and_workers_and_gpus_are_taken_out_of_use(
    command: Run, config: TaskBackoffConfig, server: Server
) -> None:
    create(config, TaskSpec({}, "x"), TaskSpec({}, "y", delay=60))
    assert command("quiet", "gpu-7")[0] == 1
    enter_worker(server, "gpu-7-1-abc")
    server.client.zrem("maas:{test}:ready", "x")
    server.client.zadd("maas:{test}:leases", {"x": (time.time() + 60) * 1000})
    started = f"{(time.time() - 300) * 1000:.0f} gpu-7-1-abc\nGPU-a 3 4096"
    server.client.hset("maas:{test}:t:x", mapping={"s": "processing", "t": "1", "n": "1", "y": started})
    assert re.search(r"gpu-7-1-abc: x runs for 5(\.\d+)? min on GPU 3\n", command("workers")[1])
    (worker,) = json.loads(command("workers", "--json")[1])
    assert worker["tasks"][0]["task_id"] == "x" and 290 < worker["tasks"][0]["running_for"] < 400
    assert "x runs" not in command("workers", "--tasks", "0")[1]
    row = command("list", "--state", "processing", "--worker", "gpu-7")[1].splitlines()[1]
    assert row.startswith("x   processing") and "gpu-7-1-abc gpu 3" in row
    assert re.search("worker +gpu-7-1-abc", command("get", "x")[1])
    assert command("count", "--gpu", "GPU-a")[1] == "1\n"
    assert command("quiet", "gpu-7") == (0, "gpu-7-1-abc claims nothing more after its next heartbeat\n", "")
    assert server.client.exists("maas:{test}:quiet:gpu-7-1-abc")
    assert command("quiet", "h", "--off")[1] == "gpu-7-1-abc claims again after its next heartbeat\n"
    assert not server.client.exists("maas:{test}:quiet:gpu-7-1-abc")
    uuid = "GPU-12345678-1234-1234-1234-123456789abc"
    assert command("quarantine", uuid, "--reason", "smoke")[1].startswith(f"{uuid} takes no new tasks")
    assert (
        command("release", uuid)[1] == "released\n" and command("release", uuid)[1] == f"{uuid} was in no quarantine\n"
    )
    assert command("quarantine", "GPU-1")[0] == 2


def test_the_queues_of_a_server_are_listed(command: Run, config: TaskBackoffConfig, server: Server) -> None:
    """A queue that nobody has used is told apart from an empty one."""
    assert command("queues")[1].count("\n") == 1
    assert "Nobody has used the queue 'test' on this server yet." in command("stats")[1]
    assert command("queues")[1].count("\n") == 1, "a look uses no queue"
    for queue, number in (("a", 2), ("b", 0)):
        own = config.copy()
        own.task.biz_prefix = queue
        create(own, *[TaskSpec({}, delay=60)] * number)
        server.client.hset(f"maas:{{{queue}}}:meta", "schema", 1)
    server.client.set("maas:{not a queue}:meta", 1, ex=60)
    rows = [line.split() for line in command("queues")[1].splitlines()]
    assert [row[:4] + row[-2:] for row in rows[1:]] == [
        ["a", "0", "2", "0", "no", "worker"],
        ["b", "0", "0", "0", "no", "worker"],
    ]
    told = json.loads(command("queues", "--json")[1])
    assert [one["queue"] for one in told["queues"]] == ["a", "b"] and told["complete"]
    assert "The queue is empty" in command("stats", "--queue", "b")[1]
    server.client.flushall()


def test_the_history_by_kind_and_by_tenant(command: Run, config: TaskBackoffConfig) -> None:
    """It comes from a worker that runs two kinds and tasks without a kind, some of them of tenants."""
    config.task.max_retry_count = 1

    async def run() -> None:
        scheduler = TaskBackoffScheduler(config)

        @scheduler.task
        async def render(text: str, fails: int = 0) -> str:
            task = current_task()
            if task is None or task.attempt <= fails:
                raise ValueError
            return text

        @scheduler.task
        async def upscale() -> None: ...

        @scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> None: ...

        async with scheduler:
            made = [await render.options(tenant="acme").create("a", fails) for fails in (0, 0, 1, 2)]
            tasks = [one.task_id for one in made] + [(await upscale.create()).task_id]
            tasks += [await scheduler.create_task({}, tenant=tenant) for tenant in ("acme", "bolt")]
            for task_id in [*tasks, await scheduler.create_task({})]:
                await scheduler.wait_task(task_id, 20)

    anyio.run(run)
    rows = [re.split("  +", line)[:5] for line in command("history", "--by", "kind")[1].splitlines()]
    head = ["completed", "failed", "cancelled", "retried"]
    assert rows == [["kind", *head], ["render", "3", "1", "0", "2"], ["upscale", "1", "0", "0", "0"]]
    told = json.loads(command("history", "--by", "tenant", "--hours", "2", "--json")[1])
    names = {one["name"]: (one["completed"], one["failed"], one["retried"]) for one in told["names"]}
    assert names == {"acme": (4, 1, 2), "bolt": (1, 0, 0)} and (told["by"], told["step"]) == ("tenant", 600)
    assert len(told["names"][0]["steps"]) == len(told["others"]["steps"]) == 12
    steps = command("history", "--tenant", "acme", "--hours", "1")[1].splitlines()
    assert re.split("  +", steps[0])[:5] == ["from", *head] and 3 <= len(steps) <= 4
    assert re.split("  +", steps[-1])[:5] == ["all", "4", "1", "0", "2"] and re.search(r" m?s$", steps[-1])
    assert len(command("history", "--kind", "render", "--empty")[1].splitlines()) == 62
    assert command("history", "--kind", "none")[1].splitlines()[-1].split() == ["all", "0", "0", "0", "0", "-"]
    for words, expected in (
        ("--by kind --days 1", "days: expected --minutes or --hours"),
        ("--kind 1", "kind: expected a letter"),
        ("--by tenant --hours 25", "hours: expected a whole number from 1 to 24"),
    ):
        code, out, error = command("history", *words.split())
        assert (code, out) == (2, "") and expected in error


def enter_worker(server: Server, name: str) -> None:
    entry = json.dumps({"host": "h", "slots": 4, "running": 1})
    server.client.zadd("maas:{test}:workers", {name: (time.time() + 60) * 1000})
    server.client.set(f"maas:{{test}}:w:{name}", entry, ex=60)


def test_a_queue_is_paused_and_goes_on(command: Run) -> None:
    assert command("pause") == (0, "paused\n", "")
    assert command("pause", "--by", "ada")[1] == "the queue was paused already\n"
    assert "The queue is paused" in command("stats")[1]
    assert f"Paused by {getpass.getuser()} since 20" in command("stats")[1]
    assert f"paused by {getpass.getuser()}\n" in command("queues")[1]
    assert command("resume") == (0, "goes on\n", "") and command("resume")[1] == "the queue was not paused\n"
    assert command("pause", "--by", "") == (0, "paused\n", "")
    assert "Paused since 20" in command("stats")[1] and json.loads(command("stats", "--json")[1])["paused_by"] == ""
    code, out, error = command("pause", "--by", "a\tb")
    assert (code, out) == (2, "") and "by: expected up to 100 printable characters" in error


def test_one_kind_is_paused_and_goes_on(command: Run, server: Server) -> None:
    assert command("kinds") == (0, "kind  due  workers  paused since  paused by\n", "")
    anyio.run(_create_of_kinds, server)
    entry = json.dumps({"host": "h", "kinds": ["", "render", "new"]})
    server.client.zadd("maas:{test}:workers", {"w": (time.time() + 60) * 1000})
    server.client.set("maas:{test}:w:w", entry, ex=60)
    assert command("pause", "--kind", "render", "--by", "ada") == (0, "paused\n", "")
    assert command("pause", "--kind", "render")[1] == "kind render was paused already\n"
    rows = [line.split(maxsplit=3) for line in command("kinds")[1].splitlines()[1:]]
    since = rows[1].pop()
    assert [row[:3] for row in rows] == [["new", "0", "1"], ["render", "2", "1"], ["upscale", "1", "no"]]
    assert since.endswith("Z  ada") or since.split()[-1] == "ada"
    assert [row[-1].split()[-1] for row in rows[::2]] == ["-", "-"]
    server.client.set("maas:{test}:w:w", json.dumps({"kinds": ["render"], "quiet": True}), ex=60)
    assert re.search(r"render +2 +1, all quiet ", command("kinds")[1])
    server.client.set("maas:{test}:w:w", entry, ex=60)
    told = json.loads(command("kinds", "--json")[1])
    assert [(one["kind"], one["due"], one["workers"]) for one in told] == [
        ("new", 0, 1),
        ("render", 2, 1),
        ("upscale", 1, 0),
    ]
    assert [one["paused_since"] is None for one in told] == [True, False, True]
    assert [one["paused_by"] for one in told] == ["", "ada", ""]
    assert list(json.loads(command("stats", "--json")[1])["paused_kinds"]) == ["render"]
    assert "kind render: paused, 2 tasks due" in command("stats")[1]
    assert "warning  queue: " in command("doctor")[1] and "kind render: paused" in command("list")[1]
    assert command("resume", "--kind", "render") == (0, "goes on\n", "")
    assert command("resume", "--kind", "render")[1] == "kind render was not paused\n"
    code, out, error = command("pause", "--kind", "")
    assert (code, out) == (2, "") and "kind: expected a letter or _" in error


def test_one_tenant_is_paused_and_gets_a_weight(command: Run, config: TaskBackoffConfig) -> None:
    assert command("tenants") == (0, "tenant  waiting  weight  paused since  paused by\n", "")
    create(config, *[TaskSpec({}, tenant="acme")] * 3, TaskSpec({}, tenant="bolt"))
    assert command("pause", "--tenant", "acme", "--by", "ada") == (0, "paused\n", "")
    assert command("pause", "--tenant", "acme")[1] == "tenant acme was paused already\n"
    assert command("weight", "bolt", "2.5") == (0, "set\n", "")
    assert command("weight", "bolt", "2.5")[1] == "tenant bolt had this weight already\n"
    rows = [line.split(maxsplit=3) for line in command("tenants")[1].splitlines()[1:]]
    assert rows[0].pop().split()[-1] == "ada" and rows[1].pop().split() == ["-", "-"]
    assert rows == [["acme", "3", "1"], ["bolt", "1", "2.5"]]
    assert command("tenants", "--limit", "1")[1].endswith("There are 1 more: --limit 2\n")
    told = json.loads(command("tenants", "--json")[1])
    assert [one.pop("paused_since") is None for one in told] == [False, True]
    assert [one.pop("paused_by") for one in told] == ["ada", ""]
    assert told == [{"tenant": "acme", "waiting": 3, "weight": 1}, {"tenant": "bolt", "waiting": 1, "weight": 2.5}]
    counts = json.loads(command("stats", "--json")[1])
    assert counts["tenant_count"] == 2 and list(counts["paused_tenants"]) == ["acme"]
    assert "warning  queue: " in command("doctor")[1] and "tenant acme is paused" in command("list")[1]
    assert command("resume", "--tenant", "acme") == (0, "goes on\n", "")
    assert command("resume", "--tenant", "acme")[1] == "tenant acme was not paused\n"


def create(config: TaskBackoffConfig, *specs: TaskSpec) -> None:
    async def run() -> None:
        producer = TaskBackoffScheduler(config)
        await producer.create_tasks(specs)
        await producer.shutdown()

    anyio.run(run)


def test_a_limit_is_set_shown_and_removed(command: Run, config: TaskBackoffConfig) -> None:
    head = "limit  in use  rate  tokens  waiting tasks  state\n"
    assert command("limits") == (0, head, "")
    given = ("--concurrency", "2", "--rate", "500/1m", "--tokens", "120000/1m")
    assert command("limit", "openai", *given) == (0, "set\n", "")
    assert command("limit", "openai", *given)[1] == "limit openai had this setting already\n"
    assert command("limit", "user:*", "--concurrency", "1")[0] == 0
    run_tasks(config, [TaskSpec({}, limits={"openai": 1, "user:7": 1})])
    assert [line.split(maxsplit=6) for line in command("limits")[1].splitlines()[1:]] == [
        ["openai", "0", "of", "2", "500/1m", "120000/1m", "0              open"],
        ["user:*", "-", "of", "1", "-", "-", "0              each name has its own"],
    ]
    told = json.loads(command("limits", "--json")[1])
    assert told["more"] == 0
    limit = told["limits"][0]
    assert limit.pop("limit") == {"concurrency": 2, "rate": [500, 60], "tokens": [120_000, 60]}
    assert {name for name, value in limit.items() if value is None} == {"opens_at", "closed_until"}
    assert (limit["name"], limit["set_by"], limit["most"], limit["shut"]) == ("openai", "openai", 2, "")
    assert (limit["in_use"], limit["waiting_lanes"], limit["waiting_tasks"]) == (0, 0, 0)
    assert command("limit", "openai", "--remove") == (0, "removed\n", "")
    assert command("limit", "openai", "--remove")[1] == "limit openai was not set\n"


def test_a_shut_limit_says_why(command: Run, config: TaskBackoffConfig) -> None:
    command("limit", "openai", "--rate", "1/1h")
    create(config, *[TaskSpec({}, "first", limits={"openai": 1})])

    async def run_one() -> None:
        scheduler = TaskBackoffScheduler(config)
        scheduler.set_custom_task_handler(lambda task: None)
        async with scheduler:
            await scheduler.wait_task("first", 20)
            await scheduler.create_task({}, "second", limits={"openai": 1})
            await eventually(lambda: _waits(scheduler), "a worker has looked")

    async def _waits(scheduler: TaskBackoffScheduler) -> bool:
        return (await scheduler.limits())[0].waiting_tasks == 1

    anyio.run(run_one)
    row = command("limits")[1].splitlines()[1]
    assert row.split(maxsplit=4)[:4] == ["openai", "0", "1/1h", "-"] and "room in 60 min" in row
    assert "rate openai: room in 60 min" in command("list")[1]
    assert command("stats")[1].splitlines()[2].startswith("No worker is running: 1 task due.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("limit openai", "limit: expected --concurrency, --rate and --tokens, or --remove alone, got 'none of them'"),
        ("limit openai --remove --concurrency 1", "or --remove alone, got 'both'"),
        ("limit openai --rate 500", "rate: expected a whole number and a time up to 31d, such as 500/1m, got '500'"),
        ("limit openai --rate 1.5/1m", "rate: expected a whole number and a time up to 31d"),
        ("limit openai --rate 5/1y", "rate: expected a whole number and a time up to 31d"),
        ("limit openai --tokens many/1m", "tokens: expected a number and a time up to 31d, such as 500/1m, got"),
        ("limit openai --tokens 0/1m", "tokens: expected a number and a time"),
        ("limit openai --concurrency 0", "concurrency: expected a whole number from 1 to 1,000,000"),
        ("limit openai --concurrency many", "argument --concurrency: invalid int value: 'many'"),
        ("limit a,b --concurrency 1", "limit: expected 1 to 100 of A-Z"),
        ("weight acme 0", "weight: expected a number from 0.001 to 1,000"),
        ("weight acme nan", "weight: expected a number from 0.001 to 1,000"),
        ("weight a|b 1", "tenant: expected 1 to 100 of A-Z"),
        ("pause --tenant acme --kind render", "tenant: expected either kind or tenant, got 'acme'"),
        ("resume --tenant |", "tenant: expected 1 to 100 of A-Z"),
        ("tenants --limit 0", "argument --limit: expected a whole number from 1 on, got '0'"),
    ],
)
def test_a_wrong_tenant_or_limit_is_refused(
    command: Run, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
) -> None:
    """Before any server is asked."""
    monkeypatch.setenv("MAAS_BACKOFF_URL", "redis://127.0.0.1:1")
    code, out, error = command(*words.split())
    assert (code, out) == (2, "") and expected in error


async def _create_of_kinds(server: Server) -> None:
    producer = TaskBackoffScheduler(quick_config(server.storage))

    @producer.task
    async def render() -> None: ...

    @producer.task
    async def upscale() -> None: ...

    await render.create()
    await render.options(min_gpu_memory_gb=1).create()
    await upscale.create()
    await producer.shutdown()


def test_a_probe_asks_for_a_server_and_for_a_worker(
    command: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("check")[0] == 0
    code, out, error = command("check", "--ready")
    assert (code, out) == (1, "") and "no worker of this queue is alive on this host" in error

    def enter(trouble: str) -> None:
        told = json.dumps({"host": socket.gethostname(), "trouble": trouble})
        server.client.zadd("maas:{test}:workers", {"w": (time.time() + 60) * 1000})
        server.client.set("maas:{test}:w:w", told, ex=60)

    enter("starting")
    code, out, error = command("check", "--ready")
    assert (code, out) == (1, "") and "no worker of this queue on this host is ready: starting" in error
    assert command("check")[0] == 0 and "starting" in command("workers")[1]
    assert "worker w: not ready: starting" in command("doctor")[1]
    enter("")
    assert command("check", "--ready")[0] == 0
    monkeypatch.setenv("MAAS_BACKOFF_URL", "redis://:a-secret@127.0.0.1:1")
    monkeypatch.setenv("MAAS_BACKOFF_TIMEOUT", "0.3")
    code, out, error = command("check")
    assert (code, out) == (3, "") and "a-secret" not in error


def test_a_doctor_leaves_a_queue_that_nobody_has_used_as_it_is(command: Run, server: Server) -> None:
    """A wrong name is seen after it, too."""
    assert command("doctor")[0] == 0 and server.client.keys("*{test}*") == []
    assert "Nobody has used the queue 'test'" in command("stats")[1]
    assert "Nobody has used the queue 'test'" in command("doctor")[1]
    assert command("queues", "--json")[1].count('"queue"') == 0
    assert command("doctor", "--keys", "0")[0] == command("queues", "--keys", "-5")[0] == 2


def test_a_doctor_names_what_is_wrong(command: Run, server: Server) -> None:
    code, out, _ = command("doctor")
    assert {one["kind"] for one in json.loads(command("doctor", "--json")[1])} == {"ok", "warning"}
    assert code == 0 and "workers: 0 alive" in out and "append-only file" in out and "gpus: none here" in out
    assert command("create", "{}", "--delay", "60")[0] == 0 and "warning  queue: " not in command("doctor")[1]
    assert command("create", "{}")[0] == 0
    assert "warning  queue: No worker is running: 1 task due" in command("doctor")[1]
    command("pause")
    anyio.run(_create_unfit, server)
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    server.client.config_set("maxmemory", 4 << 30)
    try:
        code, out, _ = command("doctor")
    finally:
        server.client.config_set("maxmemory", 0)
        server.client.config_set("maxmemory-policy", "noeviction")
    assert code == 1 and "maxmemory-policy" in out
    assert "warning  queue: The queue is paused" in out and "wrong    queue: 1 tasks ask for more GPU memory" in out


async def _create_unfit(server: Server) -> None:
    producer = TaskBackoffScheduler(quick_config(server.storage))
    await producer.create_task({}, min_gpu_memory_gb=1000)
    await producer.shutdown()


def test_a_policy_is_shown_before_anything_runs(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment's configuration, or by options; no server is asked."""
    monkeypatch.setenv("MAAS_BACKOFF_URL", "redis://127.0.0.1:1")
    code, out, _ = command("preview", "--json")
    assert code == 0 and [step["delay"] for step in json.loads(out)] == [30, 60, 120]
    arguments = ["--backoff-strategy", "linear", "--backoff-interval", "10", "--max-backoff-interval", "25"]
    assert [s["after"] for s in json.loads(command("preview", *arguments, "--json")[1])] == [10, 30, 55]
    lines = command("preview", *arguments, "--max-retry-count", "2")[1].splitlines()
    assert lines[1].count("#") == 20 and lines[2].count("#") == 40
    many = command("preview", *arguments, "--max-retry-count", "100000", "--json")[1]  # all sums anew take minutes
    assert json.loads(many)[-1] == {"retry": 100_000, "delay": 25, "after": 30 + 99_998 * 25}
    code, _, error = command("preview", "--backoff-strategy", "quick")
    assert code == 2 and "backoff_strategy" in error


def test_what_cannot_be_used_is_said_in_one_sentence(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, error = command("create", "[1]")
    assert code == 2 and error == "maas-backoff create: params: expected a JSON object, got list\n"
    assert command("create", "{")[0] == 2
    code, _, error = command("create", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    assert (
        code == 2 and error.startswith("maas-backoff create: params: expected a JSON object, got ") and len(error) < 500
    )
    assert command("list", "--limit", "0")[0] == 2
    monkeypatch.delenv("MAAS_BACKOFF_BIZ_PREFIX")
    code, _, error = command("stats")
    assert code == 2 and "biz_prefix" in error
    assert command("stats", "--queue", "other")[0] == 0


def test_text_of_tasks_is_shown_and_not_obeyed(command: Run, config: TaskBackoffConfig) -> None:
    """Escapes, line breaks and marks of direction in params, progress, results and errors."""
    evil = TaskSpec({"error": HOSTILE, "text": HOSTILE}, "evil", max_retry_count=0)
    run_tasks(config, [evil, TaskSpec({}, "good")])
    for arguments in (
        ("get", "evil"),
        ("get", "evil", "--json"),
        ("list", "--state", "failed"),
        ("list", "--state", "failed", "--json"),
        ("list", "--state", "completed"),
        ("watch", "evil"),
        ("watch", "good", "--json"),
    ):
        code, out, _ = command(*arguments)
        assert code == (arguments == ("watch", "evil")), arguments
        assert all(char.isprintable() or char == "\n" for char in out), arguments
        assert "onload" in out


def test_cells_are_printable_and_short() -> None:
    assert printable("a\x1b[0m\u202eb\n") == "a\\x1b[0m\\u202eb\\n"
    assert len(cell("x" * 100)) == 60 and cell("x" * 60) == "x" * 60
    assert table(("a", "long"), [("xyz", 1)]) == "a    long\nxyz  1"
    assert [span(s) for s in (None, 0.0123, 5, 130, 9000, 300_000)] == [
        "-",
        "12.3 ms",
        "5 s",
        "2.17 min",
        "2.5 h",
        "3.47 d",
    ]


WORKER = """
import logging
from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_env())

@scheduler.set_custom_task_handler
def handle(task):
    error = ValueError(HOSTILE)
    logging.getLogger("mine").warning("working \x1b[31m", exc_info=error)
    raise error
"""


def test_a_worker_logs_json_that_carries_the_task(server: Server, tmp_path: Path) -> None:
    """Its own lines and those of the handler; never the params."""
    text = _log_of_a_worker(server, tmp_path, "json")
    lines = [json.loads(line) for line in text.splitlines()]
    about = [(one["logger"], one.get("event"), one["task_id"], one["attempt"]) for one in lines]
    assert about.count(("mine", None, "x", 1)) == 1 and about.count(("mine", None, "x", 2)) == 1
    assert ("maas_backoff.worker", "retried", "x", 1) in about and ("maas_backoff.worker", "failed", "x", 2) in about
    assert "secret words" not in text


def test_a_log_for_people_shows_what_tasks_say_and_does_not_obey_it(server: Server, tmp_path: Path) -> None:
    """Each record is one line, with its traceback below: no error can forge another, or drive a terminal."""
    text = _log_of_a_worker(server, tmp_path, "plain")
    assert all(char.isprintable() or char == "\n" for char in text)
    lines = text.splitlines()
    assert sum("onload" in line and "attempt 1: ValueError: " in line for line in lines) == 1
    assert sum("working \\x1b[31m" in line for line in lines) == 2
    assert any(line.startswith("ValueError: ") for line in lines), "a traceback"


def _log_of_a_worker(server: Server, tmp_path: Path, kind: str) -> str:
    (tmp_path / "mine.py").write_text(WORKER.replace("HOSTILE", repr(HOSTILE)))
    env = {**os.environ, "MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "MAAS_BACKOFF_BIZ_PREFIX": "test"}
    env |= {"MAAS_BACKOFF_MAX_RETRY_COUNT": "1", "MAAS_BACKOFF_BACKOFF_INTERVAL": "0"}
    command = [sys.executable, "-m", "maas_backoff", "worker", "mine:scheduler", "--log-format", kind]
    worker = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)

    async def run() -> None:
        producer = TaskBackoffScheduler(quick_config(server.storage))
        await producer.create_task({"prompt": "secret words"}, "x", max_retry_count=1, backoff_interval=0)
        await producer.wait_task("x", 30)
        await producer.shutdown()

    try:
        anyio.run(run)
    finally:
        worker.terminate()
        _, text = worker.communicate(timeout=20)
    return text
