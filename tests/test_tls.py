"""TLS with an authority of one's own, and unix sockets: the whole way of a task, and what is refused in clear words."""

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from support import Server, eventually, quick_config
from topology import KINDS, MASTER, Authority, ClusterRig, Node, SentinelRig

from maas_backoff import (
    StorageConfig,
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
    TaskBackoffScheduler,
    TaskEntity,
)

pytestmark = pytest.mark.anyio

TLS_KIND = "redis-7.0"  # the wheels' servers are built without TLS


@pytest.fixture(autouse=True)
def _unclosed() -> Iterator[None]:
    """asyncio closes a TLS connection when the other side has said goodbye; a loop that ends before leaves it open."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def node(tmp_path: Path, authority: Authority) -> Iterator[Node]:
    node = Node(TLS_KIND, tmp_path, tls=authority)
    yield node
    node.stop()


async def _whole_way(storage: StorageConfig, clients: Callable[[], list[dict[str, str]]]) -> None:
    """A retry, a wait, a cancel of what runs: over the exchange loops, the waiter, the waker and the heartbeat."""
    scheduler = TaskBackoffScheduler(quick_config(storage))

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        if task.task_params.get("sleeps"):
            await anyio.sleep(60)
        if task.attempt == 1:
            raise ValueError("once more")
        return task.attempt

    async with scheduler:
        running = await scheduler.create_task({"sleeps": True})
        assert (await scheduler.wait_task(await scheduler.create_task({}), 20)).result == 2
        waiting = lambda: [client["cmd"] for client in clients()].count("bzpopmin")  # noqa: E731 - a name for what is waited for
        await eventually(lambda: waiting() == 2, "the waker and the heartbeat are blocked on the server")
        assert await scheduler.cancel_task(running, running=True)
        assert (await scheduler.wait_task(running, 20)).status == "cancelled"
        assert (await scheduler.get_queue_stats()).completed_count == 1
        assert scheduler.health().ready


async def test_all_connections_use_tls(node: Node, authority: Authority) -> None:
    """There is no other port: commands, the waiter, the waker and the heartbeat's thread are all seen to be there."""
    await _whole_way(StorageConfig(url=f"rediss://127.0.0.1:{node.port}", tls_ca=authority.ca), node.client.client_list)


async def test_fields_say_the_same_and_a_client_may_have_a_certificate(node: Node, authority: Authority) -> None:
    node.ask("CONFIG", "SET", "tls-auth-clients", "yes")
    cert, key = authority.issue("client")
    storage = StorageConfig(host="127.0.0.1", port=node.port, tls=True, tls_ca=authority.ca, tls_cert=cert, tls_key=key)
    async with TaskBackoffScheduler(quick_config(storage)) as scheduler:
        assert await scheduler.get_task("none") is None


@pytest.mark.long
@pytest.mark.parametrize("rig", [SentinelRig, ClusterRig])
async def test_sentinels_and_a_cluster_may_be_asked_by_tls(
    rig: type[SentinelRig | ClusterRig], tmp_path: Path, authority: Authority
) -> None:
    with rig(TLS_KIND, tmp_path, tls=authority) as servers:
        where = "sentinel" if isinstance(servers, SentinelRig) else "cluster"
        path = f"/{MASTER}" if isinstance(servers, SentinelRig) else ""
        holder = servers.master if isinstance(servers, SentinelRig) else servers.owner("test")
        storage = StorageConfig(url=f"rediss+{where}://{','.join(servers.addresses)}{path}", tls_ca=authority.ca)
        await _whole_way(storage, holder.client.client_list)


async def _refused(storage: StorageConfig, kind: type[StorageError], words: str) -> None:
    """A producer and a worker are told so, in seconds."""
    begun = time.monotonic()
    producer, worker = TaskBackoffScheduler(quick_config(storage)), TaskBackoffScheduler(quick_config(storage))
    with pytest.raises(kind, match=words):
        await producer.create_task({})
    await producer.shutdown()
    worker.set_custom_task_handler(_never)
    with pytest.raises(kind, match=words):
        await worker.start()
    assert time.monotonic() - begun < 15


async def _never(task: TaskEntity) -> None:
    raise AssertionError(task)


async def test_a_server_of_an_unknown_authority_is_refused(node: Node, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    for ca in (other.ca, None):
        storage = StorageConfig(url=f"rediss://127.0.0.1:{node.port}", tls_ca=ca)
        await _refused(storage, StorageDeniedError, "certificate is not trusted")


async def test_a_certificate_of_another_host_is_refused(tmp_path: Path, authority: Authority) -> None:
    authority.cert, authority.key = authority.issue("elsewhere", "DNS:elsewhere.example")
    node = Node(TLS_KIND, tmp_path, tls=authority, verify_host=False)
    try:
        storage = StorageConfig(url=f"rediss://127.0.0.1:{node.port}", tls_ca=authority.ca)
        await _refused(storage, StorageDeniedError, "certificate is not trusted")
    finally:
        node.stop()


@pytest.mark.long
async def test_speaking_plainly_to_tls_and_tls_to_a_plain_server_ends_in_seconds(
    node: Node, server: Server, authority: Authority
) -> None:
    plain = StorageConfig(url=f"redis://127.0.0.1:{node.port}", timeout=2)
    await _refused(plain, StorageUnavailableError, str(node.port))
    secure = StorageConfig(url=f"rediss://127.0.0.1:{server.port}", tls_ca=authority.ca, timeout=2)
    await _refused(secure, StorageUnavailableError, "does not answer")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_whole_way_over_a_unix_socket(kind: str, tmp_path: Path) -> None:
    """In a database that is not the first."""
    with tempfile.TemporaryDirectory() as short:
        path = f"{short}/redis socket"
        node = Node(kind, tmp_path, f'unixsocket "{path}"\n')
        try:
            await _whole_way(StorageConfig(url=f"unix://{quote(path)}?db=2"), node.client.client_list)
            assert set(node.info("keyspace")) == {"db2"}
        finally:
            node.stop()
