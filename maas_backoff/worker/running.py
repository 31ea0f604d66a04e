"""The attempts that have a slot, by token."""

from collections.abc import Collection, Iterable, Sequence

from maas_backoff.domain.outcome import CancelReason
from maas_backoff.gate.grant import Grant
from maas_backoff.worker.attempt import Attempt


class RunningAttempts(dict[int, Attempt]):
    """The attempts of this process that have a slot, by token."""

    def cancel(self, tokens: Iterable[int], reason: CancelReason) -> None:
        """Cancel attempts by their tokens; those that ended meanwhile are left alone."""
        for token in tokens:
            attempt = self.get(token)
            if attempt is not None:
                attempt.cancel(reason)

    def cancel_tasks(self, ids: Collection[str]) -> None:
        """Cancel the attempts of these tasks because a user asked for it."""
        for attempt in list(self.values()):
            if attempt.task.task_id in ids:
                attempt.cancel(CancelReason.USER)

    def hand_back(self, grant: Grant) -> None:
        """Stop the attempt that has this grant, and hand its task back. That uses no retry."""
        for attempt in list(self.values()):
            if attempt.grant is grant:
                attempt.cancel(CancelReason.CUT_OFF)

    def stuck(self, now: float, grace: float) -> list[Attempt]:
        """Return the attempts that are past their timeout plus `grace` seconds and have not ended."""
        return [one for one in list(self.values()) if not one.over and one.deadline + grace < now]


def slots_of(attempts: Sequence[Attempt]) -> int:
    """Return how many slots attempts take: a batch takes one, and a batch that waits for its slot takes none."""
    batches = {id(one.batch) for one in attempts if one.batch is not None and not one.batch.is_waiting}
    return sum(one.batch is None for one in attempts) + len(batches)
