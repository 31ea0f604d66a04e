"""Waiters for changes of tasks, woken by the messages that scripts publish."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from maas_backoff.store.connect import Client
from maas_backoff.store.outage import Outage
from maas_backoff.store.replies import StreamItem

_WHO = "the subscription of wait_task, watch and stream"


class Woken(asyncio.Event):
    """Is set when the task may have changed: then read the task again."""

    first: StreamItem | None = None
    """The first part of the stream, if the message had it."""


_Events = dict[str, set[Woken]]


class Waiters:
    """The waiters of one event loop, on one connection, which lives from the first wait until `aclose`."""

    def __init__(self, client: Client, channel: str, outage: Outage) -> None:
        self._client = client
        self._outage = outage
        self._channel = channel
        self._events: _Events = {}
        self._readers: _Events = {}
        """The events of those that read what a task emits."""
        self._listening: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def waiting(self, task_id: str, *, emitted: bool = False) -> AsyncGenerator[Woken, None]:
        """Yield an event that is set when the task may have changed: then read the task again.

        `emitted`: the event is also set when the task has emitted something.
        """
        event = Woken()
        kept = [self._events, self._readers] if emitted else [self._events]
        for events in kept:
            events.setdefault(task_id, set()).add(event)
        try:
            if self._listening is None or self._listening.done():
                self._listening = asyncio.create_task(self._listen(), name="maas-backoff-waiters")
            yield event
        finally:
            for events in kept:
                events[task_id].discard(event)
                if not events[task_id]:
                    del events[task_id]

    def abandon(self) -> None:
        """Abandon the listening task of a closed event loop: asyncio would log that the task is pending."""
        listening: Any = self._listening
        if listening is not None:
            listening._log_destroy_pending = False  # noqa: SLF001 - as asyncio.gather does

    async def aclose(self) -> None:
        """Stop listening, and close the connection."""
        listening, self._listening = self._listening, None
        while listening is not None and not listening.done():
            # redis-py may swallow a cancel that meets an arriving message.
            listening.cancel()
            await asyncio.wait([listening], timeout=0.1)
        await self._client.aclose()

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear()
            except Exception as error:  # noqa: BLE001 - all waits depend on the next subscription
                self._outage.failed(_WHO, error)
            self._wake_all()
            await asyncio.sleep(0.2)

    async def _hear(self) -> None:
        subscription = await self._client.subscribe(self._channel)
        try:
            self._outage.restored(_WHO)
            # Changes before the subscription were missed.
            self._wake_all()
            while await self._client.stayed():
                message = await subscription.message()
                if message is not None:
                    self._wake(message.decode())
        finally:
            subscription.close()

    def _wake(self, message: str) -> None:
        """Wake those whom a message concerns: _watched.lua has its three forms."""
        match message.split("\n", 4):
            case "", task_id, part, form, text:
                for event in self._readers.get(task_id, ()):
                    event.first = part, form, text
                    event.set()
            case _ if message.startswith("\t"):
                for task_id in message[1:].split("\t"):
                    _set(self._readers, task_id)
            case _:
                _set(self._events, message)

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()


def _set(events: _Events, task_id: str) -> None:
    for event in events.get(task_id, ()):
        event.set()
