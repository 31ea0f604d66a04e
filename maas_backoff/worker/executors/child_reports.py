"""The reports of a handler in a child process: progress, use, and what it emits, on their way to the parent."""

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from maas_backoff.domain.emission import Emission, Part
from maas_backoff.domain.shorten import cut
from maas_backoff.worker.executors.frames import Record

_MAKING = threading.Lock()


class Reporting(Protocol):
    """The server of a child, as far as reports need it."""

    def report(self, call: int, record: Record) -> None:
        """Send a report of the handler, unless its call is over."""
        ...

    def serves(self, call: int) -> bool:
        """Return whether a call of the handler is not over."""
        ...


@attrs.frozen
class ReportReceiver:
    """Sends the reports of one call of the handler to the parent, which knows the token."""

    server: Reporting
    call: int
    place: int | None
    """The place of the task in its batch."""
    most_bytes: int
    """The size that the stream may have."""
    earlier: Sequence[Part]
    made: list[Emission] = attrs.field(factory=list[Emission])
    """The emission, once it was asked for."""

    def progressed(self, _: int, progress: float, message: str | None) -> None:
        """Send the progress."""
        message = None if message is None else cut(message)
        self._report({"progress": progress, "message": message})

    def used(self, _: int, cost: float | None, limits: Mapping[str, float]) -> None:
        """Send what the attempt has used."""
        self._report({"used": cost, "limits": limits})

    def emission(self, _: int) -> Emission | None:
        """Return what the call emits; None if the call is over."""
        if not self.server.serves(self.call):
            return None
        with _MAKING:
            if not self.made:
                self.made.append(Emission(self.most_bytes, self.earlier, self._emitted))
        return self.made[0]

    def _report(self, record: Record) -> None:
        self.server.report(self.call, record if self.place is None else {**record, "member": self.place})

    def _emitted(self, form: str, text: str) -> None:
        self._report({"emitted": form, "text": text})
