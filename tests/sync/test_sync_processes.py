"""Blocking calls of whole programs: after a fork, interrupted by Ctrl-C, and at an exit without `close`."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import Server

HEAD = """
import os, signal, sys, threading, time, traceback
from maas_backoff import *

sync = SyncScheduler(TaskBackoffConfig(
    storage=StorageConfig({storage}), task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600)
))
"""


def start(tmp_path: Path, body: str, server: Server) -> "subprocess.Popen[str]":
    script = tmp_path / "script.py"
    script.write_text(HEAD.format(storage=f'host="127.0.0.1", port={server.port}') + body)
    # Python warns of any fork of a process with threads.
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    return subprocess.Popen(
        [sys.executable, *warnings, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(tmp_path: Path, body: str, server: Server) -> str:
    """Run a script, which says nothing on stderr, and return its stdout."""
    said, errors = start(tmp_path, body, server).communicate(timeout=50)
    assert errors == ""
    return said


def connections(server: Server) -> int:
    return sum(one["name"] == "maas-backoff" for one in server.client.client_list())


def test_a_child_process_has_its_own_event_loop(tmp_path: Path, server: Server) -> None:
    """Also while another thread of the parent makes calls: its lock is not held in the child."""
    body = """
sync.create_task({}, "of the parent", delay=3600)
done = threading.Event()


def busy():
    while not done.is_set():
        sync.get_task("of the parent")


thread = threading.Thread(target=busy)
thread.start()
pids = []
for n in range(5):
    pid = os.fork()
    if not pid:
        try:
            sync.create_task({}, f"of the child {n}", delay=3600)
            with sync:
                sync.get_task("of the parent")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.exit(0) if n % 2 else os._exit(0)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 5
done.set()
thread.join()
print([sync.get_task(f"of the child {n}") is not None for n in range(5)], sync.get_queue_stats().scheduled_count)
"""
    assert run(tmp_path, body, server) == "[True, True, True, True, True] 6\n"
    assert connections(server) == 0


@pytest.mark.long
def test_a_program_that_forks_before_the_first_call_has_one_thread_each(tmp_path: Path, server: Server) -> None:
    body = """
import multiprocessing


def create(n):
    return sync.create_task({"n": n}), threading.active_count()


with multiprocessing.get_context("fork").Pool(2) as pool:
    created = pool.map(create, range(20))
print(len({task_id for task_id, _ in created}), {count for _, count in created}, threading.active_count() < 5)
"""
    assert run(tmp_path, body, server) == "20 {2} True\n"


@pytest.mark.parametrize(
    "leaves", ["", *(pytest.param(one, marks=pytest.mark.long) for one in ("raise SystemExit(3)", "os._exit(3)"))]
)
def test_an_exit_without_close_closes_all(tmp_path: Path, server: Server, leaves: str) -> None:
    process = start(tmp_path, f"print(sync.create_task({{}}, 'one'))\nnext(sync.watch('one'))\n{leaves}", server)
    said, errors = process.communicate(timeout=30)
    assert (errors, process.returncode) == ("", 3 if leaves else 0)
    assert leaves.startswith("os._exit") or said == "one\n"


@pytest.mark.long
def test_an_exit_does_not_wait_for_a_daemon_thread_that_waits(tmp_path: Path, server: Server) -> None:
    body = """
sync.create_task({}, "one", delay=3600)


def wait():
    try:
        sync.wait_task("one")
    except EventLoopError as error:
        pass


threading.Thread(target=wait, daemon=True).start()
events = sync.watch("one")
print(next(events).task.status)
"""
    assert run(tmp_path, body, server) == "pending\n"
    assert connections(server) == 0


@pytest.mark.long
def test_an_exit_does_not_wait_for_a_server_that_hangs(tmp_path: Path, server: Server) -> None:
    process = start(tmp_path, "sync.create_task({}, 'one')\nprint('created', flush=True)\nsys.stdin.readline()", server)
    try:
        assert process.stdout is not None and process.stdout.readline() == "created\n"
        server.pause()
        _, errors = process.communicate(timeout=20)
        assert (errors, process.returncode) == ("", 0)
    finally:
        server.go_on()
        process.kill()


@pytest.mark.long
def test_an_embedded_server_ends_with_its_program(tmp_path: Path, server: Server) -> None:
    body = """
sync = SyncScheduler(TaskBackoffConfig(storage=StorageConfig(type="embedded"), task=TaskConfig(biz_prefix="test")))
sync.create_task({})
print(sync._scheduler._opened._embedded._data.path)
"""
    directory = run(tmp_path, body, server).strip()
    assert directory and not Path(directory).exists()


@pytest.mark.long
def test_ctrl_c_ends_a_call_and_leaves_the_scheduler_usable(tmp_path: Path, server: Server) -> None:
    body = """
def soon():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()


sync.create_task({}, "one", delay=3600)
events = sync.watch("one")
next(events)
try:
    soon()
    sync.wait_task("one")
except KeyboardInterrupt:
    print("interrupted")
try:
    with sync.call({}, "two", delay=3600):
        soon()
        time.sleep(10)
except KeyboardInterrupt:
    print(sync.get_task("two").status)
try:
    soon()
    next(events)
except KeyboardInterrupt:
    print(next(events, "ended"), flush=True)
soon()
sync.wait_task("one")
"""
    process = start(tmp_path, body, server)
    said, errors = process.communicate(timeout=30)
    assert said == "interrupted\ncancelled\nended\n"
    assert errors.rstrip().endswith("KeyboardInterrupt") and process.returncode == -signal.SIGINT
    assert connections(server) == 0
