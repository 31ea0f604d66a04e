"""The suspects that this process may claim: one cohort at a time, so that a task that ends workers is found."""

from collections.abc import Iterable

from maas_backoff.store.batch import BatchRequest, suspicion_text
from maas_backoff.worker.attempt import Attempt


class Suspects:
    """Decides for each claim of a worker which suspects it may take."""

    def __init__(self) -> None:
        self._asking = {True: 0, False: 0}
        """The number of unanswered claims that may take suspects: for tasks that need a GPU (True), others (False)."""

    def ask(self, attempts: Iterable[Attempt], *, gpu: bool, asleep: bool) -> tuple[bool, str]:
        """Return whether a claim may take suspects, and of which cohort; an empty cohort means any.

        While a cohort runs here, a claim that sleeps on the server takes no suspects. Otherwise the sleeping claim
        would delay the claim of the next cohort.
        """
        cohort = self._cohort(attempts)
        may = not self._asking[gpu] and not (asleep and cohort)
        self._asking[gpu] += may
        return may, cohort

    def answered(self, request: BatchRequest) -> None:
        """Note the reply to a claim."""
        self._asking[bool(request.fits)] -= request.may_claim_suspect

    def on_gpus(self, attempts: Iterable[Attempt]) -> str:
        """Return the argument for suspects of a claim of tasks that need a GPU now."""
        may = not self._asking[True]
        return suspicion_text(may=may, cohort=self._cohort(attempts))

    def _cohort(self, attempts: Iterable[Attempt]) -> str:
        """Return the cohort that runs in this worker, or ""."""
        for attempt in attempts:
            counts = attempt.claimed.counts
            if counts.suspect:
                return counts.cohort or f"!{attempt.task.task_id}"
        return ""
