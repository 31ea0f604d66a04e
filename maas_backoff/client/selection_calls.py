"""The calls on all tasks of a selection."""

from typing import Unpack

import attrs

from maas_backoff.client.part import CallsPart
from maas_backoff.domain.selection import OnProgress, Selection
from maas_backoff.domain.spec import Reschedule
from maas_backoff.domain.status import TaskStatus, checked_status
from maas_backoff.errors import InvalidValueError


class SelectionCalls(CallsPart):
    """The part of TaskBackoffScheduler that counts and changes many tasks at once.

    A call reads the tasks page by page, and changes those that match, some hundred at a time: other clients are not
    delayed, however many tasks there are. A task that comes, or ends, after the call has begun is left out. A task that
    changes between its page and its change is changed only if the task matches still. With `dry_run=True`, nothing is
    changed, and the number of tasks that match is returned. `on_progress` is called after each page.
    """

    async def count_tasks(self, selection: Selection, *, on_progress: OnProgress | None = None) -> int:
        """Return the number of tasks that match."""
        return await self._client.bulk.count(selection, on_progress)

    async def cancel_tasks(
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
        return await self._client.bulk.cancel(selection, running=running, dry_run=dry_run, on_progress=on_progress)

    async def retry_tasks(
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
        if not isinstance(selection, Selection):
            selection = Selection(status=checked_status(selection, TaskStatus.FAILED, TaskStatus.CANCELLED))
        if error is not None:
            if selection.error is not None:
                raise InvalidValueError("error", "None beside the error of the selection", error)
            selection = attrs.evolve(selection, error=error or None)
        return await self._client.bulk.retry(selection, dry_run=dry_run, on_progress=on_progress)

    async def update_tasks(
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
        return await self._client.bulk.update(selection, options, dry_run=dry_run, on_progress=on_progress)

    async def delete_tasks(
        self, selection: Selection, *, dry_run: bool = False, on_progress: OnProgress | None = None
    ) -> int:
        """Delete the tasks that match and are not running; return their number."""
        return await self._client.bulk.delete(selection, dry_run=dry_run, on_progress=on_progress)

    async def purge_tasks(self, status: str) -> int:
        """Delete all tasks that are pending, completed, failed or cancelled now; return their number.

        This is quicker than `delete_tasks`: the tasks are not read.
        """
        return await self._client.operations.purge(status)
