"""The parts of a process that runs until it is stopped: its signals, and a function beside it."""

import signal
from collections.abc import Awaitable, Callable

import anyio


class Beside:
    """A function that is awaited beside a worker. `scope` cancels it, and `error` is the exception that it raised."""

    def __init__(self, function: Callable[[], Awaitable[object]] | None) -> None:
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.ended: anyio.Event = anyio.Event()
        self.error: Exception | None = None
        self._function = function

    async def run(self, then: Callable[[], object]) -> None:
        """Await the function, if there is one, and call `then` when it has returned or raised."""
        try:
            if self._function is None:
                return
            with self.scope:
                await self._function()
        except Exception as error:  # noqa: BLE001 - raised after the drain
            self.error = error
        finally:
            self.ended.set()
        then()


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a process: SIGTERM, SIGINT, and SIGHUP unless it was ignored before (`nohup`)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]
