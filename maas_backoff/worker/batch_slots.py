"""The batches of a worker: those that run in a slot, and those that wait for a slot that is nearly free."""

from collections.abc import Sequence

from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.shared_slot import SharedSlot


class BatchSlots:
    """The batches that are not settled, in the order of their claims.

    A batch may be claimed for the slot of one that is about to end. It waits in this process for that slot.
    """

    def __init__(self) -> None:
        self._all: dict[SharedSlot, None] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def busy(self) -> int:
        """The batches whose call has not ended."""
        return sum(not (batch.is_leaving or batch.has_ended) for batch in self._all)

    @property
    def ending(self) -> int:
        """The slots for which a batch may be claimed ahead."""
        return sum(batch.is_ending and not batch.has_ended for batch in self._all)

    @property
    def waiting(self) -> Sequence[SharedSlot]:
        """The batches that wait for a slot."""
        return [batch for batch in self._all if batch.is_waiting and not batch.is_leaving]

    def unneeded(self, concurrency: int) -> int:
        """Return how many slots the attempts of batches do not need."""
        # As many again at most: else settlements that the server does not take would pile up.
        ended = sum(batch.has_ended and not batch.is_leaving for batch in self._all)
        return sum(batch.extra for batch in self._all) + min(ended, concurrency)

    def take_ending(self) -> bool:
        """Give the slot of a batch that is about to end to one batch; return whether there is such a slot."""
        for batch in self._all:
            if batch.is_ending and not batch.has_ended:
                batch.is_ending = False
                return True
        return False

    def sent(self, attempts: Sequence[Attempt], by: int) -> None:
        """Count settlements that are on their way (`by` is 1), or are answered (`by` is -1)."""
        for attempt in attempts:
            if attempt.batch is not None:
                attempt.batch.sent += by

    def take(self, batch: SharedSlot) -> None:
        """Count an attempt of a batch."""
        batch.held += 1
        batch.running += 1
        self._all[batch] = None

    def release(self, batch: SharedSlot) -> None:
        """Count an attempt of a batch that is settled."""
        batch.held -= 1
        if not batch.held:
            self._all.pop(batch, None)
