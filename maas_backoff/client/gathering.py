"""Calls that meet: those of one event loop travel together, and each caller keeps an answer of its own."""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar

import attrs

from maas_backoff.errors import (
    InvalidValueError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

MOST_CHARACTERS = 1_048_576
"""Characters in the items of one call."""

MOST_CALLS = 8
"""Calls on their way at once."""

LONGEST_WAIT = 0.001
"""Seconds that a caller waits for the call on its way: on a slow network, that takes a whole round trip."""

Send = Callable[[Sequence[_Item], float], Awaitable[Sequence[_Answer | Exception]]]
"""Sends items until a moment by time.monotonic(). Raises StorageError.

Returns an answer or an error for each of the first items, at least one. The next call takes the others.
"""


def _no_size(_: object) -> int:
    return 0


@attrs.define(eq=False)
class _Caller(Generic[_Item, _Answer]):
    item: _Item
    deadline: float
    answer: "asyncio.Future[_Answer]"


class Gathering(Generic[_Item, _Answer]):
    """Sends the items of the callers of one event loop in few calls.

    An item that comes alone is sent at once. While a call is on its way, callers wait for its end, `longest_wait`
    seconds at most, and then go together. A refusal, a deadline and a cancel concern their own caller only.
    """

    def __init__(
        self,
        send: Send[_Item, _Answer],
        timeout: float,
        most: int,
        size_of: Callable[[_Item], int] = _no_size,
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        """Take the sender, the seconds that a caller waits for its answer, and the most items of one call.

        `size_of` returns the characters of an item.
        """
        self._send = send
        self._timeout = timeout
        self._most = most
        self._size_of = size_of
        self._longest_wait = longest_wait
        self._waiting: dict[_Caller[_Item, _Answer], None] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._alone = 0
        """Callers that send by themselves now."""
        self._is_crowded = False
        """Whether the last call carried several items. The next caller then waits for others of the same moment."""
        self._planned: asyncio.Handle | None = None

    async def ask(self, item: _Item) -> _Answer:
        """Send an item; return its answer, or raise its error. Raises StorageError."""
        deadline = time.monotonic() + self._timeout
        if self._is_crowded or self._waiting or self._on_way:
            return await self._ask_together(item, deadline)
        self._alone += 1
        try:
            (answer,) = await self._send((item,), deadline)
        finally:
            self._alone -= 1
            self._start_calls()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Wait for the calls on their way. Their callers may be gone."""
        while self._calls:
            await asyncio.wait(self._calls)

    @property
    def _on_way(self) -> int:
        return self._alone + len(self._calls)

    async def _ask_together(self, item: _Item, deadline: float) -> _Answer:
        while True:
            answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
            caller = _Caller(item, deadline, answer)
            self._waiting[caller] = None
            self._plan_calls()
            try:
                return await answer
            except StorageUnavailableError:
                # A call has the deadline of its first caller. Others may have time left.
                if time.monotonic() >= deadline:
                    raise
            finally:
                self._waiting.pop(caller, None)

    def _plan_calls(self) -> None:
        """Start a call when all callers of this moment have come, or after the longest wait, or when a call is full."""
        if len(self._waiting) >= self._most:
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
            if self._on_way and len(self._waiting) < self._most and not at_once:
                self._plan_calls()
                break
            at_once = False
            call = asyncio.get_running_loop().create_task(self._call(self._next_callers()), context=Context())
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _next_callers(self) -> list[_Caller[_Item, _Answer]]:
        callers: list[_Caller[_Item, _Answer]] = []
        size = 0
        for caller in self._waiting:
            size += self._size_of(caller.item)
            if callers and (size > MOST_CHARACTERS or len(callers) == self._most):
                break
            callers.append(caller)
        for caller in callers:
            del self._waiting[caller]
        return callers

    async def _call(self, callers: Sequence[_Caller[_Item, _Answer]]) -> None:
        self._is_crowded = len(callers) > 1
        answers: Sequence[_Answer | Exception]
        try:
            answers = await self._send([caller.item for caller in callers], callers[0].deadline)
        except Exception as error:  # noqa: BLE001 - each caller raises it
            answers = [_own(error) for _ in callers]
        left = [caller for caller in callers[len(answers) :] if not caller.answer.done()]
        if left:
            self._waiting = {**dict.fromkeys(left), **self._waiting}
        for caller, answer in zip(callers, answers, strict=False):
            if caller.answer.done():
                continue  # the caller was cancelled
            if isinstance(answer, Exception):
                caller.answer.set_exception(answer)
            else:
                caller.answer.set_result(answer)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.remove(call)
        self._start_calls()


_CONCERNS_ALL = (StorageDeniedError, StorageFullError, StorageUnavailableError)
"""Errors that a call with one of the items alone would have, too."""


async def with_own_errors(
    read: Callable[[Sequence[_Item]], Awaitable[Sequence[_Answer]]], items: Sequence[_Item]
) -> Sequence[_Answer | Exception]:
    """Return the answers of one call of `read`. If an item makes it fail, call `read` for each item alone.

    A person has written over its key, for example: its error is for its own caller.
    """
    try:
        return await read(items)
    except _CONCERNS_ALL:
        raise
    except Exception:
        if len(items) == 1:
            raise
    return [await _alone(read, item) for item in items]


async def _alone(read: Callable[[Sequence[_Item]], Awaitable[Sequence[_Answer]]], item: _Item) -> _Answer | Exception:
    try:
        return (await read([item]))[0]
    except Exception as error:  # noqa: BLE001 - its caller raises it
        return error


def _own(error: Exception) -> Exception:
    """Return an equal error: one that several callers raise would collect the tracebacks of all."""
    if not isinstance(error, StorageError | InvalidValueError):
        return error  # a bug: its class may not be copied
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
