"""A server with an append-only file, that can be killed and started again where it was."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
from support import server_binary


class DurableServer:
    """A server of one kind; its port and folder stay, whatever happens to its process."""

    def __init__(self, name: str, folder: Path) -> None:
        binary = server_binary(name)
        if binary is None:
            raise FileNotFoundError(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        # An acknowledged write is in the file, whatever happens. With "everysec", Redis may acknowledge writes of up
        # to 2 seconds before it hands them to the kernel, while a slow fsync is under way.
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": folder}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        self._command = [binary, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, socket_timeout=2)

    def start(self) -> None:
        """Start it, and wait until it has loaded its file."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return
            assert self._process.poll() is None and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for its end if that is SIGKILL."""
        assert self._process is not None
        os.kill(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()

    def stop(self) -> None:
        """End it for good."""
        self.client.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def kill_clients(self) -> None:
        """Cut all connections but this one."""
        for kind in ("normal", "pubsub"):
            with contextlib.suppress(redis.RedisError):
                self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def forget_scripts(self) -> None:
        with contextlib.suppress(redis.RedisError):
            self.client.script_flush()
