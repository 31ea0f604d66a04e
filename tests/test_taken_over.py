"""The data of the last release are taken over as they are: its code writes a queue, and this code goes on with it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.releases import LAST_RELEASE, ReleaseMissingError, unpack
from support import Server, eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskStatus

pytestmark = [pytest.mark.anyio, pytest.mark.long]

WRITER = """
import asyncio, json, sys
from maas_backoff import Retry, SchedulerConfig, StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig
from maas_backoff import TaskSpec, ThreadPoolConfig

async def main():
    config = TaskBackoffConfig(
        storage=StorageConfig(url=sys.argv[1]),
        task=TaskConfig(biz_prefix="test", backoff_interval=0.5),
        threadpool=ThreadPoolConfig(concurrency=20),
        scheduler=SchedulerConfig(lease=3),
    )
    scheduler = TaskBackoffScheduler(config)
    ended, hanging = [], asyncio.Event()

    async def work(task):
        what = task.task_params["what"]
        if what == "hang":
            hanging.set()
            await asyncio.sleep(60)
        if what == "fail" or what == "retry" and task.attempt == 1:
            raise ValueError(what)
        if what == "params" and task.attempt == 1:
            raise Retry(after=0.2, params={"what": "params", "changed": True})
        return what

    scheduler.set_custom_task_handler(work)
    await scheduler.start()
    specs = [TaskSpec({"what": "fine"}, "done"), TaskSpec({"what": "fail"}, "failed", max_retry_count=0)]
    specs += [TaskSpec({"what": "retry"}, "retried"), TaskSpec({"what": "params"}, "changed")]
    specs += [TaskSpec({"what": "hang"}, "hanging")]
    await scheduler.create_tasks(specs)
    await scheduler.wait_task("done")
    await scheduler.wait_task("failed")
    await hanging.wait()
    while (await scheduler.get_task("retried")).retry_count == 0:
        await asyncio.sleep(0.01)
    await scheduler.pause()
    await scheduler.create_tasks(TaskSpec({"what": "fine"}, f"waits-{n}", priority=n % 3) for n in range(40))
    later = [TaskSpec({"what": "fine"}, "later", delay=0.3), TaskSpec({"what": "fine"}, "much-later", delay=3600)]
    await scheduler.create_tasks(later)
    await scheduler.create_task({"what": "fine"}, "cancelled")
    await scheduler.cancel_task("cancelled")
    stats = await scheduler.get_queue_stats()
    numbers = {state: getattr(stats, f"{state}_count") for state in ("pending", "processing", "cancelled")}
    print(json.dumps(numbers), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def numbers(server: Server, tmp_path: Path) -> dict[str, int]:
    """The queue's counts when a worker of the last release was killed, which had tasks in all states."""
    try:
        old = unpack(LAST_RELEASE, tmp_path / "old")
    except ReleaseMissingError as error:
        pytest.skip(str(error))
    (tmp_path / "writer.py").write_text(WRITER, encoding="utf-8")
    command = [sys.executable, "-P", str(tmp_path / "writer.py"), f"redis://127.0.0.1:{server.port}"]
    writer = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": old}, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout as told:
        seen: dict[str, int] = json.loads(told.readline())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    return seen


async def test_todays_code_goes_on_with_a_queue_of_the_last_release(server: Server, numbers: dict[str, int]) -> None:
    """No step is needed. Tenants and limits may be used at once."""
    assert numbers["pending"] >= 42

    config = TaskBackoffConfig(storage=server.storage)
    config.task.biz_prefix, config.scheduler.lease = "test", 3
    scheduler = TaskBackoffScheduler(config)
    stats = await scheduler.get_queue_stats()
    assert (stats.completed_count, stats.failed_count, stats.cancelled_count) == (1, 1, numbers["cancelled"])
    assert stats.pending_count + stats.processing_count == numbers["pending"] + numbers["processing"]
    done = await scheduler.get_task("done")
    assert done is not None
    assert (done.status, done.result) == (TaskStatus.COMPLETED, "fine")
    changed, later = await scheduler.get_task("changed"), await scheduler.get_task("much-later")
    assert changed is not None
    assert changed.task_params == {"what": "params", "changed": True}
    assert later is not None
    assert later.next_execute_time is not None
    assert len((await scheduler.list_tasks("pending", limit=100)).tasks) == stats.pending_count
    assert await scheduler.retry_task("failed")
    await scheduler.set_limit("upstream", concurrency=2)
    await scheduler.create_task({"what": "new"}, "with-tenant", tenant="acme", limits={"upstream": 1})

    @scheduler.set_custom_task_handler
    async def work(task: TaskEntity) -> object:
        return task.task_params["what"]

    async with scheduler:
        await scheduler.resume()
        # All but the one that is due in an hour.
        await eventually(lambda: server.client.zcard("maas:{test}:completed") == 47, "47 tasks are completed")
        hanging = await scheduler.wait_task("hanging", 30)
        assert (hanging.result, hanging.lost_count) == ("hang", 1)
        assert await scheduler.update_task("much-later", delay=0)
        await scheduler.wait_task("much-later", 30)
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.processing_count, stats.failed_count) == (0, 0, 0)
    await scheduler.shutdown()
