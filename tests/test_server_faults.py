"""A server that dies, stands still, forgets, refuses or is full: clear errors, nothing lost, work goes on by itself."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import redis
from support import EACH_SERVER, USUAL, Server, eventually, quick_config

from maas_backoff import StorageConfig, StorageError, StorageUnavailableError, TaskBackoffScheduler, TaskEntity
from maas_backoff.errors import StorageDeniedError, StorageFullError
from maas_backoff.store.orphans import find_orphans
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

AOF = ("--appendonly", "yes", "--appendfsync", "always")
Own = Callable[..., Server]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    """Start servers of the test's own; stopped at its end."""
    started: list[Server] = []

    def start(*options: str, name: str | None = None, password: str | None = None) -> Server:
        folder = tmp_path / f"server-{len(started)}"
        folder.mkdir()
        name = name or USUAL
        started.append(Server(name, folder, *options, password=password))
        return started[-1]

    yield start
    for server in started:
        server.go_on()
        server.stop()


class Worker(TaskBackoffScheduler):
    """Runs tasks of `seconds` each, or until `go_on` is set, and counts the starts of each."""

    def __init__(self, storage: StorageConfig, *, lease: float = 3, seconds: float = 0.01) -> None:
        config = quick_config(storage)
        config.scheduler.lease = lease
        config.storage.timeout = 20
        super().__init__(config)
        self.runs: dict[str, int] = {}
        self.stopped_handlers = 0
        self.seconds = seconds
        self.holds = False
        self.go_on = anyio.Event()
        self.set_custom_task_handler(self.handler)

    async def handler(self, task: TaskEntity) -> str:
        self.runs[task.task_id] = self.runs.get(task.task_id, 0) + 1
        try:
            if self.holds:
                await self.go_on.wait()
            await anyio.sleep(self.seconds)
        except BaseException:
            self.stopped_handlers += 1
            raise
        return "x" * task.task_params.get("size", 1)

    async def hold(self, n: int, **params: object) -> list[str]:
        """Create tasks that run until `go_on` is set, and wait until they run."""
        self.holds = True
        ids = await self.create_tasks({"n": k, **params} for k in range(n))
        await eventually(lambda: len(self.runs) >= n, "all run")
        return ids

    async def check_done_once(self, ids: list[str]) -> None:
        done = [await self.wait_task(task_id, timeout=30) for task_id in ids]
        assert {(task.status, task.attempt, task.lost_count) for task in done} == {("completed", 1, 0)}
        assert [self.runs[task_id] for task_id in ids] == [1] * len(ids)

    async def check_works(self) -> None:
        self.holds = False
        assert (await self.wait_task(await self.create_task({}), timeout=20)).status == "completed"
        await eventually(lambda: self.health().ready, "it is well")


def says(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in list(caplog.records) if record.levelno >= logging.WARNING)


def sync(server: Server, *command: object) -> object:
    return server.client.execute_command(*command)


# It dies, stands still, forgets


async def test_a_killed_server_with_its_file_costs_no_running_task_anything(own: Own) -> None:
    """SIGKILL, down for a second, restart: no handler is stopped, each task runs once, all results are there."""
    server = own(*AOF)
    async with Worker(server.storage, lease=6) as worker:
        ids = await worker.hold(10)
        ids += await worker.create_tasks({"n": n} for n in range(20))
        await anyio.to_thread.run_sync(server.kill)
        await anyio.sleep(1)
        await anyio.to_thread.run_sync(server.start)
        worker.go_on.set()
        await worker.check_done_once(ids)
        assert worker.stopped_handlers == 0


async def test_what_ends_while_the_server_is_down_is_settled_when_it_is_back(own: Own) -> None:
    server = own(*AOF)
    async with Worker(server.storage, lease=10) as worker:
        ids = await worker.hold(10)
        await anyio.to_thread.run_sync(server.kill)
        worker.go_on.set()
        await anyio.sleep(0.5)
        await anyio.to_thread.run_sync(server.start)
        await worker.check_done_once(ids)


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "more than a socket takes"])
async def test_a_producer_gives_up_on_a_server_that_stands_still(own: Own, size: int) -> None:
    """By its own deadline and the few seconds that one answer may take; the task that was sent is no second one."""
    server = own()
    config = quick_config(server.storage)
    config.storage.timeout = 1
    async with TaskBackoffScheduler(config) as producer:
        await producer.create_task({}, "before")
        server.pause()
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError):
            await producer.create_task({"text": "x" * size}, "x")
        assert time.monotonic() - began < 8
        server.go_on()
        assert await producer.create_task({"text": "x" * size}, "x") == "x"
        assert (await producer.get_queue_stats()).pending_count == 2


async def test_a_call_that_is_cancelled_leaves_its_answer_to_nobody(own: Own) -> None:
    """Not even where it was sent already, and its connection is the only one."""
    server = own()
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer:
        await producer.create_task({}, "a")
        server.pause()
        with anyio.move_on_after(0.2) as cut:
            await producer.get_task("a")
        server.go_on()
        assert cut.cancelled_caught
        assert await producer.create_task({}, "b") == "b"
        found = [await producer.get_task(task_id) for task_id in "ab"]
        assert [task and task.task_id for task in found] == ["a", "b"]


async def test_a_server_that_comes_back_empty_is_worked_with(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    """Outcomes of tasks it does not know any more are logged, and new tasks run."""
    server = own()
    async with Worker(server.storage) as worker:
        ids = await worker.hold(5)
        await anyio.to_thread.run_sync(server.kill)
        worker.go_on.set()  # or the next heartbeat might end them first
        await anyio.to_thread.run_sync(server.start)
        await eventually(lambda: says(caplog, "came too late (unknown)"), "the outcomes are refused, and it is said")
        await worker.check_works()
        assert await worker.get_task(ids[0]) is None


async def test_a_flushed_server_is_worked_with(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """FLUSHALL while tasks run and wait: no crash, no spin, new tasks run."""
    async with Worker(server.storage) as worker:
        await worker.hold(10)
        await worker.create_tasks({"n": n} for n in range(20))
        server.client.flushall()
        worker.go_on.set()
        await eventually(lambda: says(caplog, "(unknown)"), "the outcomes are refused, and it is said")
        await worker.check_works()
        before = server.client.info("stats")["total_commands_processed"]
        await anyio.sleep(1)
        assert server.client.info("stats")["total_commands_processed"] - before < 200
        stats = await worker.get_queue_stats()
        assert (stats.pending_count, stats.processing_count, stats.completed_count) == (0, 0, 1)


async def test_a_server_that_lost_its_data_gives_no_token_twice(server: Server) -> None:
    """The end of an older call costs a running one nothing, and a fence of one's own lets the new task through."""
    tokens: dict[str, int] = {}
    end = {"before": anyio.Event(), "after": anyio.Event()}
    config = quick_config(server.storage)
    config.scheduler.lease = 3
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        tokens[task.task_id] = task.token
        await end[task.task_id].wait()

    async with scheduler:
        await scheduler.create_task({}, "before")
        await eventually(lambda: "before" in tokens, "it runs")
        server.client.flushall()
        await scheduler.create_task({}, "after")
        await eventually(lambda: "after" in tokens, "the new one runs")
        end["before"].set()
        await anyio.sleep(2 * config.scheduler.lease)
        end["after"].set()
        done = await scheduler.wait_task("after", timeout=10)
        assert (done.status, done.attempt, done.token) == ("completed", 1, tokens["after"])
        assert tokens["after"] > tokens["before"]


async def test_a_server_that_forgets_its_scripts_is_not_noticed(any_server: Server) -> None:
    """SCRIPT FLUSH every 10 ms: no error for anybody, each task runs once."""
    over = threading.Event()

    def flush() -> None:
        with redis.Redis(port=any_server.port) as client:
            while not over.wait(0.01):
                client.script_flush()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        async with Worker(any_server.storage) as worker:
            ids = [await worker.create_task({"n": n}) for n in range(50)]
            await worker.check_done_once(ids)
    finally:
        over.set()
        await anyio.to_thread.run_sync(thread.join)


async def test_killed_connections_do_not_pile_up(server: Server) -> None:
    """CLIENT KILL of all every 50 ms for seconds: all done, each once, few connections at any time."""
    most = 0
    async with Worker(server.storage) as worker:
        ids = await worker.create_tasks({"n": n} for n in range(300))
        for _ in range(60):
            await anyio.to_thread.run_sync(sync, server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await anyio.sleep(0.05)
            most = max(most, len(await anyio.to_thread.run_sync(server.client.client_list)))
        await worker.check_done_once(ids)
    assert most <= 20


# It refuses


async def test_a_full_server_lets_running_tasks_end_and_takes_new_ones_when_it_has_room(any_server: Server) -> None:
    """maxmemory, noeviction: create_task says so; a hundred tasks keep their leases and are settled with results."""
    worker = Worker(any_server.storage)
    worker.config.threadpool.concurrency = 100
    async with worker:
        ids = await worker.hold(100, size=2000)
        server = any_server.client
        server.config_set("maxmemory", server.info("memory")["used_memory"] // 2)
        try:
            with pytest.raises(StorageFullError, match="memory is full"):
                await worker.create_task({}, "refused")
            await anyio.sleep(worker.config.scheduler.lease + 1)
            worker.go_on.set()
            await worker.check_done_once(ids)
            task = await worker.get_task(ids[0])
            assert task is not None
            assert task.result == "x" * 2000
        finally:
            server.config_set("maxmemory", 0)
        assert await worker.get_task("refused") is None
        await worker.check_works()


class Refusal:
    """Makes a server refuse all writes, and take them again."""

    def __init__(self, kind: str, name: str, own: Own, folder: Path) -> None:
        self._kind = kind
        busy_after = "--busy-reply-threshold" if name != "redis-6.2" else "--lua-time-limit"
        options = {"busy": (busy_after, "100")}.get(kind, ())
        self.server = own(*options, name=name)
        self._client = self.server.client
        # A master that knows nothing would make its replica forget all: this one never answers.
        self._master = own(name=name) if kind == "replica" else None
        self._endless = threading.Thread(target=_endless, args=(self.server.port,))
        self._in_the_way = folder / "server-0" / "dump.rdb" / "x"

    def begin(self) -> None:
        match self._kind:
            case "replica":
                assert self._master is not None
                self._master.pause()
                self._client.replicaof("127.0.0.1", self._master.port)
            case "no replicas":
                self._client.config_set("min-replicas-to-write", 1)
            case "disk":
                self._client.config_set("save", "86400 1000000")
                self._in_the_way.mkdir(parents=True)
                self._save("err")
            case _:
                self._endless.start()
                while not _busy(self.server):
                    time.sleep(0.01)

    def end(self) -> None:
        match self._kind:
            case "replica":
                self._client.replicaof("no", "one")
            case "no replicas":
                self._client.config_set("min-replicas-to-write", 0)
            case "disk":
                self._in_the_way.rmdir()
                self._in_the_way.parent.rmdir()
                self._save("ok")
            case _:
                self._client.script_kill()
                self._endless.join()

    def _save(self, outcome: str) -> None:
        self._client.bgsave()
        while self._client.info("persistence")["rdb_last_bgsave_status"] != outcome:
            time.sleep(0.01)


@pytest.mark.parametrize("name", EACH_SERVER)
@pytest.mark.parametrize("kind", ["replica", "no replicas", "disk", "busy"])
async def test_a_refusal_that_passes_is_waited_for(
    own: Own, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str
) -> None:
    """A replica, too few replicas, no disk, an endless script of somebody else: nothing is half done.

    StorageUnavailableError for callers; running tasks are settled, once, when it has passed.
    """
    refusal = Refusal(kind, name, own, tmp_path)
    impatient = TaskBackoffScheduler(quick_config(refusal.server.storage))
    impatient.config.storage.timeout = 0.5
    async with Worker(refusal.server.storage, lease=30) as worker, impatient:
        await worker.check_works()
        ids = await worker.hold(5)
        await anyio.to_thread.run_sync(refusal.begin)
        try:
            with pytest.raises(StorageUnavailableError):
                await impatient.create_task({}, "refused")
            worker.go_on.set()
            await eventually(lambda: says(caplog, "cannot reach the server"), "it says so")
        finally:
            await anyio.to_thread.run_sync(refusal.end)
        await worker.check_done_once(ids)
        assert await worker.get_task("refused") is None
        await worker.check_works()


@pytest.mark.long
async def test_an_idle_worker_says_once_that_its_server_is_a_replica(
    own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    """The server refuses each sleep of the worker, and answers each claim, as it finds nothing to claim."""
    server = own()

    def refused() -> int:
        return sum(one.get("rejected_calls", 0) for one in server.client.info("commandstats").values())

    async with Worker(server.storage, lease=300) as worker:
        await worker.check_works()
        server.client.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call] - redis-py has no types here
        try:
            await eventually(lambda: refused() >= 6, "it has tried to sleep again and again")
        finally:
            server.client.replicaof("no", "one")  # type: ignore[no-untyped-call] - redis-py has no types here
        await worker.check_works()
        assert worker.health().ready
    assert sum("reconnected" in record.getMessage() for record in caplog.records) <= 2


def _endless(port: int) -> None:
    with redis.Redis(port=port, socket_timeout=None) as client, pytest.raises(redis.ResponseError, match="kill"):
        client.eval("while true do end", 0)


def _busy(server: Server) -> bool:
    try:
        server.client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


# It lets nobody in


async def test_a_wrong_password_is_said_at_once_and_never_shown(own: Own) -> None:
    server = own("--requirepass", "right-secret", password="right-secret")
    for password in ("wrong-secret", ""):
        worker = Worker(server.storage)
        worker.config.storage.password = password
        began = time.monotonic()
        with pytest.raises(StorageError) as caught:
            await worker.start()
        assert time.monotonic() - began < 5
        assert "secret" not in f"{caught.value!r} {worker!r} {worker.config!r}"


async def test_a_password_that_changes_is_waited_for(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    """Everybody is thrown out: the worker is not ready, and works again when its password is good again."""
    server = own("--requirepass", "old-secret", password="old-secret")
    worker = Worker(server.storage, lease=6)
    worker.config.storage.password = "old-secret"
    async with worker:
        ids = await worker.hold(5)
        server.client.config_set("requirepass", "new-secret")
        sync(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        worker.go_on.set()
        await eventually(lambda: not worker.health().ready, "it says that it is not well")
        with pytest.raises(StorageError):
            await worker.create_task({})
        with redis.Redis(port=server.port, password="new-secret") as client:
            client.config_set("requirepass", "old-secret")
        await worker.check_done_once(ids)
        await worker.check_works()
    assert not any("secret" in record.getMessage() for record in caplog.records)


RIGHTS = (
    "-zadd",
    "-zrem",
    "-hset",
    "-hmget",
    "-expire",
    "-publish",
    "-bzpopmin",
    "-evalsha",
    "resetchannels",
    "resetkeys",
)


@pytest.mark.parametrize("rule", RIGHTS)
@pytest.mark.parametrize("name", EACH_SERVER)
async def test_a_right_that_is_taken_away_for_a_while_kills_no_worker_and_loses_no_task(
    own: Own, name: str, rule: str
) -> None:
    """Tasks that run, come back, wait and are created meanwhile: all are completed, and none is in no index."""
    server = own(name=name)
    rights = ("on", ">secret", "allkeys", "allchannels", "+@all")
    sync(server, "ACL", "SETUSER", "app", "reset", *rights)
    config = quick_config(StorageConfig(host="127.0.0.1", port=server.port, username="app", password="secret"))
    worker = TaskBackoffScheduler(config)
    go_on = anyio.Event()
    begun = 0

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        nonlocal begun
        begun += 1
        if task.task_params.get("waits"):
            await go_on.wait()
        if task.task_params.get("fails") and task.attempt == 1:
            raise ConnectionError

    async with worker, TaskBackoffScheduler(quick_config(server.storage)) as other:
        ids = await other.create_tasks({"n": n, "waits": True, "fails": n % 2} for n in range(6))
        await eventually(lambda: begun == 6, "all run")
        ids += await other.create_tasks({"n": n, "fails": n % 2} for n in range(10, 20))
        sync(server, "ACL", "SETUSER", "app", rule)
        go_on.set()
        ids += await other.create_tasks({"n": n} for n in range(30, 35))
        if rule in {"-zadd", "-hset", "-hmget", "-evalsha", "resetkeys"}:
            with pytest.raises(StorageDeniedError):
                await worker.create_task({}, "created")
        await anyio.sleep(1)  # longer than the reaper's and the heartbeat's periods
        sync(server, "ACL", "SETUSER", "app", *rights)
        ids.append(await worker.create_task({}, "created"))
        for task_id in ids:
            assert (await other.wait_task(task_id, 20)).status == "completed", task_id
        assert worker.health().reasons == ()
        store = QueueStore.of(other.config)
        assert (await find_orphans(store.connection, repair=False)).orphans == 0
        await store.aclose()


async def test_an_index_that_is_written_over_for_a_while_kills_no_worker(own: Own) -> None:
    """By hand, with a key of another type: the worker waits until it is gone, and goes on."""
    server = own()
    async with Worker(server.storage) as worker:
        for name in ("ready", "leases", "completed", "marker", "scheduled"):
            key = f"maas:{{test}}:{name}"
            await eventually(
                lambda key=key: not server.client.exists(key) or key.endswith("completed"), "it is not used"
            )
            server.client.delete(key)
            server.client.set(key, "nonsense")
            await anyio.sleep(0.3)
            server.client.delete(key)
            await worker.check_works()


@pytest.mark.parametrize("with_worker", [True, False], ids=["worker", "producer"])
async def test_the_form_of_the_data_is_written_again_after_a_loss(server: Server, with_worker: bool) -> None:
    """FLUSHALL under processes that run: a release that knows another form must not take the new data for its own."""
    async with (
        Worker(server.storage) if with_worker else TaskBackoffScheduler(quick_config(server.storage)) as scheduler
    ):
        if not with_worker:
            await scheduler.create_task({}, "before")
        server.client.flushall()
        if not with_worker:
            await scheduler.create_task({})
        await eventually(lambda: server.client.hget("maas:{test}:meta", "schema") == b"1", "it is written again")
        server.client.hset("maas:{test}:meta", "schema", "2")
        await scheduler.create_task({})
        await anyio.sleep(1)  # longer than a period of the reaper
        assert server.client.hget("maas:{test}:meta", "schema") == b"2", "that of another release is left"


async def test_a_host_that_has_no_address_is_named_within_the_deadline() -> None:
    producer = TaskBackoffScheduler(quick_config(StorageConfig(host="no-such-host.invalid", timeout=1)))
    with pytest.raises(StorageUnavailableError, match=r"no-such-host\.invalid"):
        await producer.create_task({})
    await producer.shutdown()


async def test_a_server_with_all_connections_taken_is_waited_for(own: Own) -> None:
    """maxclients: a producer gets a clear error; when there is room again all is well, and nothing is left open."""
    server = own("--maxclients", "20")
    takers = [redis.Redis(port=server.port) for _ in range(19)]
    for taker in takers:
        taker.ping()
    config = quick_config(server.storage)
    config.storage.timeout = 1
    producer = TaskBackoffScheduler(config)
    with pytest.raises(StorageUnavailableError, match="max number of clients"):
        await producer.create_task({})
    worker = Worker(server.storage)
    async with anyio.create_task_group() as group:
        group.start_soon(worker.start)
        await anyio.sleep(0.2)
        for taker in takers:
            taker.close()
    await worker.check_works()
    await worker.shutdown()
    await producer.shutdown()
    await eventually(lambda: len(server.client.client_list()) == 1, "all connections are closed")


async def test_a_server_without_evalsha_is_refused_at_the_start(own: Own) -> None:
    server = own("--rename-command", "EVALSHA", "")
    with pytest.raises(StorageError, match=r"(?i)evalsha"):
        await Worker(server.storage).start()


# Processes


def worker_process(folder: Path, port: int) -> subprocess.Popen[str]:
    (folder / "mine.py").write_text(f"""
from maas_backoff import *
import anyio
scheduler = TaskBackoffScheduler(TaskBackoffConfig(
    storage=StorageConfig(host="127.0.0.1", port={port}, timeout=1),
    task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600),
    scheduler=SchedulerConfig(lease=3, interval=1, shutdown_grace=1),
))
@scheduler.set_custom_task_handler
async def handle(task):
    task.update_progress(1)
    await anyio.sleep(60)
""")
    command = [sys.executable, "-m", "maas_backoff", "worker", "mine:scheduler"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
async def test_a_worker_is_stopped_while_its_server_is_down(own: Own, tmp_path: Path) -> None:
    """SIGTERM: it ends within the grace and what the last settlements may take; the task is left to its lease."""
    server = own(*AOF)
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer:
        task_id = await producer.create_task({})
        process = await anyio.to_thread.run_sync(worker_process, tmp_path, server.port)
        try:

            async def begun() -> bool:
                task = await producer.get_task(task_id)
                return task is not None and task.progress == 1

            await eventually(begun, "it has begun")
            server.pause()
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            _, errors = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=25))
        finally:
            process.kill()
            process.wait()
        assert time.monotonic() - began < 20
        assert "is left to its lease" in errors
        assert "Traceback" not in errors
        server.go_on()
        task = await producer.get_task(task_id)
        assert task is not None
        # Handed back by what the server still found in its inbox, or left to its lease.
        assert task.status in {"pending", "processing"}
        assert (task.retry_count, task.lost_count) == (0, 0)


async def test_a_worker_without_a_server_says_so_and_ends(own: Own, tmp_path: Path) -> None:
    """A closed port: tried for `storage.timeout`, then one sentence and exit code 3."""
    server = own()
    server.kill()
    process = await anyio.to_thread.run_sync(worker_process, tmp_path, server.port)
    _, errors = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=25))
    assert process.returncode == 3, errors
    assert errors.splitlines()[-1].startswith("maas-backoff worker: the server does not answer")
    assert "Traceback" not in errors
