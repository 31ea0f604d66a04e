"""A program for the original library runs after a change of its import, and its waiting tasks move over."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Server

from maas_backoff.compat.backoff import (
    BackoffType,
    ErrorCode,
    Moved,
    ResultEntity,
    SchedulerConfig,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    TaskStatus,
    ThreadPoolConfig,
)

PROGRAM = """
from maas_backoff.compat.backoff import (
    TaskBackoffScheduler,
    TaskBackoffConfig,
    TaskEntity,
    TaskConfig,
    StorageConfig,
    ThreadPoolConfig,
    SchedulerConfig,
    ResultEntity,
)

config = TaskBackoffConfig()
config.storage = StorageConfig(type="redis", host="localhost", port=PORT, database=0, password="")
config.task = TaskConfig(
    biz_prefix="my_service",
    batch_size=10,
    max_retry_count=1,
    backoff_strategy="exponential",
    backoff_interval=0.1,
    backoff_multiplier=2.0,
    min_gpu_memory_gb=0.5,
    min_gpu_utilization=10,
)
config.threadpool = ThreadPoolConfig(concurrency=2, exec_timeout=300, proc_mode="MODE")
config.scheduler = SchedulerConfig(interval=10)

scheduler = TaskBackoffScheduler(config)


def task_handler(task: TaskEntity):
    import json, os, time

    params = json.loads(task.param)
    scheduler.update_task_progress(task.task_id, 75)
    if params.get("fails"):
        raise ValueError("no")
    time.sleep(params.get("seconds", 0))
    return ResultEntity.ok(result={"in_child": os.getppid() == params["pid"]}, task_id=task.task_id)


def exception_handler(task: TaskEntity):
    return ResultEntity.fail(code=-1, message="told by the exception handler", task_id=task.task_id)


scheduler.set_custom_task_handler(task_handler)
scheduler.set_custom_task_exception_handler(exception_handler)
scheduler.start()
"""

CALLS = """
import os

task_id = scheduler.create_task(task_params={"pid": os.getpid()}, task_id="unique_task_id")
later = scheduler.create_task({"pid": 1}, "later", delay=3600)
assert scheduler.cancel_task(later)
scheduler.create_task({"fails": True}, "fails")
for i in range(20):
    scheduler.create_task(task_params={"pid": os.getpid(), "index": i}, task_id=f"batch_task_{i}")
for i in range(20):
    assert scheduler.wait_task(f"batch_task_{i}", timeout=40).status == "completed"
scheduler.mark_task_completed(scheduler.create_task({"pid": 2}, "by hand", delay=3600), "done")
task = scheduler.wait_task(task_id, timeout=40)
print(task.status, task.result, task.progress, task.retry_count, scheduler.wait_task("fails", timeout=40).error)
stats = scheduler.get_queue_stats()
print(stats.pending_count, stats.processing_count, stats.completed_count, stats.failed_count)
scheduler.create_task({"pid": os.getpid(), "seconds": 1}, "slow")
while scheduler.get_task("slow").progress < 75:
    pass
"""


def program(mode: str, server: Server, calls: str = CALLS) -> str:
    return PROGRAM.replace("PORT", str(server.port)).replace("MODE", mode) + calls


def run(script: Path) -> tuple[str, str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", script], env=environ, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("mode", [pytest.param("thread", marks=pytest.mark.long), "process"])
def test_a_script_of_the_original_runs(tmp_path: Path, server: Server, mode: str) -> None:
    """It has no `if __name__ == "__main__":`, and a handler that runs at its end may complete."""
    script = tmp_path / "script.py"
    script.write_text(program(mode, server))
    said, errors = run(script)
    assert said == (
        f"completed {{'in_child': {mode == 'process'}}} 100 0 ValueError: told by the exception handler\n0 0 22 1\n"
    )
    assert errors.count("min_gpu_memory_gb and min_gpu_utilization are ignored: this machine has no GPU") == 1
    assert set(re.findall(r"^\w+Error.*", errors, re.MULTILINE)) == {"ValueError: no"}
    assert server.client.hget("maas:{my_service}:t:slow", "s") == b"completed"


@pytest.mark.long
def test_a_module_that_starts_when_it_is_imported_starts_once(tmp_path: Path, server: Server) -> None:
    (tmp_path / "service.py").write_text(program("process", server, ""))
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom service import scheduler\n"
        "scheduler.create_task({'pid': os.getpid()}, 'one')\n"
        "print(scheduler.wait_task('one', timeout=40).result, len(scheduler.workers()), scheduler.health().ready)"
    )
    assert run(script)[0] == "{'in_child': True} 1 True\n"


@pytest.fixture
def scheduler(server: Server) -> Iterator[TaskBackoffScheduler]:
    config = TaskBackoffConfig()
    config.storage = StorageConfig(host="127.0.0.1", port=server.port)
    config.task = TaskConfig(biz_prefix="my_service", backoff_strategy=BackoffType.FIXED, backoff_interval=0.05)
    config.threadpool = ThreadPoolConfig(concurrency=2)
    config.scheduler = SchedulerConfig(lease=3)
    with TaskBackoffScheduler(config) as scheduler:
        yield scheduler


def test_a_scheduler_can_be_stopped_and_started_again(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    @scheduler.set_custom_task_handler
    def handle(task: TaskEntity) -> ResultEntity:
        calls.append(task.param)
        return ResultEntity.ok({"n": task.task_params["n"]})

    assert scheduler.health().reasons == ("not started",)
    scheduler.shutdown()
    for n in range(2):
        scheduler.start()
        scheduler.start()
        assert scheduler.wait_task(scheduler.create_task({"n": n}), timeout=20).result == {"n": n}
        assert scheduler.health().ready
        scheduler.shutdown()
        scheduler.shutdown()
    assert calls == ['{"n":0}', '{"n":1}']
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_the_statistics_have_the_form_of_the_original(scheduler: TaskBackoffScheduler) -> None:
    scheduler.create_task({}, "one")
    scheduler.create_task({}, "later", delay=3600)
    scheduler.mark_task_processing(scheduler.create_task({}, "elsewhere"))
    assert scheduler.get_queue_statistics() == {
        "tasks": {
            "PENDING": {"total": 2, "queue": ["one", "later"]},
            "DOING": {"total": 1, "queue": ["elsewhere"]},
            "FAILED": {"total": 0, "queue": []},
        }
    }


def test_names_of_the_original_are_there(scheduler: TaskBackoffScheduler) -> None:
    task_id = scheduler.create_task({}, delay=3600)
    scheduler.cancel_task(task_id)
    task = scheduler.get_task(task_id)
    assert task is not None and task.status == TaskStatus.CANCELED
    assert (ErrorCode.TASK_EXECUTE_FAILURE.code, ErrorCode.SUCCESS.message) == (1003, "success")


# Waiting tasks


def original(server: Server, task_id: str, **fields: object) -> None:
    """Write a task as the original does."""
    given = {"task_id": task_id, "status": "PENDING", "param": "{}", "retry_count": 0, "next_execution_time": 0}
    given |= {"max_retry_count": 3, "backoff_strategy": "linear", "backoff_interval": 60, "backoff_multiplier": 2.0}
    server.client.hset(f"old:task:{task_id}", mapping={name: str(one) for name, one in {**given, **fields}.items()})
    server.client.zadd("old:pending_queue", {task_id: server.client.zcard("old:pending_queue")})


def test_waiting_tasks_move_over_in_their_order(scheduler: TaskBackoffScheduler, server: Server) -> None:
    due = int(time.time()) + 3600
    original(server, "first", param='{"prompt": "一只猫"}', retry_count=2)
    original(server, "running", status="DOING")
    original(server, "later", retry_count=1, next_execution_time=due, backoff_interval=7200)
    original(server, "done", status="DONE")
    original(server, "broken", param="{'n': 1}")
    server.client.zadd("old:pending_queue", {"gone": 99})

    found = scheduler.move_waiting_tasks(biz_prefix="old")
    assert found == Moved(
        ("first", "running", "later"),
        (),
        {
            "done": "its status is 'DONE', and not one of PENDING, DOING",
            "broken": "its params are no JSON",
            "gone": "its status is 'missing', and not one of PENDING, DOING",
        },
    )
    waiting = {task.task_id: task for task in scheduler.list_tasks("pending").tasks}
    assert list(waiting) == ["first", "running", "later"]
    assert waiting["first"].task_params == {"prompt": "一只猫"}
    assert [task.max_retry_count for task in waiting.values()] == [0, 2, 1]
    moment = waiting["later"].next_execute_time
    assert moment is not None and round(moment.timestamp()) == due

    again = scheduler.move_waiting_tasks(biz_prefix="old", remove=True)
    assert (again.created, again.present) == ((), ("first", "running", "later"))
    assert server.client.zrange("old:pending_queue", 0, -1) == [b"done", b"broken", b"gone"]
    assert not server.client.exists("old:task:first") and server.client.exists("old:task:broken")


def test_more_tasks_than_a_page_move_over(scheduler: TaskBackoffScheduler, server: Server) -> None:
    pipeline = server.client.pipeline()
    for n in range(501):
        pipeline.hset(f"my_service:task:{n}", mapping={"status": "PENDING", "param": "{}"})
        pipeline.zadd("my_service:pending_queue", {str(n): n})
    pipeline.execute()
    assert len(scheduler.move_waiting_tasks().created) == 501
