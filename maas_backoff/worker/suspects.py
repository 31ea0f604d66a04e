"""Which suspects this process may claim: those of one cohort at a time, so that a task that ends workers is found."""

from collections.abc import Iterable

from maas_backoff.domain.suspicion import comes_back_at_once
from maas_backoff.store.batch import BatchRequest, suspicion_text
from maas_backoff.worker.attempt import Attempt


class Suspects:
    """The part of a worker's claims that is about suspects."""

    def __init__(self, *, in_children: bool) -> None:
        """`in_children`: attempts run in child processes."""
        self.in_children = in_children
        self._asking = {True: 0, False: 0}
        """Claims on their way that may take suspects, of those that need a GPU and of the others."""

    def ask(self, attempts: Iterable[Attempt], *, gpu: bool, asleep: bool) -> tuple[bool, str]:
        """Return whether a claim may take suspects, and of which cohort: empty, of any one.

        A claim that sleeps on the server takes none while a cohort runs here: it would keep the next one from being
        claimed when that has ended.
        """
        cohort = self._cohort(attempts)
        may = not self._asking[gpu] and not (asleep and cohort)
        self._asking[gpu] += may
        return may, cohort

    def answered(self, request: BatchRequest) -> None:
        """Note that a claim has been answered."""
        self._asking[bool(request.fits)] -= request.may_claim_suspect

    def on_gpus(self, attempts: Iterable[Attempt]) -> str:
        """Return what a claim of tasks that need a GPU would say now."""
        may = not self._asking[True]
        return suspicion_text(may=may, cohort=self._cohort(attempts), in_children=self.in_children)

    def _cohort(self, attempts: Iterable[Attempt]) -> str:
        """Return the cohort that runs here, or ""."""
        for attempt in attempts:
            counts = attempt.claimed.counts
            if counts.suspect and not (self.in_children and comes_back_at_once(counts)):
                return counts.cohort or f"!{attempt.task.task_id}"
        return ""
