"""Connections that are reset, forgotten by the network, or fail in other ways; and what the log says of it."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from proxy import Proxy
from redis.asyncio import Connection
from support import Server, eventually, load_scripts, quick_config

from maas_backoff import StorageUnavailableError, TaskBackoffScheduler, TaskEntity
from maas_backoff.client import client as queue_client
from maas_backoff.store import link, subscription
from maas_backoff.store.outage import Outage

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    load_scripts(server)
    async with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Give the warnings of our loggers, as they come."""
    found: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Noting(logging.WARNING)
    logging.getLogger("maas_backoff").addHandler(handler)
    yield found
    logging.getLogger("maas_backoff").removeHandler(handler)


async def handle(task: TaskEntity) -> object:
    return task.task_params.get("n")


def worker_at(place: Proxy | Server, *, timeout: float = 20) -> TaskBackoffScheduler:
    config = quick_config(place.storage)
    config.storage.timeout = timeout
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handle)
    return scheduler


# Reset


async def test_a_reset_of_an_idle_worker_costs_nothing(server: Server, proxy: Proxy) -> None:
    """On Python 3.12 and 3.13, StreamWriter.writelines raises AttributeError on a transport that was reset."""
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer, worker_at(proxy) as worker:
        for n in range(4):
            task_id = await producer.create_task({"n": n})
            assert (await producer.wait_task(task_id, 20)).result == n
            proxy.reset_all()
            await eventually(lambda: not proxy.open, "all are closed")
        assert worker.health().ready


async def test_a_producer_whose_connections_were_reset_does_not_notice(proxy: Proxy, warned: list[str]) -> None:
    async with TaskBackoffScheduler(quick_config(proxy.storage)) as producer:
        for n in range(4):
            await producer.create_tasks([{"n": n}])
            proxy.reset_all()
            await eventually(lambda: not proxy.open, "all are closed")
    assert not [one for one in warned if not one.startswith("the server has no append-only file")]


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, KeyError, ConnectionResetError, EOFError])
@pytest.mark.parametrize("method", ["send_packed_command", "read_response", "can_read", "connect"])
async def test_whatever_a_connection_raises_is_an_outage_that_passes(
    server: Server, monkeypatch: pytest.MonkeyPatch, warned: list[str], error: type[Exception], method: str
) -> None:
    """The worker and the producer make a new connection; what no network does is logged once, with its traceback."""
    monkeypatch.setattr(link, "_reported", set())
    right = getattr(Connection, method)
    faults = 0

    async def broken(self: Connection, *args: object, **options: object) -> object:
        nonlocal faults
        if threading.current_thread() is threading.main_thread() and faults < limit:
            faults += 1
            raise error("a fault of redis-py")
        return await right(self, *args, **options)

    limit = 0
    async with worker_at(server) as scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({"n": 1}), 20)).result == 1
        monkeypatch.setattr(Connection, method, broken)
        limit = 3
        if method == "connect":
            server.client.client_kill_filter(_type="normal", skipme=True)
        assert (await scheduler.wait_task(await scheduler.create_task({"n": 2}), 20)).result == 2
        await eventually(lambda: faults == limit or method == "connect", "all have happened")
        assert (await scheduler.wait_task(await scheduler.create_task({"n": 3}), 20)).result == 3
        await eventually(lambda: scheduler.health().ready, "the worker is well")
    reports = [text for text in warned if f"failed with {error.__name__}" in text]
    assert len(reports) <= (0 if issubclass(error, OSError | EOFError) else 1)


async def test_a_value_that_cannot_be_sent_is_no_outage(server: Server) -> None:
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    async with scheduler:
        with pytest.raises(TypeError):
            await scheduler._client.store.connection.server.execute("GET", object())  # type: ignore[arg-type] # that is the test


# Forgotten


@pytest.mark.long
async def test_a_subscription_that_went_deaf_is_left(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NAT or firewall that forgot the connection: it stays open, and nothing comes any more."""
    monkeypatch.setattr(queue_client, "WAIT_RENEWAL", 1000.0)  # so that nothing but the subscription ends a wait
    monkeypatch.setattr(subscription, "QUIET", 0.3)
    monkeypatch.setattr(subscription, "ANSWER_WITHIN", 0.3)
    async with (
        TaskBackoffScheduler(quick_config(server.storage)) as other,
        TaskBackoffScheduler(quick_config(proxy.storage)) as client,
    ):

        async def ends_when_told(task_id: str) -> None:
            await client.create_task({}, task_id, delay=3600)
            async with anyio.create_task_group() as group:
                group.start_soon(client.wait_task, task_id)
                subscribed = proxy.passed["SUBSCRIBE"]
                await eventually(lambda: proxy.passed["SUBSCRIBE"] > subscribed, "the subscription lives")
                await other.cancel_task(task_id)

        await ends_when_told("before")
        proxy.forget_all()
        await ends_when_told("after")


async def test_one_forgotten_connection_tells_of_the_others(server: Server, proxy: Proxy) -> None:
    """Each would cost a time-out of its own: with five of them, a call failed for good."""
    async with TaskBackoffScheduler(quick_config(proxy.storage)) as client:
        client.config.storage.timeout = 2
        await client.shutdown()
        proxy.delay = 0.2
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(client.get_queue_stats)
        proxy.delay = 0
        assert proxy.connected >= 5
        proxy.forget_all()
        await client.create_task({}, "x")
        assert await client.get_task("x") is not None


# The log


async def test_an_outage_is_one_line_and_its_end_another(
    server: Server, proxy: Proxy, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loops of a worker fail, each many times."""
    tries: list[str] = []
    failed = Outage.failed

    def counted(self: Outage, who: str, error: Exception) -> None:
        tries.append(who)
        failed(self, who, error)

    monkeypatch.setattr(Outage, "failed", counted)
    async with worker_at(proxy) as worker:
        await worker.wait_task(await worker.create_task({"n": 1}), 20)
        for _ in range(2):
            warned.clear()
            tries.clear()
            await proxy.close_door()
            await eventually(lambda: len(tries) > 20, "they have failed often")
            assert len(warned) == 1 and "cannot reach the server" in warned[0]
            await proxy.open_door()
            await worker.wait_task(await worker.create_task({"n": 1}), 20)
            await eventually(lambda: len(warned) > 1, "its end is told")
            assert len(warned) == 2 and "reconnected to the server after" in warned[1]
            await eventually(lambda: worker.health().ready, "the worker is well")


def test_an_outage_is_told_by_the_first_and_ends_with_the_first_that_works(warned: list[str]) -> None:
    outage, gone = Outage(), StorageUnavailableError("gone")
    outage.failed("a", gone)
    outage.failed("b", gone)
    outage.failed("a", gone)
    outage.restored("c")
    assert warned == ["a cannot reach the server: gone; trying again until it works"]
    outage.restored("b")
    assert warned[1:] == ["reconnected to the server after 3 failed attempts (0 s)"]
    outage.failed("a", gone)  # it has not worked since
    outage.restored("a")
    assert len(warned) == 2
    outage.failed("a", gone)
    outage.failed("b", StorageUnavailableError("gone, too"))
    outage.failed("b", ValueError("a bug"))
    outage.restored("a")
    assert [text.split(":")[0] for text in warned[2:]] == [
        "a cannot reach the server",
        "b cannot reach the server",
        "reconnected to the server after 3 failed attempts (0 s)",
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_heartbeat_ends_with_an_event_loop_that_was_closed_under_its_worker(server: Server) -> None:
    """The handlers are gone: their leases must run out, so that another worker runs their tasks."""
    worker = worker_at(server)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(worker.start())
    threads = [thread for thread in threading.enumerate() if thread.name == "maas-backoff-heartbeat"]
    assert threads
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined] # typeshed does not list it
    loop.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
