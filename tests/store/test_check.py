"""The check at start names what is wrong with a server, and what to do, before any task is taken."""

import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import support
from redis import Redis as Plain
from support import Server, quick_config

from maas_backoff import StorageConfig, StorageUnavailableError, TaskBackoffScheduler
from maas_backoff.errors import StorageDeniedError, StorageUnfitError
from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.store.keys import Keys
from maas_backoff.store.location import Location
from maas_backoff.store.preflight import check as checking
from maas_backoff.store.preflight import trial
from maas_backoff.store.preflight.check import check
from maas_backoff.store.preflight.findings import Finding, judge, judge_schema

pytestmark = pytest.mark.anyio

KEYS = Keys("test")
MINIMAL = ["+info", "+eval", "+evalsha", "+client|setname", "+bzpopmin", "+subscribe", "+unsubscribe"]
SCRIPTED = sorted({c for s in scripts.ALL for c in trial._COMMAND.findall(s.text)})


@pytest.fixture(autouse=True)
def nothing_logged_yet() -> None:
    checking._logged.clear()


@contextlib.asynccontextmanager
async def client_of(storage: StorageConfig) -> AsyncIterator[Client]:
    client = Client(Location(storage, KEYS.prefix))
    try:
        yield client
    finally:
        await client.aclose()


async def findings(storage: StorageConfig, *, worker: bool = True, strict: bool = False) -> list[str]:
    """Return what is found, fatal or not."""
    async with client_of(storage) as client:
        try:
            return [finding.text for finding in await check(client, KEYS, worker=worker, strict=strict)]
        except StorageUnfitError as error:
            return error.findings


def user(server: Server, *rules: str) -> StorageConfig:
    """Make the user of this test, with these rules, who starts with nothing."""
    server.client.execute_command("ACL", "SETUSER", "app", "reset", "resetchannels", "on", ">secret", *rules)
    return StorageConfig(host="127.0.0.1", port=server.port, username="app", password="secret")


@pytest.fixture
def acl(any_server: Server) -> Iterator[Server]:
    """Each kind of server; the user of the test is deleted at the end."""
    yield any_server
    any_server.client.execute_command("ACL", "DELUSER", "app")


@contextlib.contextmanager
def started(folder: Path, name: str, *options: str) -> Iterator[Server]:
    """A server of its own with other options than the usual ones."""
    with pytest.MonkeyPatch.context() as patch:
        # The tests' own client speaks the old protocol: one of these servers has no HELLO.
        patch.setattr(support.redis, "Redis", lambda **given: Plain(**{**given, "protocol": 2}))
        server = Server(name, folder, *options)
    try:
        yield server
    finally:
        server.stop()


async def test_a_server_without_a_log_is_named_once_and_refused_if_strict(
    any_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The servers of these tests keep nothing: one warning, once a process; an error with strict=True."""
    caplog.set_level(logging.WARNING, "maas_backoff.worker")
    for _ in range(3):
        found = await findings(any_server.storage)
        assert len(found) == 1 and "append-only" in found[0] and "set appendonly to yes" in found[0]
    assert [record.getMessage() for record in caplog.records] == found
    async with client_of(any_server.storage) as client:
        with pytest.raises(StorageUnfitError, match="append-only"):
            await check(client, KEYS, worker=True, strict=True)


async def test_nothing_is_found_on_a_server_that_keeps_what_it_is_told(tmp_path: Path) -> None:
    with started(tmp_path, "valkey-9.1", "--appendonly", "yes") as server:
        assert await findings(server.storage, strict=True) == []


async def test_the_embedded_server_is_fit(tmp_path: Path) -> None:
    from maas_backoff.store.server import Server as Embedding

    server = Embedding(StorageConfig(type="embedded", path=tmp_path / "data"), KEYS.prefix)
    try:
        assert await check(await server.connect(), KEYS, worker=True, strict=True) == []
    finally:
        await server.aclose()


async def test_it_leaves_the_schema_and_nothing_else(any_server: Server) -> None:
    await findings(any_server.storage)
    assert any_server.client.keys() == [b"maas:{test}:meta"]
    assert any_server.client.hgetall("maas:{test}:meta") == {b"schema": b"1"}


async def test_every_command_of_every_script_is_run(any_server: Server) -> None:
    """By the server's own count: in the trial itself, too, and not only when the rights are tried."""
    await findings(any_server.storage)
    any_server.client.config_resetstat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_COMMAND", trial.re.compile("(?!)"))
        await findings(any_server.storage)
    counted = {name.split("_", 1)[1].upper() for name in any_server.client.info("commandstats")}
    assert set(SCRIPTED) <= counted


async def test_a_script_with_a_new_command_has_to_say_how_to_try_it() -> None:
    assert set(SCRIPTED) == set(trial._HARMLESS)


async def test_the_trial_runs_a_whole_life(server: Server) -> None:
    """Run step by step, by the store's own way, all settles and claims are accepted."""
    told: list[Any] = []
    async with client_of(server.storage) as client:
        for script, keys, args in trial.Scratch(KEYS).life():
            told.append((script.name, await client.run(script, keys, args)))
    names = {name for name, _ in told}
    assert names == {script.name for script in scripts.QUEUE}, "trial.py: _Scratch.life needs a step for each script"
    settles = [answer for name, answer in told if name == "settle"]
    assert [len(answer[2]) // 7 for answer in settles] == [1, 0, 2, 1, 0, 0, 2, 0, 0, 0, 1, 2, 1, 0], (
        "claims, of seven values each"
    )
    assert [answer[1] for answer in settles] == [
        [],
        [b"ok"],
        *[[]] * 5,
        [b"lost"],
        [b"ok"] * 3,
        [b"ok"],
        [],
        [],
        [],
        [b"ok"],
    ]
    assert server.client.hget(KEYS.task("h").replace(KEYS.prefix, trial.Scratch(KEYS)._keys.prefix), "w") == b"expired"
    assert 1 in dict(told)["delete"] and dict(told)["progress"] == [1, 0]
    assert {*map(bytes.decode, server.client.keys())} <= set(trial.Scratch(KEYS).names()), "all would be removed"
    server.client.flushall()


async def test_two_at_once_beside_a_running_worker(server: Server) -> None:
    """Twenty checks while tasks run: none sees another, all tasks complete, nothing else is left."""
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    scheduler.set_custom_task_handler(work)
    found: list[list[str]] = []

    async def one() -> None:
        found.append(await findings(server.storage))

    async with scheduler:
        ids = await scheduler.create_tasks([{"n": n} for n in range(200)])
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
        for task_id in ids:
            assert (await scheduler.wait_task(task_id, 30)).attempt == 1
    assert len(found) == 20 and all(len(texts) == 1 and "append-only" in texts[0] for texts in found)
    assert not server.client.keys("*check*")


async def work(_: object) -> int:
    return 1


async def test_it_is_quick(any_server: Server) -> None:
    """Printed; generous here, as other tests may run beside it."""
    async with client_of(any_server.storage) as client:
        await check(client, KEYS, worker=True, strict=False)
        took: list[float] = []
        for _ in range(10):
            begin = time.perf_counter()
            await check(client, KEYS, worker=True, strict=False)
            took.append(time.perf_counter() - begin)
    print(f"{any_server.name}: {min(took) * 1000:.1f} … {max(took) * 1000:.1f} ms")
    assert min(took) < 0.2


# Rights


async def test_the_rights_that_are_named_are_enough(acl: Server) -> None:
    """The user who has exactly what the guide and a finding may name passes, and can work."""
    rights = [*MINIMAL, *(f"+{c.lower()}" for c in SCRIPTED), "~maas:{test}:*", "&maas:{test}:*"]
    guide = (Path(__file__).parents[2] / "maas_backoff/docs/operations.md").read_text(encoding="utf-8")
    named = re.findall(r"`([+~&][^`]+)`", guide.partition("for `ACL SETUSER`")[2].partition("\n\n")[0])
    assert sorted(right.replace("my_service", "test") for right in named) == sorted(rights)
    storage = user(acl, *rights)
    found = await findings(storage)
    assert len(found) == 1 and "append-only" in found[0]
    scheduler = TaskBackoffScheduler(quick_config(storage))
    scheduler.set_custom_task_handler(work)
    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({}), 20)).result == 1


@pytest.mark.parametrize("command", [*SCRIPTED, "BZPOPMIN", "SUBSCRIBE"])
async def test_a_command_that_is_not_allowed_is_named_with_the_rule(acl: Server, command: str) -> None:
    found = fatal(await findings(user(acl, "+@all", f"-{command.lower()}", "~maas:{test}:*", "&maas:{test}:*")))
    assert found == [Finding.commands([command]).text]
    assert found[0].endswith(f"ACL SETUSER <user> +{command.lower()}")
    assert {*acl.client.keys()} <= {b"maas:{test}:meta"}, "nothing half done"


def fatal(found: list[str]) -> list[str]:
    return [text for text in found if "append-only" not in text]


async def test_all_that_is_missing_is_named_at_once(acl: Server) -> None:
    found = fatal(await findings(user(acl, "+@all", "-zadd", "-hset", "-unlink", "-bzpopmin", "~maas:{test}:*")))
    assert found == [
        Finding.commands(["bzpopmin", "hset", "unlink", "zadd"]).text,
        Finding.channels("maas:{test}:").text,
    ]


async def test_a_producer_needs_no_rights_of_a_worker(acl: Server) -> None:
    rules = ["+@all", "-bzpopmin", "-set", "~maas:{test}:*", "&maas:{test}:*"]
    storage = user(acl, *rules)
    assert fatal(await findings(storage, worker=False)) == []
    assert "BZPOPMIN, SET" in fatal(await findings(storage))[0]


@pytest.mark.parametrize("pattern", ["~maas:{other}:*", "~maas:{test}:ready", None])
async def test_keys_that_are_not_allowed_are_named_with_the_rule(acl: Server, pattern: str | None) -> None:
    rules = ["+@all", "&maas:{test}:*", *([pattern] if pattern else [])]
    found = fatal(await findings(user(acl, *rules)))
    assert found == [Finding.keys("maas:{test}:").text]
    assert found[0].endswith("ACL SETUSER <user> ~maas:{test}:*")


async def test_keys_that_may_only_be_read_are_named(acl: Server) -> None:
    if acl.name == "redis-6.2":
        pytest.skip("has no such rule")
    found = fatal(await findings(user(acl, "+@all", "%R~maas:{test}:*", "&maas:{test}:*")))
    assert found == [Finding.keys("maas:{test}:").text]


async def test_a_channel_that_is_not_allowed_is_named_with_the_rule(acl: Server) -> None:
    found = fatal(await findings(user(acl, "+@all", "~maas:{test}:*", "&other")))
    assert found == [Finding.channels("maas:{test}:").text]
    assert found[0].endswith("ACL SETUSER <user> &maas:{test}:*")


@pytest.mark.parametrize("commands", [["eval"], ["evalsha"], ["eval", "evalsha"]])
async def test_scripts_that_are_not_allowed_are_one_sentence(acl: Server, commands: list[str]) -> None:
    rules = [f"-{command}" for command in commands]
    found = fatal(await findings(user(acl, "+@all", *rules, "~maas:{test}:*", "&maas:{test}:*")))
    assert len(found) == 1 and found[0].startswith("the server does not let this user run scripts")
    assert found[0].endswith("ACL SETUSER <user> " + " ".join(f"+{command}" for command in commands))


async def test_what_every_connection_begins_with_is_named(acl: Server) -> None:
    found = await findings(user(acl, "+@all", "-client", "~maas:{test}:*", "&maas:{test}:*"))
    assert found == [Finding.commands(["client|setname"]).text]


async def test_without_info_it_says_what_was_not_checked(acl: Server) -> None:
    found = await findings(user(acl, "+@all", "-info", "~maas:{test}:*", "&maas:{test}:*"))
    assert len(found) == 1 and "were not checked" in found[0] and found[0].endswith("+info")


async def test_a_wrong_password_is_no_finding(acl: Server) -> None:
    """It says itself what it is, and no secret."""
    storage = user(acl, "+@all")
    storage.password = "wrong-and-secret"
    async with client_of(storage) as client:
        with pytest.raises(StorageDeniedError) as caught:
            await check(client, KEYS, worker=True, strict=False)
    assert "wrong-and-secret" not in str(caught.value)


# Servers


@pytest.mark.parametrize("name", ["valkey-9.1", "redis-6.2"])
@pytest.mark.parametrize("commands", [["EVAL"], ["EVALSHA"], ["EVAL", "EVALSHA"]])
async def test_renamed_scripting_is_one_sentence(tmp_path: Path, name: str, commands: list[str]) -> None:
    renames = [word for command in commands for word in ("--rename-command", command, f"{command}-HIDDEN")]
    with started(tmp_path, name, *renames) as server:
        found = fatal(await findings(server.storage))
    assert len(found) == 1 and ", ".join(commands) in found[0] and found[0].endswith("remove rename-command")


@pytest.mark.parametrize("name", ["valkey-9.1", "valkey-8.1", "redis-7.0", "redis-6.2"])
async def test_a_renamed_command_is_named(tmp_path: Path, name: str) -> None:
    with started(tmp_path, name, "--rename-command", "ZADD", "HIDDEN", "--rename-command", "BZPOPMIN", "HID") as server:
        found = fatal(await findings(server.storage))
    assert found == [Finding.renamed(["BZPOPMIN", "ZADD"]).text]


async def test_a_server_without_hello_is_named(tmp_path: Path) -> None:
    """As one is that is older than 6.0, which cannot be had here."""
    with started(tmp_path, "redis-6.2", "--rename-command", "HELLO", "HIDDEN") as server:
        found = await findings(server.storage)
    assert len(found) == 1 and "HELLO" in found[0] and "Redis 6.2" in found[0]


async def test_a_replica_is_named_with_its_master(tmp_path: Path, server: Server) -> None:
    with started(tmp_path, "valkey-9.1", "--replicaof", "127.0.0.1", str(server.port)) as replica:
        found = fatal(await findings(replica.storage))
    assert len(found) == 1 and "replica" in found[0] and f"127.0.0.1:{server.port}" in found[0]


@pytest.mark.parametrize("name", ["valkey-9.1", "valkey-8.1", "redis-7.0", "redis-6.2"])
async def test_a_replica_that_does_not_say_so_is_unavailable(tmp_path: Path, server: Server, name: str) -> None:
    """If INFO is not allowed, the refused writes of the trial are no defect of a script."""
    with started(tmp_path, name, "--replicaof", "127.0.0.1", str(server.port)) as replica:
        async with client_of(user(replica, "+@all", "-info", "~maas:{test}:*", "&maas:{test}:*")) as client:
            with pytest.raises(StorageUnavailableError, match=r"(?i)read.?only"):
                await check(client, KEYS, worker=False, strict=False)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_named(tmp_path: Path, policy: str) -> None:
    options = ["--maxmemory", "100mb", "--maxmemory-policy", policy, "--appendonly", "yes"]
    with started(tmp_path, "valkey-9.1", *options) as server:
        found = await findings(server.storage)
        assert len(found) == 1 and policy in found[0] and "noeviction" in found[0]
        server.client.config_set("maxmemory", "0")
        assert await findings(server.storage) == [], "nothing is evicted without a limit"


async def test_a_full_server_passes(any_server: Server) -> None:
    """A worker has to start there, to settle and to make room."""
    any_server.client.config_set("maxmemory", "1")
    try:
        assert fatal(await findings(any_server.storage)) == []
        assert any_server.client.keys() == [b"maas:{test}:meta"]
    finally:
        any_server.client.config_set("maxmemory", "0")


async def test_a_server_that_refuses_writes_for_now_is_unavailable(any_server: Server) -> None:
    """Too few replicas, or a full disk: not the user's rights, and may be over in a moment."""
    any_server.client.config_set("min-replicas-to-write", "1")
    try:
        async with client_of(any_server.storage) as client:
            with pytest.raises(StorageUnavailableError, match=r"(?i)noreplicas|enough good replicas"):
                await check(client, KEYS, worker=False, strict=False)
    finally:
        any_server.client.config_set("min-replicas-to-write", "0")
    assert not any_server.client.keys()


# Data


async def test_data_of_a_newer_release_are_refused_and_left_alone(any_server: Server) -> None:
    any_server.client.hset("maas:{test}:meta", "schema", "2")
    found = fatal(await findings(any_server.storage))
    assert len(found) == 1 and "newer release (schema 2, this one knows 1)" in found[0]
    assert any_server.client.hgetall("maas:{test}:meta") == {b"schema": b"2"}


async def test_data_of_a_release_without_schemas_get_this_one(server: Server) -> None:
    server.client.hset("maas:{test}:meta", "token", "17")
    assert fatal(await findings(server.storage)) == []
    assert server.client.hgetall("maas:{test}:meta") == {b"token": b"17", b"schema": b"1"}


@pytest.mark.parametrize(("stored", "says"), [("1", None), ("2", "newer"), ("0", "older"), ("x", "newer")])
def test_schemas(stored: str, says: str | None) -> None:
    found = judge_schema(stored, 1)
    assert found is None if says is None else found is not None and found.fatal and says in found.text


@pytest.mark.parametrize(
    ("version", "fit"),
    [("5.0.14", False), ("6.0.16", False), ("6.2.0", True), ("7.2.4", True), ("10.0.0", True), ("255.255.255", True)],
)
def test_versions(version: str, fit: bool) -> None:
    found = judge({"redis_version": version})
    assert not found if fit else found[0].fatal and version in found[0].text and "6.2" in found[0].text


def test_a_server_that_says_nothing_is_not_judged() -> None:
    assert judge({}) == []
