"""The suspects that this process may claim.

A worker runs one cohort of lost tasks at a time, so that a task that ends workers is found. The halves of failed
batches have ended no worker: any number of them may run at once.
"""

from collections.abc import Iterable

from maas_backoff.store.batch import BatchRequest, suspicion_text
from maas_backoff.worker.attempt import Attempt


class Suspects:
    """Decides for each claim of a worker which suspects it may take."""

    def __init__(self, *, has_both: bool = False) -> None:
        """`has_both`: the worker has kinds that run in batches, and others. They are claimed separately."""
        self._asking = {True: 0, False: 0}
        """The number of unanswered claims that may take suspects: for tasks that need a GPU (True), others (False)."""
        self._has_both = has_both
        self._refused: set[bool] = set()
        """The last claims that had to leave suspects to another claim: of a batch (True), of other tasks (False)."""

    def ask(self, attempts: Iterable[Attempt], *, gpu: bool, asleep: bool, batch: bool = False) -> tuple[bool, str]:
        """Return whether a claim may take suspects, and of which cohort; an empty cohort means any.

        `batch`: the claim is one of a batch. While a cohort runs here, a claim that sleeps on the server takes no
        suspects: it would delay the claim of the next cohort. Nor does it beside batches, which it would delay.
        """
        cohort = self._cohort(attempts)
        may = not self._asking[gpu] and not (asleep and (cohort or self._has_both))
        if self._has_both and not gpu and not asleep:
            may = may and self._has_turn(batch)
            if may:
                self._refused.discard(batch)
            else:
                self._refused.add(batch)
        self._asking[gpu] += may
        return may, cohort

    def _has_turn(self, batch: bool) -> bool:
        """Return whether a claim may take suspects now: claims of batches and other claims take turns."""
        return batch in self._refused or (not batch) not in self._refused

    def answered(self, request: BatchRequest) -> frozenset[bool]:
        """Note the reply to a claim. Return the claims to repeat, because they were refused suspects for this one."""
        self._asking[bool(request.fits)] -= request.may_claim_suspect
        return frozenset(self._refused if request.may_claim_suspect and not request.fits else ())

    def on_gpus(self, attempts: Iterable[Attempt]) -> str:
        """Return the argument for suspects of a claim of tasks that need a GPU now."""
        may = not self._asking[True]
        return suspicion_text(may=may, cohort=self._cohort(attempts))

    def _cohort(self, attempts: Iterable[Attempt]) -> str:
        """Return the cohort of lost tasks that runs in this worker, or ""."""
        for attempt in attempts:
            counts = attempt.claimed.counts
            if counts.lost_together:
                return counts.cohort or f"!{attempt.task.task_id}"
        return ""
