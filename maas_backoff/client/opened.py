"""The open connections of a scheduler. Each belongs to the event loop and the process that made it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable

from maas_backoff.client.client import QueueClient
from maas_backoff.common import forks
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.errors import EventLoopError
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.link import abandon_left_over

_running_loop = asyncio._get_running_loop  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - documented; 30 ns, as it raises nothing

Make = Callable[[TaskBackoffConfig, EmbeddedServer | None], QueueClient]


class Here:
    """The open connections of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: QueueClient) -> None:
        self.loop = loop
        self.client = client
        self.end: AsyncGenerator[None] | None = None


class Opened:
    """The QueueClients of a scheduler, one for each event loop, made on first use and closed with the loop.

    All QueueClients share one copy of the configuration, and one embedded server.
    """

    def __init__(self, config: Callable[[], TaskBackoffConfig], make: Make) -> None:
        """Take `config`, whose result is copied on first use, and `make`, which returns the QueueClient of a loop."""
        self._current = config
        self._make = make
        self._config: TaskBackoffConfig | None = None
        self._embedded: EmbeddedServer | None = None
        self._here: Here | None = None
        self._all: dict[asyncio.AbstractEventLoop, Here] = {}
        self._locks: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        self._of_parent: frozenset[asyncio.AbstractEventLoop] = frozenset()
        self._mutex = threading.Lock()
        forks.on_fork(self, Opened._forked)

    def client(self) -> QueueClient:
        """Return the QueueClient of the running event loop. Raises EventLoopError and ConfigError."""
        loop = _running_loop()
        here = self._here
        if here is not None and here.loop is loop:
            return here.client
        return self._enter(loop).client

    def lock(self) -> asyncio.Lock:
        """Return the lock of the running event loop for start and stop."""
        with self._mutex:
            return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def _enter(self, loop: asyncio.AbstractEventLoop | None) -> Here:
        if loop is None:
            raise EventLoopError("no event loop of asyncio is running here: await this in one, as by asyncio.run()")
        with self._mutex:
            if loop in self._of_parent:
                raise EventLoopError(
                    "this event loop is that of the parent process: after a fork, use a new one, as by asyncio.run()"
                )
            here = self._all.get(loop)
            if here is None:
                self._leave_closed_loops()
                here = self._all[loop] = Here(loop, self._new_client())
                here.end = _until_closed(here)
            self._here = here
        return here

    def _new_client(self) -> QueueClient:
        config, embedded = self._config, self._embedded
        if config is None:
            config = self._current().copy()
            storage = config.storage
            if embedded is None and storage.type == "embedded" and storage.url is None:
                embedded = EmbeddedServer(storage.path)
        client = self._make(config, embedded)
        self._config, self._embedded = config, embedded  # not before: a wrong configuration may be corrected
        return client

    def _leave_closed_loops(self) -> None:
        for loop in [loop for loop in self._all if loop.is_closed()]:
            self._all.pop(loop).client.abandon()
        for loop in [loop for loop in self._locks if loop.is_closed()]:
            del self._locks[loop]
        abandon_left_over()

    async def refresh(self) -> None:
        """If the configuration was changed, copy it again, for this event loop and later ones."""
        before = self._config
        if before is None or before == self._current():
            return
        await self.close()
        with self._mutex:
            self._config = None
            if self._current().storage != before.storage:
                self._embedded = None  # event loops that still use it keep it until this process ends

    async def close(self) -> None:
        """Close the connections of this event loop. The last event loop leaves the embedded server, too."""
        loop = asyncio.get_running_loop()
        with self._mutex:
            here, self._here = self._all.pop(loop, None), None
            self._leave_closed_loops()
        try:
            if here is not None and here.end is not None:
                with contextlib.suppress(RuntimeError):  # the ending loop already runs the generator's end
                    await here.end.aclose()
                await here.client.aclose()
        finally:
            await self._leave_server()

    async def _leave_server(self) -> None:
        with self._mutex:
            if self._all:
                return
            embedded, self._embedded, self._config = self._embedded, None, None
        if embedded is not None:
            await embedded.stop()

    def _forked(self) -> None:
        """Forget all connections in a child process: they are the parent's."""
        forks.inherited.append((self._all, self._here, self._locks))
        self._of_parent = self._of_parent | frozenset(self._all)
        self._all, self._here, self._locks = {}, None, {}
        self._mutex = threading.Lock()


def _until_closed(here: Here) -> AsyncGenerator[None]:
    """Return a started generator that closes the connections: an ending event loop closes all async generators."""

    async def end() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await here.client.aclose()

    generator = end()
    with contextlib.suppress(StopIteration):  # the generator has reached its `yield`
        generator.asend(None).send(None)
    return generator
