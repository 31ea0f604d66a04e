"""A web service under real uvicorn, in a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx2

TESTS = Path(__file__).parent
PATIENCE = 30.0


class Served:
    """uvicorn with `module:app` of this folder, and a client of it."""

    def __init__(self, app: str, env: dict[str, str], log: Path, *options: str) -> None:
        self.log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", app, "--port", str(self.port), *options]
        env = {**os.environ, "PYTHONPATH": str(TESTS), "MAAS_BACKOFF_BIZ_PREFIX": "test", **env}
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx2.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def answering(self, path: str) -> Self:
        """Wait until it answers there with 200."""
        self.until(lambda: self._answers(path), f"{path} answers")
        return self

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return self.client.get(path).status_code == 200
        return False

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := holds()):
            assert time.monotonic() < deadline and self.process.poll() is None, f"{what}\n{self.log.read_text()}"
            time.sleep(0.02)
        return value

    @contextlib.contextmanager
    def opened(self, path: str, last: str | None = None) -> Iterator[Iterator[dict[str, str]]]:
        """Read server-sent events: all, or those after the event with the id `last`."""
        headers = {} if last is None else {"Last-Event-ID": last}
        with self.client.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200
            yield events_of(response.iter_lines())

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def events_of(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Return the server-sent events in the lines of a response."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in {"id", "event", "data"}:
            event[name] = value
        elif not line and event:
            yield event
            event = {}
