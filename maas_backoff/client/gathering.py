"""Creates that meet: the calls of one event loop travel together, and each caller keeps an answer of its own."""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial

import attrs

from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.store.creation import NewTask

MOST_TASKS = 500
MOST_CHARACTERS = 1_048_576
"""Tasks, and characters of their params, in one call: about 3 ms of the server's time."""

MOST_CALLS = 8
"""Calls on their way at once."""

LONGEST_WAIT = 0.001
"""Seconds that a create waits for the call on its way: on a slow network, that takes a whole round trip."""

Send = Callable[[Sequence[NewTask], float], Awaitable[list[str | StorageError]]]
"""Creates tasks until a moment by time.monotonic(); returns a word or an error for each. Raises StorageError."""


@attrs.define(eq=False)
class _Caller:
    task: NewTask
    deadline: float
    answer: "asyncio.Future[str]"


class Gathering:
    """Sends the creates of one event loop in few calls.

    A create that comes alone is sent at once. While a call is on its way, creates wait for its end, `longest_wait`
    seconds at most, and then go together. A refusal, a deadline and a cancel concern their own caller only.
    """

    def __init__(self, send: Send, timeout: float, longest_wait: float = LONGEST_WAIT) -> None:
        """Take the sender, and the seconds that a caller waits for its answer."""
        self._send = send
        self._timeout = timeout
        self._longest_wait = longest_wait
        self._waiting: dict[_Caller, None] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._alone = 0
        """Callers that send by themselves now."""
        self._is_crowded = False
        """Whether the last call carried several tasks. The next create then waits for others of the same moment."""
        self._planned: asyncio.Handle | None = None

    async def create(self, task: NewTask) -> str:
        """Create a task; return 'created', 'exists' or 'conflict'. Raises StorageError."""
        deadline = time.monotonic() + self._timeout
        if self._is_crowded or self._waiting or self._on_way:
            return await self._create_together(task, deadline)
        self._alone += 1
        try:
            (answer,) = await self._send((task,), deadline)
        finally:
            self._alone -= 1
            self._start_calls()
        if isinstance(answer, StorageError):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Wait for the calls on their way. Their callers may be gone."""
        while self._calls:
            await asyncio.wait(self._calls)

    @property
    def _on_way(self) -> int:
        return self._alone + len(self._calls)

    async def _create_together(self, task: NewTask, deadline: float) -> str:
        while True:
            caller = _Caller(task, deadline, asyncio.get_running_loop().create_future())
            self._waiting[caller] = None
            self._plan_calls()
            try:
                return await caller.answer
            except StorageUnavailableError:
                # A call has the deadline of its first caller. Others may have time left.
                if time.monotonic() >= deadline:
                    raise
            finally:
                self._waiting.pop(caller, None)

    def _plan_calls(self) -> None:
        """Start a call when all creates of this moment have come, or after the longest wait, or when a call is full."""
        if len(self._waiting) >= MOST_TASKS:
            self._start_calls()
        elif self._planned is None:
            loop = asyncio.get_running_loop()
            if not self._on_way:
                self._planned = loop.call_soon(self._start_calls)
            elif self._on_way < MOST_CALLS:
                self._planned = loop.call_later(self._longest_wait, partial(self._start_calls, at_once=True))

    def _start_calls(self, *, at_once: bool = False) -> None:
        """Start the calls that need not wait for another one; `at_once`: one more."""
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        while self._waiting and self._on_way < MOST_CALLS:
            if self._on_way and len(self._waiting) < MOST_TASKS and not at_once:
                self._plan_calls()
                break
            at_once = False
            call = asyncio.get_running_loop().create_task(self._call(self._next_callers()), context=Context())
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _next_callers(self) -> list[_Caller]:
        callers: list[_Caller] = []
        size = 0
        for caller in self._waiting:
            size += len(caller.task.params)
            if callers and (size > MOST_CHARACTERS or len(callers) == MOST_TASKS):
                break
            callers.append(caller)
        for caller in callers:
            del self._waiting[caller]
        return callers

    async def _call(self, callers: Sequence[_Caller]) -> None:
        self._is_crowded = len(callers) > 1
        answers: Sequence[str | Exception]
        try:
            answers = await self._send([caller.task for caller in callers], callers[0].deadline)
        except Exception as error:  # noqa: BLE001 - each caller raises it
            answers = [_own(error) for _ in callers]
        for caller, answer in zip(callers, answers, strict=True):
            if caller.answer.done():
                continue  # the caller was cancelled
            if isinstance(answer, Exception):
                caller.answer.set_exception(answer)
            else:
                caller.answer.set_result(answer)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.remove(call)
        self._start_calls()


def _own(error: Exception) -> Exception:
    """Return an equal error: one that several callers raise would collect the tracebacks of all."""
    if not isinstance(error, StorageError):
        return error  # a bug: its class may not be copied
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
