"""The lease of a claimed task, as its worker knows the lease."""

from typing import Self

import attrs

MARGIN = 0.1
"""The part of a lease that must be left when a handler begins: the next heartbeat then renews the lease in time."""


@attrs.frozen
class Lease:
    """The right to run a task until a moment. The tasks of one claim share a lease; so do the tasks of one renewal."""

    until: float
    """The lease is valid at least until this moment, by time.monotonic()."""
    start_before: float
    """The last moment, by time.monotonic(), for the handler to begin: later, too little of the lease is left."""

    @classmethod
    def since(cls, sent: float, duration: float) -> Self:
        """Return the lease of a claim or a renewal that was sent at `sent`, by time.monotonic().

        The lease began on the server then or later, and lasts `duration` seconds.
        """
        until = sent + duration
        return cls(until, until - MARGIN * duration)
