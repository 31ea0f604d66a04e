"""A user who has the rights that the guide names, and no more, can do all there is; and needs each of them."""

import re
from collections.abc import Iterator
from pathlib import Path

import anyio
import handlers_for_children
import pytest
from support import Server, eventually, quick_config
from topology import KINDS, MASTER, ClusterRig, SentinelRig

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec
from maas_backoff.client import client as client_module
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker import service as service_module

pytestmark = [pytest.mark.anyio, pytest.mark.long]

GUIDE = (Path(__file__).parents[1] / "maas_backoff/docs/operations.md").read_text(encoding="utf-8")
RIGHTS = re.findall(r"`([+~&][^`]+)`", GUIDE.partition("for `ACL SETUSER`")[2].partition("\n\n")[0])
COMMANDS = {right[1:] for right in RIGHTS if right.startswith("+")}
UNUSED = {"unsubscribe"}
"""Closing the connection does."""
CHECKED = {"info"}
"""The commands of the check at start."""
WORKERS_ONLY = {"bzpopmin", "set", "xadd", "zscan"}
"""The commands that a process without a handler does not send."""


@pytest.fixture
def acl(any_server: Server) -> Iterator[Server]:
    """Each kind of server; the user of the test is deleted at the end."""
    yield any_server
    any_server.client.execute_command("ACL", "DELUSER", "app")


def _config(server: Server, *without: str) -> TaskBackoffConfig:
    rights = [right.replace("my_service", "test") for right in RIGHTS if right[1:] not in without]
    server.client.execute_command("ACL", "SETUSER", "app", "reset", "resetchannels", "on", ">secret", *rights)
    server.client.config_resetstat()
    return quick_config(StorageConfig(host="127.0.0.1", port=server.port, username="app", password="secret"))


def _used(server: Server) -> set[str]:
    """Return the commands that have been run since, also by scripts, but for those that need no right."""
    names = {name.removeprefix("cmdstat_") for name in server.client.info("commandstats")}
    return {"client|setname" if name == "client" else name for name in names} - {
        "hello",
        "auth",
        "config|resetstat",
        "config",
    }


async def _ghost(config: TaskBackoffConfig) -> None:
    """A worker that takes a task, and is never heard of again."""
    store = QueueStore.of(config)
    answer = await store.exchange.send(BatchRequest((), 1, True, "ghost-1", 0), "ghost")
    assert [claimed.task.task_id for claimed in answer.claimed] == ["lost"]
    await store.aclose()


async def test_the_rights_are_enough_for_all_there_is_and_each_is_needed(
    acl: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create, run, retry, progress, cancel, reap, and every call from outside; without the check at start."""
    acl.client.script_flush()  # other tests run on this server, too
    _leave_out_checks(monkeypatch)
    config = _config(acl)
    config.scheduler.worker_name = "named"
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        task.update_progress(50, "half way")
        task.emit("a part")
        task.log("a line")
        if task.task_params.get("sleeps"):
            await anyio.sleep(0.1)
            task.emit("a second part, by another call")
            await anyio.sleep(60)
        if task.task_params.get("fails") and task.attempt < 3:
            raise ValueError("not yet")
        if task.task_params.get("discards"):
            raise ValueError("never")
        return task.attempt

    await scheduler.create_task({}, "lost")
    await _ghost(config)
    async with scheduler:
        assert await scheduler._client.store.registry.expire("ghost") == 1  # as where its process has ended
        await scheduler.create_task({"sleeps": True}, "running")
        await scheduler.create_task({"fails": True}, "retried")
        await scheduler.create_task({"discards": True}, "failed", max_retry_count=0)
        await scheduler.create_task({}, "by hand", delay=60)
        await scheduler.create_task({}, "cancelled", delay=60)
        await scheduler.create_task({}, "gpu", min_gpu_memory_gb=1)
        assert (await scheduler.wait_task("retried", 20)).result == 3
        assert (await scheduler.wait_task("failed", 20)).status == "failed"
        assert await scheduler.retry_task("failed")
        assert (await scheduler.wait_task("failed", 20)).status == "failed"

        async def noted() -> bool:
            task = await scheduler.get_task("running")
            return task is not None and task.progress == 50

        await eventually(noted, "the progress is noted")
        assert await scheduler.cancel_task("running", running=True)
        assert (await scheduler.wait_task("running", 20)).status == "cancelled"
        assert await scheduler.cancel_task("cancelled")
        await scheduler.mark_task_processing("by hand")
        await scheduler.update_task_progress("by hand", 10)
        await scheduler.mark_task_completed("by hand", "done")
        assert {"retried", "by hand"} <= {task.task_id for task in (await scheduler.list_tasks("completed")).tasks}
        assert await scheduler.delete_task("by hand")
        assert await scheduler.delete_task("gpu")
        lost = await scheduler.wait_task("lost", 30)
        assert (lost.result, lost.lost_count) == (2, 1)
        assert [part.data async for part in scheduler.stream("lost")] == ["a part"]
        assert [line.text async for line in scheduler.logs("lost", last=1)] == ["a line"]
        stats = await scheduler.get_queue_stats()
        assert (stats.completed_count, stats.cancelled_count, stats.failed_count) == (2, 2, 1)
        assert await scheduler.tenants() == await scheduler.limits() == []
    assert _used(acl) == COMMANDS - UNUSED - CHECKED


async def test_the_rights_are_enough_for_child_processes(acl: Server, tmp_path: Path) -> None:
    """Progress out of a child, its end, and a cancel that kills it."""
    config = _config(acl)
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handlers_for_children.reports)
    goes_on, never = tmp_path / "goes on", tmp_path / "never"
    async with scheduler:
        for name, file in (("ends", goes_on), ("cancelled", never)):
            await scheduler.create_task({"file": str(file)}, name)

        async def noted() -> bool:
            return [task.progress for task in (await scheduler.list_tasks("processing")).tasks] == [40, 40]

        await eventually(noted, "progress is noted")
        assert await scheduler.cancel_task("cancelled", running=True)
        assert (await scheduler.wait_task("cancelled", 20)).status == "cancelled"
        goes_on.touch()
        assert (await scheduler.wait_task("ends", 20)).status == "completed"


async def test_a_producer_needs_fewer_rights(acl: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of a process without a handler; the tasks are done from outside."""
    async with TaskBackoffScheduler(_config(acl, *WORKERS_ONLY)):
        pass  # the check at start agrees
    _leave_out_checks(monkeypatch)
    async with TaskBackoffScheduler(quick_config(acl.storage)) as other:
        await other.create_task({}, "lost")
    await _ghost(quick_config(acl.storage))
    acl.client.script_flush()
    scheduler = TaskBackoffScheduler(_config(acl, *WORKERS_ONLY))
    async with scheduler:
        await scheduler.create_tasks([TaskSpec({}, "done"), TaskSpec({}, "failed"), TaskSpec({}, "later", delay=60)])
        await scheduler.create_task({}, "gpu", min_gpu_memory_gb=1)
        await scheduler.mark_task_processing("done")
        await scheduler.update_task_progress("done", 50)
        async with anyio.create_task_group() as group:
            group.start_soon(scheduler.wait_task, "done", 20)
            await eventually(lambda: acl.client.zcard("maas:{test}:watched"), "somebody waits")
            await scheduler.mark_task_completed("done", 1)
        await scheduler.mark_task_processing("failed")
        await scheduler.mark_task_failed("failed", "reason", retry=False)
        assert await scheduler.retry_task("failed")
        assert await scheduler.get_task("failed")
        assert (
            [part async for part in scheduler.stream("done")] == [line async for line in scheduler.logs("done")] == []
        )
        assert await scheduler.cancel_task("later")
        assert await scheduler.cancel_task("lost", running=True)
        assert len((await scheduler.list_tasks("pending")).tasks) == 2
        assert (await scheduler.get_queue_stats()).cancelled_count == 1
        assert await scheduler.delete_task("later") and await scheduler.delete_task("gpu")
        assert await scheduler.tenants() == await scheduler.limits() == []
    # Not to be left out: the script in which zscore is for workers does more, and no worker and no stream is there to
    # be read of.
    unread = {"zscore", "get", "xlen", "xrange", "xrevrange"}
    assert _used(acl) == COMMANDS - UNUSED - CHECKED - WORKERS_ONLY - unread


def _leave_out_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at start tries every right, needed or not."""

    async def nothing(*_: object, **__: object) -> None: ...

    for module in (client_module, service_module):
        monkeypatch.setattr(module, "check_queue", nothing)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_needed_beside_them_on_sentinels_and_in_a_cluster(kind: str, tmp_path: Path) -> None:
    """A Sentinel is asked one question, and a node of a Cluster one more."""
    rights = [right.replace("my_service", "test") for right in RIGHTS]
    user = ("ACL", "SETUSER", "app", "reset", "resetchannels", "on", ">secret")
    with SentinelRig(kind, tmp_path) as rig:
        for sentinel in rig.sentinels:
            sentinel.ask(*user, "+sentinel|get-master-addr-by-name", "+client|setname")
        rig.master.ask(*user, *rights)
        hosts = ",".join(rig.addresses)
        query = "sentinel_username=app&sentinel_password=secret"
        await _works(StorageConfig(url=f"redis+sentinel://app:secret@{hosts}/{MASTER}?{query}"))
    with ClusterRig(kind, tmp_path) as cluster:
        for node in cluster.nodes:
            node.ask(*user, *rights, "+cluster|slots")
        await _works(StorageConfig(url=f"redis+cluster://app:secret@{','.join(cluster.addresses)}"))


async def _works(storage: StorageConfig) -> None:
    scheduler = TaskBackoffScheduler(quick_config(storage))

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        return task.attempt

    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({}), 20)).result == 1
