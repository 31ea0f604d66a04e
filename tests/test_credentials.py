"""Credentials that change while workers and producers run: redis-py's credential provider."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from support import SERVERS, Server, eventually, quick_config
from topology import MASTER, ClusterRig, Node, SentinelRig

from maas_backoff import (
    ConfigError,
    StorageConfig,
    StorageDeniedError,
    StorageUnavailableError,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

USER = "user app on >first-secret ~* &* +@all"


class Asked(CredentialProvider):
    """Asked by asyncio."""

    def __init__(self) -> None:
        self.password = "first-secret"
        self.number = 0
        self.fault: Exception | None = None
        self.given: object = None

    async def get_credentials_async(self) -> object:  # type: ignore[override] # any object, as users may give
        return self.now()

    def now(self) -> object:
        self.number += 1
        if self.fault is not None:
            raise self.fault
        return self.given or ("app", self.password)


class AskedInAThread(Asked):
    """One that has been written for redis-py without asyncio, and takes a while."""

    get_credentials_async = CredentialProvider.get_credentials_async  # type: ignore[assignment] # that is the test

    def get_credentials(self) -> object:  # type: ignore[override] # any object, as users may give
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.01)
        return self.now()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A server that lets in the user `app`, and nobody else without a password."""
    server = Server(SERVERS[0], tmp_path)
    try:
        server.client.execute_command("ACL", "SETUSER", *USER.split()[1:])
        server.client.execute_command("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
        server.client.connection_pool.connection_kwargs |= {"username": "admin", "password": "admin"}
        server.client.connection_pool.disconnect()
        server.client.execute_command("ACL", "SETUSER", "default", "off")
        yield server
    finally:
        server.stop()


def scheduler_at(storage: StorageConfig, *, runs: bool) -> TaskBackoffScheduler:
    scheduler = TaskBackoffScheduler(quick_config(storage))

    async def handle(task: TaskEntity) -> object:
        return task.task_params["n"]

    if runs:
        scheduler.set_custom_task_handler(handle)
    return scheduler


def rotate(server: Server, provider: Asked, password: str) -> None:
    """Change the password, and end all connections that came in with the old one."""
    server.client.execute_command("ACL", "SETUSER", "app", "resetpass", f">{password}")
    provider.password = password
    server.client.execute_command("CLIENT", "KILL", "USER", "app", "SKIPME", "no")


@pytest.mark.parametrize("kind", [Asked, AskedInAThread])
async def test_workers_and_producers_go_on_when_the_password_changes(
    guarded: Server, caplog: pytest.LogCaptureFixture, kind: type[Asked]
) -> None:
    provider = kind()
    storage = guarded.storage
    storage.credential_provider = provider
    async with scheduler_at(storage, runs=True) as worker, scheduler_at(storage, runs=False) as producer:
        for n in range(3):
            assert (await producer.wait_task(await producer.create_task({"n": n}), 20)).result == n
            asked = provider.number
            rotate(guarded, provider, f"secret-{n}")
            assert (await producer.wait_task(await producer.create_task({"n": n}), 20)).result == n
            assert provider.number > asked
        await eventually(lambda: worker.health().ready, "the worker is well")
        assert "secret" not in f"{worker!r} {worker.config!r} {worker.config.copy()!r} {storage.endpoint!r}"
    assert "secret" not in caplog.text and "backward" not in caplog.text


async def test_a_password_that_changes_before_its_provider_knows_is_asked_for_again(guarded: Server) -> None:
    provider = Asked()
    storage = guarded.storage
    storage.credential_provider = provider
    async with scheduler_at(storage, runs=False) as producer:
        rotate(guarded, provider, "second-secret")
        provider.password = "first-secret"
        right = provider.now

        def late() -> object:
            given = right()
            provider.password = "second-secret"  # from the second time on
            return given

        provider.now = late  # type: ignore[method-assign] # for this test only
        await producer.create_task({"n": 1})
        rotate(guarded, provider, "third-secret")
        provider.password = "second-secret"
        with pytest.raises(StorageDeniedError):
            await producer.create_task({"n": 1})


async def test_a_provider_that_fails_is_an_outage_that_passes(
    guarded: Server, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Asked()
    storage = guarded.storage
    storage.credential_provider = provider
    storage.timeout = 1
    async with scheduler_at(storage, runs=True) as worker:
        assert (await worker.wait_task(await worker.create_task({"n": 1}), 20)).result == 1
        provider.fault = RuntimeError("vault: token a-secret is over")
        rotate(guarded, provider, "second-secret")
        with pytest.raises(StorageUnavailableError, match=r"^the credential provider failed with RuntimeError$"):
            await worker.create_task({"n": 2})
        provider.fault = None
        assert (await worker.wait_task(await worker.create_task({"n": 3}), 20)).result == 3
        await eventually(lambda: worker.health().ready, "the worker is well")
    assert not [record for record in caplog.records if "secret" in record.getMessage()]


@pytest.mark.parametrize("given", ["app:first-secret", ("a", "b", "first-secret"), ("app", b"first-secret"), [None]])
async def test_what_a_provider_may_not_give(guarded: Server, given: object) -> None:
    provider = Asked()
    provider.given = given
    storage = guarded.storage
    storage.credential_provider = provider
    with pytest.raises(StorageDeniedError, match=r"^the credential provider must give") as caught:
        await scheduler_at(storage, runs=False).start()
    assert "secret" not in str(caught.value)


async def test_the_provider_is_asked_for_the_master_that_sentinels_name(tmp_path: Path) -> None:
    with SentinelRig("redis-7.0", tmp_path) as rig:
        _add_user(rig.nodes[: 1 + len(rig.replicas)])
        storage = StorageConfig(type="sentinel", nodes=rig.addresses, master=MASTER, credential_provider=Asked())
        await _logs_in(storage, [rig.master])


async def test_the_provider_is_asked_for_the_nodes_of_a_cluster(tmp_path: Path) -> None:
    with ClusterRig("redis-7.0", tmp_path) as rig:
        _add_user(rig.nodes)
        storage = StorageConfig(type="cluster", nodes=rig.addresses[:2], credential_provider=Asked())
        await _logs_in(storage, rig.masters)


def _add_user(nodes: list[Node]) -> None:
    for node in nodes:
        node.ask("ACL", "SETUSER", *USER.split()[1:])


async def _logs_in(storage: StorageConfig, masters: list[Node]) -> None:
    async with scheduler_at(storage, runs=True) as worker:
        assert (await worker.wait_task(await worker.create_task({"n": 1}), 20)).result == 1
        users = [line for node in masters for line in node.client.client_list() if line["name"] == "maas-backoff"]
        assert users and {line["user"] for line in users} == {"app"}


# The option


@pytest.mark.parametrize("wrong", ["first-secret", Asked, object(), ("app", "first-secret")])
def test_only_a_provider_is_taken(wrong: object) -> None:
    with pytest.raises(ConfigError, match="credential_provider") as caught:
        StorageConfig(credential_provider=wrong)  # type: ignore[arg-type] # that is the test
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="credential_provider"):
        StorageConfig().credential_provider = wrong  # type: ignore[assignment] # that is the test


@pytest.mark.parametrize(
    "beside", [{"password": "first-secret"}, {"username": "app"}, {"url": "redis://app:first-secret@localhost/0"}]
)
def test_a_provider_and_a_password_do_not_go_together(beside: dict[str, str]) -> None:
    storage = StorageConfig(credential_provider=UsernamePasswordCredentialProvider("app", "first-secret"), **beside)
    with pytest.raises(ConfigError, match="no username and password beside it") as caught:
        _ = storage.endpoint
    assert "secret" not in str(caught.value)


def test_a_copy_of_the_configuration_has_the_same_provider() -> None:
    provider = Asked()
    config = TaskBackoffConfig(storage=StorageConfig(url="rediss://localhost/1", credential_provider=provider))
    assert config.copy().storage.credential_provider is provider
    assert config.copy() == config
    assert config.copy().storage.endpoint.credential_provider is provider
