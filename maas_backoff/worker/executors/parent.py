"""A child process from its parent's side: started, asked, killed, reaped.

The event loop calls everything here back: a child needs no asyncio task of its own.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from contextvars import Context
from pathlib import Path
from typing import Self

import anyio

from maas_backoff.common.orphans import marked
from maas_backoff.worker.executors.base import Call, GpuGrant
from maas_backoff.worker.executors.exits import ExitWatch, Process, description, has_ended, kill_group
from maas_backoff.worker.executors.frames import FrameBuffer, Record
from maas_backoff.worker.executors.output import Output, Records
from maas_backoff.worker.executors.records import socketpair

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
    """One child process. It answers one request at a time."""

    def __init__(
        self,
        process: Process,
        connection: socket.socket,
        output: int,
        records: socket.socket,
        limit: int,
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
        self._when_ended = when_ended
        self._connection = connection
        self._output = Output(output, process.pid)
        self._records = Records(records, process.pid)
        self._frames = FrameBuffer(limit)
        self._call: Call | None = None
        self._answer: asyncio.Future[Record] | None = None
        self._fault: str | None = None
        self._killed = False
        self._left_unread = False
        self._killer: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        connection.setblocking(False)
        self._loop.add_reader(connection, self._receive)
        ExitWatch(process, self._end)

    @classmethod
    def spawn(cls, limit: int, grant: GpuGrant | None, when_ended: Callable[["Child"], None]) -> Self:
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
            try:
                # An empty context: the loop's callbacks belong to no task, least of all to the one that is run now.
                child = Context().run(cls, process, connection, output, records, limit, grant, when_ended)
            except BaseException:  # no memory, as a rule: nobody would reap the process
                kill_group(process)
                process.wait()
                raise
            ours.pop_all()
        return child

    @property
    def usable(self) -> bool:
        """Whether it can be asked."""
        return not self.leaving and not has_ended(self._process)

    @property
    def leaving(self) -> bool:
        """Whether it was killed or dismissed, or is known to have ended."""
        return self._killed or self._killer is not None or self.gone

    @property
    def gone(self) -> bool:
        """Whether it has ended and is reaped."""
        return self._ended.is_set()

    async def ask(self, request: bytes, call: Call | None = None) -> Record:
        """Send a request and return its answer; report to `call` when the request was sent, and its progress.

        Raises ChildError when the child ended instead: UnreadError where it cannot have begun.
        When cancelled, kills the child, and returns when it is gone.
        """
        self._answer = self._loop.create_future()
        self._call = call
        self._output.belongs_to(call.task.task_id if call else "")
        if call:
            self.calls += 1
        try:
            try:
                sent = self._send(request)
                if sent < len(request):
                    await self._loop.sock_sendall(self._connection, memoryview(request)[sent:])
            except ConnectionError:  # it has ended; how, the answer will tell
                self._left_unread = True
            except OSError as error:  # no memory in the kernel: a part at most was sent, so nothing of it can begin
                self._left_unread = True
                self._fault = f"a request could not be sent to it: {error}"
                self.kill()
            if call:
                call.started()
            return await self._answer
        except ChildError:
            raise
        except BaseException:
            self._answer.cancel()
            self.kill()
            await self.ended()
            raise
        finally:
            self._answer = self._call = None
            if self._ended.is_set():
                self._close()
            else:
                self._output.belongs_to("")

    def _send(self, request: bytes) -> int:
        """Send what fits at once: nearly always all, and in half the time that the loop would take."""
        try:
            return self._connection.send(request)
        except BlockingIOError:
            return 0

    def dismiss(self) -> None:
        """Let the child end by itself; kill it after a grace if it does not."""
        self.dismissed = True
        self._let_end()

    def _let_end(self) -> None:
        if self.grant is not None:
            self.grant.process_ended(self.pid)  # from now on, its memory is not for other tasks
        if self._killer is None and not self._ended.is_set():
            with suppress(OSError):  # it may have closed its side
                self._connection.shutdown(socket.SHUT_WR)
            self._killer = self._loop.call_later(GRACE, self.kill)

    def kill(self) -> None:
        """Kill the child and what it has started; loops/orphans.py ends what has left its process group."""
        if not self._ended.is_set():
            self._killed = True
            kill_group(self._process)

    async def ended(self) -> None:
        """Wait until the child is reaped, whatever is cancelled meanwhile: to be called after `dismiss` or `kill`."""
        while not self._ended.is_set():
            # The shield holds off anyio's cancellation, the except a task.cancel().
            with suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
                await self._ended.wait()

    def _receive(self) -> bool:
        """Take what has arrived; returns whether there may be more."""
        try:
            data = self._connection.recv(65_536)
        except BlockingIOError:
            return False
        except ConnectionError:
            # Linux reports so the end of a connection with data that the child did not read.
            self._left_unread = True
            data = b""
        if not data:
            self._loop.remove_reader(self._connection)
            self._let_end()  # it is about to end: wait for how. Or its handler has closed what it should not.
            return False
        try:
            for record in self._frames.feed(data):
                self._take(record)
        except ValueError as error:
            self._fault = f"child process sent {error}"
            self.kill()
        return True

    def _take(self, record: Record) -> None:
        if "progress" in record:
            # A thread of an earlier call may report its progress after the next call has begun.
            if self._call is not None and record.get("call") == self.calls:
                self._call.task.update_progress(record["progress"], record["message"])
        elif self._answer is None or self._answer.done():
            raise ValueError("a frame without a request")
        else:
            self._records.drain()  # what the handler has logged comes before what became of it
            self._answer.set_result(record)

    def _end(self) -> None:
        kill_group(self._process)  # before it is reaped, while its group's number is its own
        while self._receive():  # a complete answer beats the exit code
            pass
        code = self._process.wait()
        self._ended.set()
        self._when_ended(self)
        if self.grant is not None:
            self.grant.process_ended(self.pid)
        if self._killer is not None:
            self._killer.cancel()
        self._loop.remove_reader(self._connection)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # a request that is still being sent ends here
        if self._answer is None:
            self._close()
        elif not self._answer.done():
            how = self._fault or "child process closed its connection" if self._killed else description(code)
            self._answer.set_exception(UnreadError(how) if self._left_unread else ChildError(how))

    def _close(self) -> None:
        self._loop.remove_writer(self._connection)
        self._connection.close()
        self._records.close()
        self._output.close()
