"""The blocking calls on many tasks. Written by `.ci/sync_calls.py`: change no line here."""

from typing import Unpack

from maas_backoff.domain.selection import OnProgress, Selection
from maas_backoff.domain.spec import Reschedule
from maas_backoff.sync.part import SyncPart


class SyncSelectionCalls(SyncPart):
    """The part of SyncScheduler that counts and changes many tasks at once: see SelectionCalls.

    `on_progress` is called in the thread of the event loop.
    """

    def count_tasks(self, selection: Selection, *, on_progress: OnProgress | None = None) -> int:
        """Return the number of tasks that match."""
        return self._run(lambda: self._calls.count_tasks(selection, on_progress=on_progress))

    def cancel_tasks(
        self,
        selection: Selection,
        *,
        running: bool = False,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Cancel the pending tasks that match; with `running`, request the cancellation of running ones, too.

        Return the number of these tasks. Raises InvalidValueError for a selection of finished tasks.
        """
        return self._run(
            lambda: self._calls.cancel_tasks(selection, running=running, dry_run=dry_run, on_progress=on_progress)
        )

    def retry_tasks(
        self,
        selection: Selection | str = "failed",
        *,
        error: str | None = None,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Make the failed or cancelled tasks that match pending again, with no retry used; return their number.

        `selection` may be a state: "failed", or "cancelled". `error` selects tasks with this text in their error,
        "type: message", in upper or lower case, as `Selection(error=…)` does.
        """
        return self._run(
            lambda: self._calls.retry_tasks(selection, error=error, dry_run=dry_run, on_progress=on_progress)
        )

    def update_tasks(
        self,
        selection: Selection,
        *,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        **options: Unpack[Reschedule],
    ) -> int:
        """Change when the pending tasks that match are due (`delay` or `run_at`), or their `priority`.

        Return their number. A task that is so already is left out: `delay=0` leaves out tasks that are due.
        """
        return self._run(
            lambda: self._calls.update_tasks(selection, dry_run=dry_run, on_progress=on_progress, **options)
        )

    def delete_tasks(
        self, selection: Selection, *, dry_run: bool = False, on_progress: OnProgress | None = None
    ) -> int:
        """Delete the tasks that match and are not running; return their number."""
        return self._run(lambda: self._calls.delete_tasks(selection, dry_run=dry_run, on_progress=on_progress))

    def purge_tasks(self, status: str) -> int:
        """Delete all tasks that are pending, completed, failed or cancelled now; return their number.

        This is quicker than `delete_tasks`: the tasks are not read.
        """
        return self._run(lambda: self._calls.purge_tasks(status))
