"""The parts and lines that handlers have emitted, until they are sent; and settlements that wait for them.

This module does no I/O, and does not `await` between a read of the state and its change.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from maas_backoff.domain.emission import Emission, Unsent
from maas_backoff.store.batch import Settle
from maas_backoff.store.streams import Emitted
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.slots import Slots

MOST_ATTEMPTS = 200
"""Attempts in one call: its script runs for 1 to 2 ms."""

MOST_CHARACTERS = 262_144
"""Characters in one call, about; a single part may have more."""

Release = Callable[[Settle, Attempt], None]
"""Takes a settlement that may be sent now."""


@attrs.frozen
class EmitCall:
    """The content of one call: frozen, as it is repeated unchanged until the server answers."""

    emitted: Sequence[Emitted]
    attempts: Sequence[Attempt]
    unsent: Sequence[Unsent]
    is_last: bool
    """Whether nothing was left for another call."""


class Emissions:
    """The emissions of all attempts of a worker. Handlers add to them from any thread."""

    def __init__(self, slots: Slots, most_bytes: int, release: Release) -> None:
        """Take the size that a stream may have. `release` takes each settlement that has waited for its parts."""
        self.waiting: asyncio.Event = asyncio.Event()
        """Set when there is something to send."""
        self.urgent: asyncio.Event = asyncio.Event()
        """Set when it should not wait for more: the first part of an attempt, or the last one."""
        self._slots = slots
        self._most_bytes = most_bytes
        self._release = release
        self._noted: set[int] = set()
        """The tokens of the attempts in `_queue`."""
        self._queue: deque[Attempt] = deque()
        self._on_way: set[int] = set()
        self._held: dict[int, Settle] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def of(self, token: int) -> Emission | None:
        """Return the emission of an attempt; None if it has ended."""
        attempt = self._slots.attempts.get(token)
        if attempt is None or attempt.over:
            return None
        if attempt.emission is not None:
            return attempt.emission
        made = Emission(
            self._most_bytes, attempt.earlier, partial(self._note, attempt.token), partial(self._stamp, attempt.token)
        )
        emission: Emission = attempt.__dict__.setdefault("emission", made)  # two threads may come at once
        return emission

    def _stamp(self, token: int) -> str:
        attempt = self._slots.attempts.get(token)
        return "" if attempt is None else f"{attempt.now_ms:.0f} "

    def _note(self, token: int, _form: str, _text: str) -> None:
        """Note that an attempt has emitted something. Called in any thread, after the part was added."""
        if token in self._noted:
            return
        attempt = self._slots.attempts.get(token)
        if attempt is None or attempt.emission is None:
            return
        # Each step is atomic. If a thread finds the token here, `take` comes later and takes its part, too.
        self._noted.add(token)
        self._queue.append(attempt)
        event = self.waiting if attempt.emission.has_begun else self.urgent
        if threading.get_ident() == self._thread:
            self._wake(event)  # a round of the event loop earlier
        else:
            self._loop.call_soon_threadsafe(self._wake, event)

    def _note_again(self, attempt: Attempt, event: asyncio.Event) -> None:
        self._noted.add(attempt.token)
        self._queue.append(attempt)
        self._wake(event)

    def _wake(self, event: asyncio.Event) -> None:
        self.waiting.set()
        event.set()

    def hold(self, attempt: Attempt, settle: Settle) -> bool:
        """Return whether a settlement must wait for parts of its attempt. If so, release it after them."""
        emission = attempt.emission
        if emission is None or (emission.is_sent and attempt.token not in self._on_way):
            return False
        self._held[attempt.token] = settle
        self._note_again(attempt, self.urgent)
        return True

    def send_again(self, attempt: Attempt, settle: Settle) -> None:
        """Send the parts of an ended attempt again, then its settlement: the server has lost parts."""
        assert attempt.emission is not None
        attempt.emission.send_again()
        self.hold(attempt, settle)

    def drop(self, attempt: Attempt) -> None:
        """Forget what an attempt has emitted that is not sent: its lease is lost."""
        if attempt.emission is not None:
            attempt.emission.drop("the lease of the attempt is lost")

    def take(self) -> EmitCall | None:
        """Return the next call; None if there is nothing to send."""
        self.waiting.clear()
        self.urgent.clear()
        emitted: list[Emitted] = []
        attempts: list[Attempt] = []
        unsent: list[Unsent] = []
        room = MOST_CHARACTERS
        while self._queue and room > 0 and len(emitted) < MOST_ATTEMPTS:
            attempt = self._queue.popleft()
            token, emission = attempt.token, attempt.emission
            self._noted.discard(token)
            # An attempt may be here twice: when its settlement came to wait, it was added again.
            if emission is None or token in self._on_way or (attempt.over and token not in self._held):
                continue
            one = emission.take(room, at_end=attempt.over)
            if one is None:
                self._let_go(attempt)
                continue
            room -= sum(len(part.text) for part in one.parts) + sum(map(len, one.lines))
            emitted.append(Emitted(attempt.task.task_id, token, attempt.task.attempt, one))
            attempts.append(attempt)
            unsent.append(one)
            self._on_way.add(token)
        if self._queue:
            self._wake(self.urgent)
        return EmitCall(emitted, attempts, unsent, not self._queue) if emitted else None

    def answered(self, call: EmitCall, lengths: Sequence[int | None]) -> None:
        """Take the lengths of the streams after a call. None: the task has another attempt, or its stream is broken."""
        self._on_way.clear()
        for attempt, unsent, length in zip(call.attempts, call.unsent, lengths, strict=True):
            emission = attempt.emission
            assert emission is not None
            if length is None:
                emission.drop("the task has another attempt, or its stream was overwritten")
            else:
                emission.sent(unsent, length)
            self._note_rest(attempt, emission)

    def refused(self, call: EmitCall, fault: str) -> None:
        """Drop all parts of a call that the server does not take: the attempts must be settled all the same."""
        self._on_way.clear()
        for attempt in call.attempts:
            assert attempt.emission is not None
            attempt.emission.drop(fault)
            self._let_go(attempt)

    def _note_rest(self, attempt: Attempt, emission: Emission) -> None:
        if emission.is_sent:
            self._let_go(attempt)
        elif attempt.token not in self._noted:
            self._note_again(attempt, self.urgent if attempt.over else self.waiting)

    def _let_go(self, attempt: Attempt) -> None:
        settle = self._held.pop(attempt.token, None)
        if settle is not None:
            self._release(settle, attempt)
