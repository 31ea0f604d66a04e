"""A scheduler that is used before a fork, and after it in both processes: neither harms the other."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import Server

from maas_backoff.common import forks

HEAD = """
import asyncio, gc, os, signal, sys, time, traceback
from maas_backoff import *

scheduler = TaskBackoffScheduler(TaskBackoffConfig(
    storage=StorageConfig({storage}),
    task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600),
    scheduler=SchedulerConfig(interval=1, lease=3),
))


async def handle(task):
    return os.getpid()


def forked(child):
    \"\"\"Fork, call `child` there, and return the pid; the child ends as scripts do, with all finalizers.\"\"\"
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    gc.collect()
    sys.stdout.flush()
    sys.exit(0)


def ended(pid):
    assert os.waitpid(pid, 0)[1] == 0, "the child has failed"
"""


def run(tmp_path: Path, body: str, storage: str) -> str:
    """Run a script; nothing may be said on stderr, of what is left open either. Returns its stdout."""
    script = tmp_path / "script.py"
    script.write_text(HEAD.format(storage=storage) + body)
    # Python warns of any fork of a process with threads.
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, str(script)], capture_output=True, text=True, timeout=55, check=False
    )
    # A server for tests keeps nothing, which the check at start tells of.
    usual = ("the server has no append-only file", "SIGTERM: finishing running attempts")
    said = [line for line in done.stderr.splitlines() if not line.startswith(usual)]
    assert (done.returncode, said) == (0, []), done.stderr
    return done.stdout


@pytest.fixture
def storage(server: Server) -> str:
    return f'host="127.0.0.1", port={server.port}'


def test_a_child_of_a_running_loop_makes_its_own_connections(tmp_path: Path, storage: str, server: Server) -> None:
    """multiprocessing's fork, in a coroutine. The parent's connections are neither written to, nor closed."""
    body = """
import multiprocessing


def child():
    for n in range(3):
        asyncio.run(scheduler.create_task({}, f"of the child {n}", delay=3600))


async def connections():
    listed = await scheduler._client.store.connection.server.execute("CLIENT", "LIST")
    return {line.split()[0] for line in listed.splitlines() if b" name=maas-backoff " in line}


async def main():
    waits = asyncio.create_task(scheduler.wait_task(await scheduler.create_task({}, "of the parent", delay=3600)))
    await asyncio.sleep(0)
    while len(await connections()) < 2:  # the subscription is there
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    before = await connections()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == 0
    for n in range(3):
        assert await scheduler.get_task(f"of the child {n}") is not None
    assert before <= await connections(), "a connection of the parent was lost"
    assert await scheduler.cancel_task("of the parent")
    assert (await waits).status == "cancelled"
    await scheduler.shutdown()


asyncio.run(main())
"""
    run(tmp_path, body, storage)
    assert not [one for one in server.client.client_list() if one["name"] == "maas-backoff"]


def test_workers_that_are_forked_from_a_master_that_has_used_it(tmp_path: Path, storage: str) -> None:
    """gunicorn --preload: the application is imported, and calls, in the master; its workers run it."""
    body = """
asyncio.run(scheduler.create_task({}, "at import"))
scheduler.set_custom_task_handler(handle)


def worker():
    asyncio.run(scheduler.run_until_stopped())


async def main(pids):
    done = [await scheduler.wait_task(task_id, 20) for task_id in
            ["at import", *await scheduler.create_tasks([{"n": n} for n in range(200)])]]
    assert {task.result for task in done} <= set(pids)
    assert not scheduler.health().ready
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    await asyncio.to_thread(lambda: [ended(pid) for pid in pids])
    await scheduler.shutdown()


pids = [forked(worker) for _ in range(3)]
async def all_there():
    while len(await scheduler.workers()) < 3:
        await asyncio.sleep(0.05)
asyncio.run(all_there())
asyncio.run(main(pids))
"""
    run(tmp_path, body, storage)


@pytest.mark.long
def test_a_child_of_a_worker_is_a_producer_and_harms_no_lease(tmp_path: Path, storage: str) -> None:
    body = """
@scheduler.set_custom_task_handler
async def handle(task):
    if task.task_id == "long":
        await asyncio.sleep(5)
    return os.getpid()


def child():
    assert scheduler.health().reasons == ("not started",)
    assert "stopped" in repr(scheduler)
    asyncio.run(scheduler.create_task({}, "of the child"))
    asyncio.run(scheduler.shutdown())


async def main():
    async with scheduler:
        await scheduler.create_task({}, "long")
        while not scheduler._service.parts.slots.attempts:
            await asyncio.sleep(0.01)
        pid = os.fork()
        if not pid:
            # The frames of the parent's loop are still below, as in multiprocessing.
            asyncio.events._set_running_loop(None)
            child()
            os._exit(0)
        await asyncio.to_thread(ended, pid)
        assert (await scheduler.wait_task("of the child", 20)).result == os.getpid()
        long = await scheduler.wait_task("long", 20)
        assert (long.result, long.attempt, long.lost_count) == (os.getpid(), 1, 0)
        assert scheduler.health().ready, scheduler.health()


asyncio.run(main())
"""
    run(tmp_path, body, storage)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (SystemExit(), 0, ""),
        (SystemExit(True), 1, ""),
        (SystemExit(-1), 255, ""),
        (SystemExit("why"), 1, "why\n"),
        (ValueError("why"), 1, "ValueError: why\n"),
    ],
)
def test_its_exit_code_is_that_of_a_program_which_ends_so(
    error: BaseException | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forks._exit_code(error) == code
    assert capsys.readouterr().err == said


HANDLERS = {
    "async def": "async def handler(task):\n    return fork(task)",
    "def": "def handler(task):\n    return fork(task)",
    "an awaitable of def": "def handler(task):\n    return forks(task)",
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize(
    ("end", "code"),
    [pytest.param("raise SystemExit(3)", 3, id="raise"), pytest.param("return", 0, marks=pytest.mark.long)],
)
def test_a_process_that_a_handler_has_forked_ends_with_the_handler(
    tmp_path: Path, storage: str, handler: str, end: str, code: int
) -> None:
    """It has the tasks and the sockets of the worker: it would run them, too, and keep the worker from its end."""
    body = f"""
def fork(task):
    os.write(1, b"%d runs %s\\n" % (os.getpid(), task.task_id.encode()))
    pid = os.fork()
    if not pid:
        {end}
    return pid


async def forks(task):
    return fork(task)


{HANDLERS[handler]}


scheduler.config.task.max_retry_count = 0
scheduler.set_custom_task_handler(handler)


async def main():
    async with scheduler:
        await scheduler.create_tasks([TaskSpec({{}}, f"task-{{n}}") for n in range(6)])
        for n in range(6):
            task = await scheduler.wait_task(f"task-{{n}}", 20)
            assert (task.status, task.attempt) == ("completed", 1)
            async with asyncio.timeout(20):
                _, status = await asyncio.to_thread(os.waitpid, task.result, 0)
            assert os.waitstatus_to_exitcode(status) == {code}


asyncio.run(main())
print(os.getpid())
"""
    *ran, pid = run(tmp_path, body, storage).splitlines()
    assert sorted(ran) == [f"{pid} runs task-{n}" for n in range(6)]


def test_the_loop_of_the_parent_cannot_be_used_in_a_child(tmp_path: Path, storage: str) -> None:
    """It would share the parent's epoll, and take its events."""
    body = """
loop = asyncio.new_event_loop()
loop.run_until_complete(scheduler.create_task({}, "of the parent"))


def child():
    try:
        loop.run_until_complete(scheduler.create_task({}, "of the child"))
    except EventLoopError as error:
        print(error)
    asyncio.run(scheduler.create_task({}, "of the child"))


ended(forked(child))
assert loop.run_until_complete(scheduler.get_task("of the child")) is not None
loop.run_until_complete(scheduler.shutdown())
loop.close()
"""
    said = run(tmp_path, body, storage)
    assert said == "this event loop is that of the parent process: after a fork, use a new one, as by asyncio.run()\n"


@pytest.mark.parametrize("path", ["", "data"])
def test_an_embedded_server_is_shared_with_a_child_and_outlives_it(tmp_path: Path, path: str) -> None:
    body = """
async def main():
    await scheduler.create_task({}, "of the parent", delay=3600)
    await asyncio.to_thread(ended, pid := forked(child))
    assert await scheduler.get_task("of the child") is not None
    await scheduler.shutdown()


def child():
    asyncio.events._set_running_loop(None)

    async def use():
        assert await scheduler.get_task("of the parent") is not None
        await scheduler.create_task({}, "of the child", delay=3600)
        await scheduler.shutdown()

    asyncio.run(use())
    os._exit(0)


asyncio.run(main())
"""
    path = f", path={str(tmp_path / path)!r}" if path else ""
    run(tmp_path, body, f'type="embedded"{path}')
