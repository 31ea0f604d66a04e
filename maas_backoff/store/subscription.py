"""A subscription to a channel, on a connection of its own that must give a sign of life."""

from typing import cast

from maas_backoff.errors import StorageUnavailableError
from maas_backoff.store.link import Link, packed

QUIET = 3.0
"""Seconds of silence after which the server is asked for a sign of life."""

ANSWER_WITHIN = 3.0
"""Seconds that the sign may take. After both together, a connection that was dropped without a word is left."""


class Subscription:
    """A subscription to one channel. Its calls raise StorageError where it cannot be made, or is lost."""

    def __init__(self, link: Link, channel: str) -> None:
        self._link = link
        # Sent again, it changes nothing and is confirmed: a PING that needs no right of its own.
        self._subscribe = packed([("SUBSCRIBE", channel)])

    async def start(self) -> None:
        """Subscribe, and return when the server has confirmed it."""
        await self._link.send(self._subscribe)
        await self._awaited()

    async def message(self) -> bytes | None:
        """Return the next message, or None where none came for some seconds and the connection lives."""
        came = await self._link.push(QUIET)
        if came is None:
            await self._link.send(self._subscribe)
            came = await self._awaited()
        kind, _, message = came
        return cast(bytes, message) if kind == b"message" else None

    async def _awaited(self) -> list[object]:
        came = await self._link.push(ANSWER_WITHIN)
        if came is None:
            self.close()
            raise StorageUnavailableError(f"the subscription is dead: nothing came within {ANSWER_WITHIN:g} s")
        return came

    def close(self) -> None:
        """Close the connection."""
        self._link.drop()
