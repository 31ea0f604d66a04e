"""The interface of all executors."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.emission import Part
from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.domain.outcome import HandlerOutcome
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import AttemptSpan
from maas_backoff.worker.setback import Setback

TaskHandler = Callable[[TaskEntity], object] | Callable[[TaskEntity, Any], object]
"""A user's function from a task to its result: `async def` or `def`, returning ResultEntity or any JSON value.

The second argument is the value that the worker_lifespan yields. Any: a decorator cannot know that type.
"""

Handler = Callable[..., object]
"""A TaskHandler, as executors call it: with the task, and with the value of the lifespan if there is one."""

ExceptionHandler = Callable[[TaskEntity], object]
"""A user's function that is called with the task whose attempt raised, timed out or crashed.

It is `async def` or `def`; its result may replace the failure.
"""


class GpuGrant(Protocol):
    """Memory on a GPU, as an executor sees it: where the memory is, and the two calls of a child process.

    Only these two calls of executors change a grant.
    """

    @property
    def cuda_name(self) -> str:
        """The device's name in CUDA_VISIBLE_DEVICES."""
        ...

    @property
    def assignment(self) -> GpuAssignment:
        """The device and the memory, as a task sees them."""
        ...

    def used_by(self, pid: int, evict: Callable[[], None]) -> None:
        """Note that a child process uses the memory from now on. `evict` ends the child while it is idle."""
        ...

    def process_ended(self, pid: int) -> None:
        """Note that the child process has ended, or is about to."""
        ...


class Call(Protocol):
    """One call of the handler, as an executor sees it."""

    @property
    def task(self) -> TaskEntity:
        """The task, whose `update_progress` is connected."""
        ...

    @property
    def grant(self) -> GpuGrant | None:
        """The part of a GPU that it may use."""
        ...

    @property
    def start_before(self) -> float:
        """The handler may not begin after this moment, by time.monotonic(). It moves with the lease: look again."""
        ...

    @property
    def span(self) -> AttemptSpan | None:
        """How it is traced, if it is."""
        ...

    @property
    def earlier(self) -> Sequence[Part]:
        """The parts of the task's stream that earlier attempts have emitted."""
        ...

    def started(self) -> None:
        """Note that the handler begins now: from here on its timeout counts."""
        ...

    def lingers(self, ended: asyncio.Event) -> None:
        """Note that the thread cannot be stopped; `ended` will be set when it has ended by itself."""
        ...


class CallOfBatch(Call, Protocol):
    """One call of the handler for several tasks. As a `Call`, it is that of its first task."""

    @property
    def members(self) -> Sequence[Call]:
        """The tasks, each as a call of its own."""
        ...

    def ended(self) -> None:
        """Note that the handler has ended, and its outcomes are on their way: the next batch may begin."""
        ...


BatchOutcome = HandlerOutcome | list[HandlerOutcome]
"""The outcome of each task of a batch, in order; or one for all, if the handler raised or was stopped."""


class Executor(Protocol):
    """A way to call handlers. Executors know nothing of leases, timeouts or the store."""

    @property
    def groups(self) -> "Sequence[ExecutorGroup]":
        """The executors that start one after the other: for an executor without parts, itself."""
        ...

    @property
    def stoppable(self) -> bool:
        """Whether cancelling a call ends the handler, of some kind at least."""
        ...

    def stops(self, kind: str, /) -> bool:
        """Return whether cancelling a call of this kind ends the handler. If not, a shutdown waits for it instead."""
        ...

    @property
    def setback(self) -> Setback | None:
        """The record of children or threads that could not be started; None if handlers need neither."""
        ...

    @property
    def child_ended(self) -> asyncio.Event:
        """Set when a child process has ended: processes that it has started may be left."""
        ...

    def run(self, call: Call) -> Coroutine[Any, Any, HandlerOutcome]:
        """Call the handler once and return what came of it.

        Whatever the handler raises is an outcome. Unstarted: the handler did not begin, because its child process could
        not be started, or because it was too late (`Call.start_before`). Only this call's own cancellation is raised,
        after the handler was stopped as hard as this executor can.
        """
        ...

    def run_batch(self, call: CallOfBatch) -> Coroutine[Any, Any, BatchOutcome]:
        """Call the handler once for several tasks of one kind, and return what came of it; else as `run`."""
        ...

    async def aclose(self) -> None:
        """Let go of everything; running calls have ended."""
        ...


class ExecutorGroup(Executor, Protocol):
    """An executor of handlers that run in the same way, with the same lifespan."""

    @property
    def start_demand(self) -> Demand | None:
        """The demand on a GPU on which it can get more ready than without; None: it needs none to start."""
        ...

    @property
    def starting(self) -> "Starting | None":
        """Its children or threads; None if handlers need neither."""
        ...

    async def start(self, grant: GpuGrant | None = None, /) -> None:
        """Get ready, in what was granted of a GPU. Raises HandlerError when the handler cannot be called this way."""
        ...

    async def watch(self) -> None:
        """Wait until cancelled. Raises HandlerError when what all calls need, the worker_lifespan, ends by itself."""
        ...


class Starting(Protocol):
    """Children or threads that are started when one is lacking."""

    @property
    def setback(self) -> Setback:
        """The record of those that could not be started."""
        ...

    @property
    def lacking(self) -> asyncio.Event:
        """Set when a child may be missing: one has ended, or could not be started."""
        ...

    @property
    def lacks_child(self) -> bool:
        """Whether fewer children live than are to be kept ready. One that is being started counts."""
        ...

    def unused_ended(self) -> bool:
        """Return whether a ready child that no task had used has ended since the last call of this method."""
        ...

    async def warm_up(self) -> None:
        """Start one that no task has asked for, and note in `setback` what came of it."""
        ...
