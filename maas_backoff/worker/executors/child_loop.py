"""The event loop of a child process, and the lifespan that is entered in the child."""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.worker.executors.connection import Connection

if TYPE_CHECKING:
    from maas_backoff.worker.executors.lifespan import InOneTask, Lifespan


class ChildLoop:
    """An event loop that is made when a coroutine needs it, and goes on between two calls."""

    def __init__(self, connection: Connection) -> None:
        """Wait for requests on `connection`."""
        self._connection = connection
        self._runner: asyncio.Runner | None = None
        self._plain = ExitStack()
        self._held: InOneTask | None = None
        self._listens = False
        self._sent: asyncio.Future[None] | None = None
        self.values: tuple[Any, ...] = ()
        """The value of the lifespan, for the handler."""
        self.is_sound: bool = True
        """Whether no handler has broken the loop."""
        self.is_busy: bool = False
        """Whether a call is running."""

    @property
    def is_reusable(self) -> bool:
        """Whether the next call can run here: the loop is sound, and the lifespan has not ended."""
        return self.is_sound and (self._held is None or not self._held.left)

    def enter(self, lifespan: "Lifespan", gpu: GpuAssignment | None) -> None:
        """Enter the lifespan. Raises what it raises."""
        from maas_backoff.worker.executors.lifespan import managed

        manager = managed(lifespan, gpu)
        if isinstance(manager, AbstractAsyncContextManager):
            self.values = (self._made().run(self._enter(manager)),)
        else:
            self.values = (self._plain.enter_context(manager),)

    async def _enter(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        from maas_backoff.worker.executors.lifespan import InOneTask

        self._held = InOneTask(manager)
        return await self._held.enter()

    def leave(self) -> None:
        """Leave the lifespan, and close the loop."""
        self._plain.close()
        # A handler has broken the loop: the outcome of its call has shown that.
        with nullcontext() if self.is_sound else suppress(Exception):
            if self._runner is not None and self._held is not None:
                self._runner.run(self._held.exit())
            if self._runner is not None:
                self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> BaseException | None:
        """Run a coroutine that raises nothing. Return the error of a loop that a handler has broken meanwhile."""
        try:
            self._made().run(coroutine, context=copy_context())
        except BaseException as error:  # noqa: BLE001 - a handler may stop the loop, or cancel its own task
            self.is_sound = False
            return error
        return None

    def _made(self) -> asyncio.Runner:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner

    def wait_for_request(self) -> None:
        """Wait until the parent sends something, while coroutines go on. Return at once where there is no loop."""
        while self._runner is not None and self.is_sound:
            try:
                self._runner.run(self._until_request())
            except asyncio.CancelledError:
                continue  # by code that cancels every task it finds
            return

    async def _until_request(self) -> None:
        """Wait until the parent sends something. Raises HandlerError if the lifespan ends by itself."""
        loop = asyncio.get_running_loop()
        self._sent = loop.create_future()
        if not self._listens:  # once, as a rule: to add and remove a reader takes half as long as all the rest
            self._listens = True
            loop.add_reader(self._connection, self._note_request, loop)
        if self._held is None:
            await self._sent
        else:
            await self._held.watch(until=self._sent)

    def _note_request(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.is_busy:  # the parent's end is closed: the loop would call this all the time
            self._listens = False
            loop.remove_reader(self._connection)
        elif self._sent is not None and not self._sent.done():
            self._sent.set_result(None)
