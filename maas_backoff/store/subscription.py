"""A subscription to a channel, on a connection of its own that must answer while it is silent."""

from typing import cast

from maas_backoff.errors import StorageUnavailableError
from maas_backoff.store.link import Link, packed

QUIET = 3.0
"""Seconds of silence after which the server is asked for an answer."""

ANSWER_WITHIN = 3.0
"""Seconds that this answer may take. After both together, a silently dropped connection is closed."""


class Subscription:
    """A subscription to one channel. Its calls raise StorageError if it cannot be made, or is lost."""

    def __init__(self, link: Link, channel: str) -> None:
        self._link = link
        # A second SUBSCRIBE changes nothing and is confirmed. It serves as a PING, which would need one more right.
        self._subscribe = packed([("SUBSCRIBE", channel)])

    async def start(self) -> None:
        """Subscribe, and return when the server has confirmed it."""
        await self._link.send(self._subscribe)
        await self._awaited()

    async def message(self) -> bytes | None:
        """Return the next message, or None if none came for some seconds and the connection still works."""
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
