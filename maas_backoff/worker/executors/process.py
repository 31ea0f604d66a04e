"""Handlers in child processes, which can be killed."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import attrs
from anyio import to_thread

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.threads import in_thread_or_here
from maas_backoff.config import ThreadPoolConfig
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.fault import fault_of
from maas_backoff.domain.outcome import Failed, HandlerOutcome, Unstarted, crashed, from_dict, from_dicts, to_dict
from maas_backoff.errors import HandlerError
from maas_backoff.worker.executors import frames
from maas_backoff.worker.executors.base import BatchOutcome, Call, CallOfBatch, GpuGrant, Handler
from maas_backoff.worker.executors.cleaner import Cleaner
from maas_backoff.worker.executors.frames import Record
from maas_backoff.worker.executors.hooks import AttemptHook
from maas_backoff.worker.executors.lifespan import Lifespan
from maas_backoff.worker.executors.parent import Child, ChildError, SetupError, StartError, UnreadError
from maas_backoff.worker.executors.pool import ChildPool
from maas_backoff.worker.executors.starter import ChildStarter
from maas_backoff.worker.setback import Setback

log: Log = log_for("worker")

SMALL_REQUEST = 65_536
"""Bytes that the socket takes at once: a child that ends before it reads so few does not end because of the task."""

_TOO_LATE: Record = {"outcome": to_dict(Unstarted()), "reusable": True}


class ProcessExecutor:
    """Calls the handler in child processes, one call at a time in each; they are started when needed, and kept.

    A child with a GPU sees only that GPU, and is used for that GPU only. The end of a child ends its own call only. A
    cancelled call's child is killed, with the processes it started. A process that made a session of its own is ended a
    moment later, by loops/orphans.py.
    """

    stoppable = True

    def __init__(
        self,
        handler: Handler,
        config: ThreadPoolConfig,
        *,
        max_payload_bytes: int,
        lifespan: Lifespan | None = None,
        demand: Demand | None = None,
        hooks: Sequence[AttemptHook] = (),
        largest_batch: int = 1,
        shared: "SharedByChildren | None" = None,
    ) -> None:
        """Make an executor that has no child yet.

        `demand` is that of tasks that do not say otherwise; None: they need no GPU. With a demand, a lifespan is
        entered only on a GPU that was granted, and no child is kept ready before there is a task. `hooks` are entered
        around each attempt, in the child. `largest_batch` is the most tasks of a call.
        """
        slots = config.concurrency
        shared = shared or SharedByChildren()
        self._handler = handler
        self._warm_children = 0 if demand is not None else min(config.warm_children or slots, slots)
        self._lifespan = lifespan
        self._hooks = hooks
        self.start_demand: Demand | None = None if lifespan is None else demand
        self._cleaner = shared.cleaner
        self.pool: ChildPool = ChildPool(config.max_tasks_per_process, shared.child_ended)
        shared.pools.append(self.pool)
        self.setback: Setback = shared.setback
        self._starter = ChildStarter(
            self.pool,
            self.setback,
            max_payload_bytes=max_payload_bytes,
            max_stream_bytes=shared.max_stream_bytes,
            largest_batch=largest_batch,
            start_timeout=config.start_timeout,
        )
        self._warming: _Warming | None = None

    @property
    def lacking(self) -> asyncio.Event:
        """Set when a child may be missing: one has ended, or could not be started."""
        return self.pool.lacking

    @property
    def child_ended(self) -> asyncio.Event:
        """Set when a child has ended: processes that it has started may be left."""
        return self.pool.child_ended

    @property
    def groups(self) -> "tuple[ProcessExecutor]":
        """The executor itself."""
        return (self,)

    @property
    def starting(self) -> "ProcessExecutor":
        """The executor itself, which starts children."""
        return self

    def stops(self, _: str, /) -> bool:
        """Return True: a child is killed."""
        return True

    async def start(self, grant: GpuGrant | None = None, /) -> None:
        """Start the first child, warm if it can be: on the GPU that was granted, if tasks need one.

        Raises HandlerError if a child cannot find the handler, import its module, or enter the lifespan. If the GPU is
        full or broken, only logs the error: the first task tries another GPU.
        """
        await self._starter.prepare(self._handler, self._lifespan, self._hooks)
        await to_thread.run_sync(self._cleaner.start)
        try:
            await self._start_idle(grant)
        except StartError as error:
            if grant is None or not fault_of("", str(error)):
                raise HandlerError(f"handler: cannot run in a child process: {error}") from None
            log.error("GPU %s: %s", grant.assignment.uuid, error)  # noqa: TRY400 - the traceback is the child's, in the message
        self.lacking.set()

    async def _start_idle(self, grant: GpuGrant | None) -> None:
        """Start a child that waits for a task. Raises StartError."""
        # A lifespan may want a GPU's memory: without a grant there is none for it.
        only_imports = self.start_demand is not None and grant is None
        child = await self._starter.start(grant, only_imports=only_imports)
        if only_imports:
            child.dismiss()
        else:
            self.pool.keep(child)

    @property
    def lacks_child(self) -> bool:
        """Whether fewer children live than are to be kept ready. One that is being started counts."""
        return self.pool.count() < self._warm_children

    def unused_ended(self) -> bool:
        """Return whether a ready child that no task had used has ended since the last call of this method."""
        return self.pool.unused_ended()

    async def warm_up(self) -> None:
        """Start a child before a task needs it, and note in `setback` what came of it.

        A task that needs a child meanwhile waits for this child. If only a task with a GPU can test the start, one task
        may try.
        """
        if not self.setback.is_trial:
            warming = self._warming = _Warming()
            try:
                await self._start_idle(None)
            except StartError as error:
                warming.error = error
                self.setback.failed(str(error), probe=True)
                return
            finally:
                self._warming = None
                warming.over.set()
        if self.setback.held and self.start_demand is not None:
            self.setback.let_one_try()

    async def watch(self) -> None:
        """Wait: a child whose lifespan ends by itself ends, and another takes its place."""
        await anyio.sleep_forever()

    async def run(self, call: Call) -> HandlerOutcome:
        """Call the handler once in a child of its own."""
        outcome = await self._run(call, partial(_request, call))
        assert not isinstance(outcome, list)
        return outcome

    async def run_batch(self, call: CallOfBatch) -> BatchOutcome:
        """Call the handler once for a batch, in a child of its own."""
        return await self._run(call, partial(_request_of_batch, call), call.ended)

    async def _run(
        self, call: Call, request: Callable[[], bytes], ended: Callable[[], None] | None = None
    ) -> BatchOutcome:
        kept: list[Child] = []

        def handler_ended(child: Child, reusable: bool) -> None:
            """Keep the child for the next call, if that can be, and say so."""
            # On a GPU, the memory is reserved for this call until its outcomes are there.
            if ended is not None and not kept and reusable and call.grant is None and self.pool.keep_early(child):
                kept.append(child)
                ended()

        try:
            child, answer = await self._ask(call, request, handler_ended)
        except StartError as error:
            return self._not_started(error, call)
        except ChildError as error:
            return crashed(str(error))
        is_same, texts = "outcome" in answer, answer.get("texts", ())
        outcomes = [from_dict(answer["outcome"])] if is_same else from_dicts(answer["outcomes"], texts)
        # After such a fault CUDA is of no use any more in that process.
        sound = not any(isinstance(one, Failed) and one.fault for one in outcomes)
        if child in kept:
            self.pool.answered(child)
        else:
            self.pool.give_back(child, reusable=answer["reusable"] and sound)
        return outcomes[0] if is_same else outcomes

    def _not_started(self, error: StartError, call: Call) -> HandlerOutcome:
        """Return the outcome of a call whose child could not be started: the task is not to blame."""
        fault = fault_of("", str(error)) if isinstance(error, SetupError) and call.grant is not None else ""
        if fault:  # a model that did not fit, as a rule: another GPU may do
            return attrs.evolve(crashed(str(error)), fault=fault)
        self.setback.failed(str(error))
        self.lacking.set()
        return Unstarted()

    async def _ask(
        self, call: Call, make_request: Callable[[], bytes], ended: Callable[[Child, bool], None]
    ) -> tuple[Child, Record]:
        """Send the call to a warm child, or to a new one. Raises StartError if no child can be started.

        A warm child may be dying already (the end of a large one takes the kernel some 100 ms): it has not begun then.
        """
        while True:
            warm = self.pool.take(call.grant)
            child = warm or await self._new_child(call.grant)
            # The start may have taken minutes, or this process may have stood still since.
            if time.monotonic() >= call.start_before:
                return child, _TOO_LATE
            request = make_request()
            try:
                return child, await child.ask(request, call, partial(ended, child))
            except UnreadError as error:
                if warm is not None:
                    log.info("child %d ended before it took a task; another takes it", child.pid)
                elif len(request) > SMALL_REQUEST:
                    raise  # one that is too large for the memory that is left would end every child
                else:
                    raise StartError(f"{error} before it took its first task") from error

    async def _new_child(self, grant: GpuGrant | None) -> Child:
        """Return the child that is being warmed up, if no other task waits for it, or start one."""
        warming = self._warming
        if grant is None and warming is not None and not warming.awaited:
            warming.awaited = True
            await warming.over.wait()
            child = self.pool.take(grant)
            if child is not None:
                return child
            if warming.error is not None:
                raise warming.error
        return await self._starter.start(grant)

    async def aclose(self) -> None:
        """End all children: by themselves within a second, or killed."""
        await self.pool.aclose()
        with anyio.CancelScope(shield=True):
            await in_thread_or_here(self._cleaner.stop)


class SharedByChildren:
    """The parts that all ProcessExecutors of a worker share."""

    def __init__(self, max_stream_bytes: int = 1_048_576) -> None:
        """Take the size that the stream of a task may have."""
        self.max_stream_bytes = max_stream_bytes
        self.pools: list[ChildPool] = []
        self.setback: Setback = Setback(lambda: sum(pool.count(ready=True) for pool in self.pools))
        self.cleaner: Cleaner = Cleaner()
        self.child_ended: asyncio.Event = asyncio.Event()


@attrs.define(eq=False)
class _Warming:
    """A child that is started before a task needs it."""

    over: asyncio.Event = attrs.field(factory=asyncio.Event)
    awaited: bool = False
    error: StartError | None = None


def _request(call: Call) -> bytes:
    """Return the frame that has a child call the handler, unless it reads the frame too late."""
    return frames.encode({**_member(call), "start_before": call.start_before, **_span(call)})


def _request_of_batch(call: CallOfBatch) -> bytes:
    members = [_member(member) for member in call.members]
    return frames.encode({"members": members, "start_before": call.start_before, **_span(call)})


def _member(call: Call) -> Record:
    earlier = {"earlier": call.earlier} if call.earlier else {}
    return {"task": call.task.to_dict(), **earlier}


def _span(call: Call) -> Record:
    return {} if call.span is None else {"span": call.span.in_child}
