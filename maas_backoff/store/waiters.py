"""Waiters for changes of tasks, woken by the messages that scripts publish."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from maas_backoff.store.connect import Client
from maas_backoff.store.outage import Outage

_WHO = "the subscription of wait_task and watch"


class Waiters:
    """The waiters of one event loop, on one connection, which lives from the first wait until `aclose`."""

    def __init__(self, client: Client, channel: str, outage: Outage) -> None:
        self._client = client
        self._outage = outage
        self._channel = channel
        self._events: dict[str, set[asyncio.Event]] = {}
        self._listening: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def waiting(self, task_id: str) -> AsyncGenerator[asyncio.Event, None]:
        """Yield an event that is set when the task may have changed: then read the task again."""
        event = asyncio.Event()
        self._events.setdefault(task_id, set()).add(event)
        try:
            if self._listening is None or self._listening.done():
                self._listening = asyncio.create_task(self._listen(), name="maas-backoff-waiters")
            yield event
        finally:
            self._events[task_id].discard(event)
            if not self._events[task_id]:
                del self._events[task_id]

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
                    for event in self._events.get(message.decode(), ()):
                        event.set()
        finally:
            subscription.close()

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()
