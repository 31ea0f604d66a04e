"""A child process from its parent's side: started, asked, killed, reaped.

The event loop calls everything here back: a child needs no asyncio task of its own.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context
from pathlib import Path

from maas_backoff.common.orphans import marked
from maas_backoff.worker.executors.base import Call, GpuGrant
from maas_backoff.worker.executors.child_process import ChildProcess, until
from maas_backoff.worker.executors.child_socket import ChildSocket
from maas_backoff.worker.executors.exits import kill_group
from maas_backoff.worker.executors.frames import Record
from maas_backoff.worker.executors.open_request import OpenRequest, turn_after
from maas_backoff.worker.executors.output import ChildLog
from maas_backoff.worker.executors.records import socketpair
from maas_backoff.worker.executors.reports import pass_on

GRACE = 1.0
"""Seconds a child has to end by itself after its connection was closed."""

# -P and the path: what lies in the working directory must not be imported in the library's place.
_CODE = "import sys; sys.path.insert(0, sys.argv[3]); from maas_backoff.worker.executors import child; child.main()"
_ROOT = str(Path(__file__).resolve().parents[2])


def _only(name: str) -> dict[str, str]:
    """Return the environment in which CUDA sees one device. It has to be there before CUDA is loaded."""
    return {"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class ChildError(Exception):
    """Raised when a child ended, or had to be killed, before it answered."""


class UnreadError(ChildError):
    """Raised when a child ended and had not read all of the request: nothing of it has been done."""


class StartError(ChildError):
    """Raised when a child could not be started, or ended before it took its first task."""


class SetupError(StartError):
    """Raised when a child said that it could not import the handler, or enter the lifespan."""


class Child:
    """One child process. It answers one request after the other.

    The next request may be sent when the handler of a batch has ended, while its outcomes are on their way. The child
    reads the next request after it has sent the outcomes.
    """

    def __init__(
        self,
        process: ChildProcess,
        connection: ChildSocket,
        log: ChildLog,
        grant: GpuGrant | None,
        when_ended: Callable[["Child"], None],
    ) -> None:
        self.pid: int = process.pid
        self.calls: int = 0
        self.grant = grant
        self.ready = False
        """Whether it has imported the handler and entered the lifespan."""
        self.dismissed: bool = False
        """Whether it was asked to end."""
        self._process = process
        self._connection = connection
        self._log = log
        self._when_ended = when_ended
        self._open: list[OpenRequest] = []
        """The requests whose `ask` has not returned, in their order: two at most."""
        self._fault: str | None = None
        """Why the child was killed, if it has done something wrong."""
        connection.listen(self._receive)
        process.watch(self._end)

    @classmethod
    def spawn(cls, limit: int, grant: GpuGrant | None, when_ended: Callable[["Child"], None]) -> "Child":
        """Start a child whose frames may have `limit` bytes; raises OSError when the system has no room for it.

        `when_ended` is called with the child once it has ended and is reaped.

        With a grant it sees that device only, and its memory is the grant's for as long as it lives.

        Never awaits, so nothing can be cancelled half-way. To be called from the loop's own thread: PR_SET_PDEATHSIG
        lets a child die with the *thread* that started it.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            connection, far = socket.socketpair()
            ours.callback(connection.close)
            theirs.callback(far.close)
            records, far_records = socketpair()
            ours.callback(records.close)
            theirs.callback(far_records.close)
            output, into = os.pipe()
            ours.callback(os.close, output)
            theirs.callback(os.close, into)
            arguments = far.fileno(), os.getpid(), _ROOT, far_records.fileno()
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=into,
                stderr=subprocess.STDOUT,
                pass_fds=[far.fileno(), far_records.fileno()],
                start_new_session=True,
                env=marked(os.environ if grant is None else {**os.environ, **_only(grant.cuda_name)}),
            )

            def child() -> Child:
                log, end = ChildLog(output, records, process.pid), ChildSocket(connection, limit)
                return cls(ChildProcess(process), end, log, grant, when_ended)

            try:
                # An empty context: the loop's callbacks belong to no task, least of all to the one that is run now.
                made = Context().run(child)
            except BaseException:  # no memory, as a rule: nobody would reap the process
                kill_group(process)
                process.wait()
                raise
            ours.pop_all()
        return made

    @property
    def usable(self) -> bool:
        """Whether it can be asked."""
        return self._process.usable

    @property
    def leaving(self) -> bool:
        """Whether it was killed or dismissed, or is known to have ended."""
        return self._process.leaving

    @property
    def gone(self) -> bool:
        """Whether it has ended and is reaped."""
        return self._process.gone

    async def ask(
        self, request: bytes, call: Call | None = None, ended: Callable[[bool], None] | None = None
    ) -> Record:
        """Send a request and return its answer; tell `call` when its handler begins, and what the handler reports.

        `ended` is called when the handler of a batch has ended, with whether the child can be used again; the outcomes
        follow. From then on, the child may be asked again.

        Raises ChildError when the child ended instead: UnreadError where it cannot have begun.
        When cancelled, kills the child once it has answered the request before, and returns when it is gone.
        """
        turn = turn_after(self._open)
        asked = OpenRequest(call, ended)
        self._open.append(asked)
        self._log.belongs_to(call.task.task_id if call else "")
        if call:
            self.calls += 1
        try:
            try:
                await self._connection.send(request)
            except OSError as error:
                await turn.wait()
                self._fault = f"a request could not be sent to it: {error}"
                self.kill()
            asked.is_sent = True
            self._begin()
            return await asked.answer
        except ChildError:
            raise
        except BaseException:
            asked.drop()
            await until(turn)
            while not asked.over.is_set() and self._receive():
                pass  # its answer may lie in the socket, and the next request has begun
            if not asked.over.is_set() or asked is self._open[-1]:
                self.kill()
                await self.ended()
            raise
        finally:
            self._open.remove(asked)
            if not self._open and self.gone:
                self._close()
            elif not self._open:
                self._log.belongs_to("")

    def dismiss(self) -> None:
        """Let the child end by itself; kill it after a grace if it does not."""
        self.dismissed = True
        self._let_end()

    def _let_end(self) -> None:
        if self.grant is not None:
            self.grant.process_ended(self.pid)  # from now on, its memory is not for other tasks
        if not self._process.in_grace and not self.gone:
            self._connection.end_requests()
            self._process.kill_after(GRACE)

    def kill(self) -> None:
        """Kill the child and what it has started; loops/orphans.py ends what has left its process group."""
        self._process.kill()

    async def ended(self) -> None:
        """Wait until the child is reaped, whatever is cancelled meanwhile: to be called after `dismiss` or `kill`."""
        await self._process.ended()

    def _receive(self) -> bool:
        """Take what has arrived; returns whether there may be more."""
        data = self._connection.read()
        if data is None:
            return False
        if not data:
            self._let_end()  # it is about to end: wait for how. Or its handler has closed what it should not.
            return False
        try:
            for record in self._connection.records(data):
                self._take(record)
        except ValueError as error:
            self._fault = f"child process sent {error}"
            self.kill()
        return True

    def _take(self, record: Record) -> None:
        if "call" in record:
            # A thread of an earlier call may send a report after the next call has begun.
            call = self._open[-1].call if self._open else None
            if call is not None and record["call"] == self.calls:
                pass_on(call, record)
            return
        asked = self._first
        if asked is None:
            raise ValueError("a frame without a request")
        self._log.drain()  # what the handler has logged comes before what became of it
        if "ended" in record:
            asked.handler_ended(reusable=record["reusable"])
        else:
            asked.answered(record)
            self._begin()

    @property
    def _first(self) -> OpenRequest | None:
        """The request that the child has to answer first."""
        return next((one for one in self._open if not one.over.is_set()), None)

    def _begin(self) -> None:
        """Note that the child calls the handler for its first request, once the request was sent."""
        first = self._first
        if first is not None and first.is_sent:
            first.begin()

    def _end(self) -> None:
        self._process.kill_group()
        while self._receive():  # a complete answer beats the exit code
            pass
        how = self._process.reap(self._fault)
        self._when_ended(self)
        if self.grant is not None:
            self.grant.process_ended(self.pid)
        self._connection.shut()
        if not self._open:
            self._close()
        waiting = [one for one in self._open if not one.over.is_set()]
        for place, one in enumerate(waiting):
            # The child reads a request after it has answered the one before: only the last one can be unread.
            is_unread = place > 0 or (self._connection.left_unread and len(waiting) == 1)
            one.failed(UnreadError(how) if is_unread else ChildError(how))

    def _close(self) -> None:
        self._connection.close()
        self._log.close()
