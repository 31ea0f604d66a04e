"""The main function of a child process: it calls the handler for one task after the other."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import ExitStack, suppress
from contextvars import Context, copy_context
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from maas_backoff.common.forks import end_if_forked
from maas_backoff.common.orphans import mark_what_starts_here
from maas_backoff.domain.batch_outcome import outcomes_of_values
from maas_backoff.domain.context import current
from maas_backoff.domain.emission import Part
from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.domain.handler_outcome import outcome_of_error, outcome_of_value
from maas_backoff.domain.outcome import HandlerOutcome, Unstarted, to_dict, to_dicts
from maas_backoff.domain.shorten import TEXT_LIMIT
from maas_backoff.domain.task import TaskEntity
from maas_backoff.worker.executors.child_loop import ChildLoop
from maas_backoff.worker.executors.child_reports import ReportReceiver
from maas_backoff.worker.executors.child_signals import leave_stopping_to_the_parent
from maas_backoff.worker.executors.connection import Connection
from maas_backoff.worker.executors.frames import Record
from maas_backoff.worker.executors.handlers import joined
from maas_backoff.worker.executors.records import Sender, set_levels
from maas_backoff.worker.executors.reference import HandlerReference
from maas_backoff.worker.executors.script import script

if TYPE_CHECKING:
    from maas_backoff.worker.executors.base import Handler


def main() -> None:
    """Serve the parent.

    The arguments are the number of the parent's socket, the parent's process id, the folder of this library, and the
    number of the socket for log records.
    """
    script.in_child = True
    fd, parent_pid = map(int, sys.argv[1:3])
    _die_with(parent_pid)
    leave_stopping_to_the_parent()
    mark_what_starts_here()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - a TextIOWrapper, so early
    connection = Connection(socket.socket(fileno=fd))
    setup = connection.receive()
    if setup is None:
        return
    records = Sender(socket.socket(fileno=int(sys.argv[4])))
    records.install()
    set_levels(setup["levels"])
    sys.path[:], sys.argv[:] = setup["path"], setup["argv"]
    what = "its module cannot be imported there"
    try:
        handlers = {kind: HandlerReference(**one).load() for kind, one in setup["handlers"].items()}
        handler = joined(_hooked(handlers, setup["around"]) if "around" in setup else handlers)
        lifespan = None if setup["lifespan"] is None else HandlerReference(**setup["lifespan"]).load()
        set_levels(setup["levels"])  # again: the modules may have set levels that the parent has changed since
        loop = ChildLoop(connection)
        limits = Limits(setup["max_payload_bytes"], setup["max_stream_bytes"])
        server = Server(connection, records, loop, handler, limits)
        if lifespan is not None and not setup["only_imports"]:
            what = "its worker_lifespan failed there"
            loop.enter(lifespan, GpuAssignment.from_dict(setup["gpu"]))
    except BaseException:  # noqa: BLE001 - a module may call sys.exit
        connection.send({"error": f"{what}:\n{traceback.format_exc()[-TEXT_LIMIT:]}"})
        return
    connection.send({"ready": True})
    server.serve()


def _hooked(handlers: Mapping[str, "Handler"], references: Iterable[Record]) -> Mapping[str, "Handler"]:
    from maas_backoff.worker.executors.hooks import hooked  # few programs have hooks, and this imports anyio

    hooks = [HandlerReference(**one).load() for one in references]
    return {kind: hooked(handler, hooks) for kind, handler in handlers.items()}


def _die_with(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent dies. Without Linux it ends after its call."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(0)


class Limits(NamedTuple):
    """The most bytes of a result, and of a task's stream."""

    payload: int
    stream: int


class Server:
    """Calls the handler for each task that the parent sends."""

    def __init__(
        self, connection: Connection, records: Sender, loop: ChildLoop, handler: "Handler", limits: Limits
    ) -> None:
        self._connection = connection
        self._records = records
        self._loop = loop
        self._handler = handler
        self._limit = limits.payload
        self._stream_limit = limits.stream
        self._pid = os.getpid()
        self._directory = Path.cwd()
        self._streams = _standard_streams()
        self._calls = 0
        self._follows = True

    def serve(self) -> None:
        """Answer requests until there will be none; then leave the lifespan."""
        try:
            self._serve()
        finally:
            self._loop.leave()

    def _serve(self) -> None:
        while request := self._next_request():
            self._answer(self._called(request))

    def _called(self, request: Record) -> HandlerOutcome | list[object]:
        """Call the handler. Return its outcome; of a batch, what the handler returned for each task."""
        self._calls += 1
        self._loop.is_busy = True
        members = [self._entity(one, place) for place, one in enumerate(request.get("members", ()))]
        task = None if members else self._entity(request)
        self._records.task = task
        # The worker, or this process, may have stood still since the request was sent; all processes of a machine share
        # the clock.
        late = time.monotonic() >= request["start_before"]
        outcome = Unstarted() if late else Context().run(self._attempt, task or members, request.get("span"))
        self._loop.is_busy = False
        self._records.task = None
        self._tidy()
        return outcome

    def _entity(self, request: Record, place: int | None = None) -> TaskEntity:
        """Return a task of a request; `place` is that in its batch."""
        earlier = [Part(*part) for part in request.get("earlier", ())]
        return TaskEntity.from_dict(
            request["task"], ReportReceiver(self, self._calls, place, self._stream_limit, earlier)
        )

    def _next_request(self) -> Record | None:
        """Return the next request, or None."""
        self._loop.wait_for_request()
        return self._connection.receive()

    def _follow(self, span: Record, stack: ExitStack) -> None:
        """Make the parent's span the current one. An error of tracing must not stop the task."""
        if not self._follows:
            return
        try:
            stack.enter_context(import_module(span["module"]).follow(span["trace"]))
        except Exception as error:  # noqa: BLE001 - a library that is not here, or not whole
            self._follows = False
            with suppress(ValueError, OSError):  # a handler may have closed it
                print(f"spans of this process will not be in the trace: {error}", file=sys.stderr)  # noqa: T201 - for the parent's log

    def _attempt(self, task: TaskEntity | list[TaskEntity], span: Record | None) -> HandlerOutcome | list[object]:
        """Call the handler, in a context of its own. Each error is an outcome. A process that it forked ends here."""
        is_batch = isinstance(task, list)
        current.set(None if isinstance(task, list) else task)
        with ExitStack() as stack:
            if span:
                self._follow(span, stack)
            try:
                value = copy_context().run(self._handler, task, *self._loop.values)
                if isinstance(value, Coroutine):
                    return self._awaited(value, is_batch=is_batch)  # pyright: ignore[reportUnknownArgumentType] - a Coroutine of whatever
                return self._outcome_of(value, is_batch=is_batch)
            except BaseException as error:  # noqa: BLE001 - SystemExit ends an attempt, not the child
                end_if_forked(self._pid, error)
                return outcome_of_error(error, self._limit)
            finally:
                end_if_forked(self._pid)

    def _outcome_of(self, value: object, *, is_batch: bool) -> HandlerOutcome | list[object]:
        """Return the outcome of a handler's value; of a batch, the value as it is."""
        if not is_batch:
            return outcome_of_value(value, self._limit)
        assert isinstance(value, list)
        return cast("list[object]", value)

    def _awaited(self, coroutine: Coroutine[Any, Any, object], *, is_batch: bool) -> HandlerOutcome | list[object]:
        outcomes: list[HandlerOutcome | list[object]] = []

        async def attempt() -> None:
            try:
                outcomes.append(self._outcome_of(await coroutine, is_batch=is_batch))
            except BaseException as error:  # noqa: BLE001 - SystemExit must not tear down the loop
                end_if_forked(self._pid, error)
                outcomes.append(outcome_of_error(error, self._limit))
            finally:
                end_if_forked(self._pid)  # before the loop, whose epoll the parent shares

        broken = self._loop.run(attempt())
        if broken is not None:
            outcomes.append(outcome_of_error(broken, self._limit))
        return outcomes[0]

    def _answer(self, outcome: HandlerOutcome | list[object]) -> None:
        reusable = self._loop.is_reusable and _standard_streams() == self._streams
        try:
            if isinstance(outcome, list):
                # The parent sends the next request while the values become JSON. If one is an error, the parent looks
                # at the outcomes first: the child may be of no use any more.
                if not any(isinstance(one, BaseException) for one in outcome):
                    self._connection.send({"ended": True, "reusable": reusable})
                told, texts = to_dicts(outcomes_of_values(outcome, self._limit))
                self._connection.send({"outcomes": told, "reusable": reusable}, texts)
            else:
                self._connection.send({"outcome": to_dict(outcome), "reusable": reusable})
        except Exception as error:  # noqa: BLE001 - ResultEntity.fail(code=object()); nothing was sent yet
            self._connection.send({"outcome": to_dict(outcome_of_error(error)), "reusable": reusable})

    def report(self, call: int, record: Record) -> None:
        """Send a report of the handler, unless its call is over."""
        if self.serves(call):
            self._connection.send({**record, "call": call})

    def serves(self, call: int) -> bool:
        """Return whether a call of the handler is not over: a left-over thread may go on after it."""
        # A forked process has no connection.
        return self._loop.is_busy and call == self._calls and os.getpid() == self._pid

    def _tidy(self) -> None:
        """Write out what was printed, before the outcome; undo what would surprise the next call."""
        with suppress(Exception):  # the handler may have closed or replaced them
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(OSError):
            os.chdir(self._directory)


def _standard_streams() -> list[tuple[int, int] | None]:
    """Return what file descriptors 0 to 2 are; a closed one would be the next file that is opened."""
    streams: list[tuple[int, int] | None] = []
    for fd in range(3):
        try:
            status = os.fstat(fd)
            streams.append((status.st_dev, status.st_ino))
        except OSError:
            streams.append(None)
    return streams
