"""The blocking calls on one queue. Written by `.ci/sync_calls.py`: change no line here."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Unpack

from maas_backoff.domain.breakdown import Breakdown
from maas_backoff.domain.history import History
from maas_backoff.domain.page import TaskPage
from maas_backoff.domain.retries_ahead import RetryAhead
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.spec import Ensured, Reschedule, TaskOptions, TaskSpec
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import TaskEntity
from maas_backoff.sync.fleet import SyncFleetCalls
from maas_backoff.sync.items import items_of
from maas_backoff.sync.selections import SyncSelectionCalls
from maas_backoff.sync.shares import SyncShareCalls


class SyncCalls(SyncShareCalls, SyncSelectionCalls, SyncFleetCalls):
    """The calls of TaskBackoffScheduler that need no worker. Each blocks until it has its result."""

    def create_task(
        self, task_params: Mapping[str, object], task_id: str | None = None, **options: Unpack[TaskOptions]
    ) -> str:
        """Create a task and return its id.

        `task_params` is a dict of JSON values. `task_id` is an idempotency key. If a task with this id and equal params
        exists, in any state, its id is returned and nothing is created, until the time to live of the finished task
        ends. `options` (TaskOptions) are not compared. Without a `task_id`, an id of 16 characters is made before the
        first send; such ids sort by time.

        Raises TaskConflictError for an id with other params, or of another kind. Raises InvalidValueError, ConfigError
        or PayloadError before anything is sent, and StorageFullError.
        """
        return self._run(lambda: self._calls.create_task(task_params, task_id, **options))

    def ensure_task(
        self, task_params: Mapping[str, object], task_id: str | None = None, **options: Unpack[TaskOptions]
    ) -> Ensured:
        """Create a task as `create_task` does, and return its id and whether it is new: `.task_id`, `.is_new`.

        If a connection is lost, the call is sent again. A task that the first send has created then counts as found,
        unless this call has made the id. `is_new` is therefore True at most once for a task.
        """
        return self._run(lambda: self._calls.ensure_task(task_params, task_id, **options))

    def create_tasks(self, items: Iterable[Mapping[str, object] | TaskSpec]) -> list[str]:
        """Create many tasks and return their ids in order. An item is the params, or a TaskSpec with the options.

        All items are checked before the first is sent; 1,000 are sent at a time. Conflicts are raised at the end: one
        TaskConflictError with `conflicts` and `created`. QueueFullError and other StorageErrors have `created`: the ids
        of this call that are in the queue for certain. If all items have ids, the same call may be repeated.
        """
        return self._run(lambda: self._calls.create_tasks(items_of(items)))

    def get_task(self, task_id: str) -> TaskEntity | None:
        """Return the task, or None if there is no task with this id (any more)."""
        return self._run(lambda: self._calls.get_task(task_id))

    def get_retries_ahead(self, task_id: str) -> list[RetryAhead]:
        """Return the retries that an unfinished task has left, at most ten, with the times at which they would come.

        They come after the running or the next attempt, if each attempt fails. The times hold if attempts take no time.
        The delay of a callable backoff is a range. An unknown or a finished task has none.
        """
        return self._run(lambda: self._calls.get_retries_ahead(task_id))

    def wait_task(self, task_id: str, timeout: float | timedelta | None = None) -> TaskEntity:
        """Wait until the task is finished (completed, failed or cancelled), and return it.

        `timeout` is in seconds, or a timedelta; None waits for ever, 0 looks once. Raises TaskTimeoutError after it,
        and TaskNotFoundError.
        """
        return self._run(lambda: self._calls.wait_task(task_id, timeout))

    def list_tasks(
        self,
        status: str | Selection,
        *,
        limit: int = 100,
        cursor: str | None = None,
        reverse: bool = False,
        waiting_for: str | None = None,
        due_from: datetime | timedelta | None = None,
        brief: bool = False,
    ) -> TaskPage:
        """Return up to `limit` (1..1000) tasks in a state, as `.tasks`; pass `.cursor` to go on, until it is None.

        Pending tasks are sorted by due time, processing tasks by the end of their lease, finished tasks by the time at
        which they expire; `reverse` reverses the order. Three filters are for pending tasks. `waiting_for="gpu"` lists
        due tasks that need a GPU, `waiting_for="slot"` due tasks that need no GPU. `due_from` lists delayed
        tasks and retries from that moment on (a timedelta: from now). `brief` leaves out params, result and failed
        attempts, at a fraction of the cost. A task that changes its state meanwhile may be missed or listed twice.

        `status` may be a Selection. Its states are listed one after the other. A call then looks at 2,000 tasks: there
        may be fewer tasks than `limit`, even none, together with a cursor.
        """
        return self._run(
            lambda: self._calls.list_tasks(
                status,
                limit=limit,
                cursor=cursor,
                reverse=reverse,
                waiting_for=waiting_for,
                due_from=due_from,
                brief=brief,
            )
        )

    def get_queue_stats(self) -> QueueStats:
        """Return the number of tasks in each state, in constant time."""
        return self._run(self._calls.get_queue_stats)

    def explain(self) -> str:
        """Return one sentence: why no task runs, or why tasks wait."""
        return self._run(self._calls.explain)

    def get_history(self, minutes: int | None = None, *, hours: int | None = None, days: int | None = None) -> History:
        """Return the numbers of the last 1 to 120 `minutes` (default: 60), with the present minute, and of all time.

        `hours` (1 to 24) returns steps of ten minutes instead, and `days` (1 to 7) steps of one hour. Each settlement
        counts the numbers, at almost no cost. Minutes are those of the server's clock. Raises InvalidValueError for a
        number out of range, or for two of the three.
        """
        return self._run(lambda: self._calls.get_history(minutes, hours=hours, days=days))

    def get_breakdown(
        self, by: str, minutes: int | None = None, *, hours: int | None = None, name: str | None = None
    ) -> Breakdown:
        """Return how many tasks of each kind, or of each tenant, ended or were retried in the last minutes or hours.

        `by` is "kind" or "tenant". The last 1 to 120 `minutes` (default: 60) are steps of one minute; the last 1 to 24
        `hours` are steps of ten minutes. The result has the twenty names with most ends and retries;
        `others` has all further names together. With a `name`, only this name is read, at a fraction of the cost. Each
        end counts once, also one by an operation or a deadline. A worker sends its numbers once a second: if it is
        killed, those of its last second are lost.
        """
        return self._run(lambda: self._calls.get_breakdown(by, minutes, hours=hours, name=name))

    def get_upcoming(self, step: float | timedelta = 30, steps: int = 20) -> list[int]:
        """Return the number of tasks that become due in each of the next `steps` (1 to 200) steps.

        `step` is the length of a step: seconds or a timedelta, at most a day.
        """
        return self._run(lambda: self._calls.get_upcoming(step, steps))

    def cancel_task(self, task_id: str, *, running: bool = False) -> bool:
        """Cancel a pending task at once. With `running`, request the cancellation of a running task, wherever it runs.

        Return True if the task is cancelled or its cancellation was requested; an attempt that completes first wins.
        Return False for a finished or unknown task, and without `running` for a running one.
        """
        return self._run(lambda: self._calls.cancel_task(task_id, running=running))

    def mark_task_processing(self, task_id: str) -> bool:
        """Take a pending task out of the queue, for work elsewhere. It has no lease; no worker runs or reaps it.

        Return False if it is not pending.
        """
        return self._run(lambda: self._calls.mark_task_processing(task_id))

    def mark_task_completed(self, task_id: str, result: object = None) -> bool:
        """Complete an unfinished task, with any JSON value. A running attempt loses its lease.

        Return False for a finished or unknown task.
        """
        return self._run(lambda: self._calls.mark_task_completed(task_id, result))

    def mark_task_failed(self, task_id: str, reason: str = "", *, retry: bool = True, code: int | None = None) -> bool:
        """Record a failed attempt of an unfinished task: it is retried while retries remain, else it fails.

        `retry=False` fails the task at once. `code` is the code of the error. A running attempt loses its lease. Return
        False for a finished or unknown task.
        """
        return self._run(lambda: self._calls.mark_task_failed(task_id, reason, retry=retry, code=code))

    def update_task_progress(self, task_id: str, progress: float, message: str | None = None) -> bool:
        """Set the progress of a processing task, 0 to 100; in its own handler, only while the attempt has the lease.

        Return False if the task is not processing.
        """
        return self._run(lambda: self._calls.update_task_progress(task_id, progress, message))

    def retry_task(self, task_id: str) -> bool:
        """Make a failed or cancelled task pending again, with no retry used. Return False for any other task."""
        return self._run(lambda: self._calls.retry_task(task_id))

    def update_task(self, task_id: str, **options: Unpack[Reschedule]) -> bool:
        """Change when a pending task is due (`delay` or `run_at`), or its `priority`; False if it is not pending."""
        return self._run(lambda: self._calls.update_task(task_id, **options))

    def delete_task(self, task_id: str) -> bool:
        """Delete a task, unless a worker runs it. Return False if one does, or if there is no such task."""
        return self._run(lambda: self._calls.delete_task(task_id))

    def pause(self, *, kind: str | None = None, tenant: str | None = None, by: str = "") -> bool:
        """Stop all claims of the queue until `resume`, from the next claim on; running tasks go on.

        `kind` stops only the claims of that kind of tasks, and `tenant` only those of that tenant's tasks. Both may be
        new to the queue. The pause is stored on the server, and outlives all workers. `by` is the name of who pauses,
        up to 100 printable characters: `get_queue_stats()` and `tenants()` have it as long as the pause lasts, and the
        log has it. Return False if it was paused already: then the first pause keeps its time and its name.
        """
        return self._run(lambda: self._calls.pause(kind=kind, tenant=tenant, by=by))

    def resume(self, *, kind: str | None = None, tenant: str | None = None, by: str = "") -> bool:
        """Let the workers of the queue claim again; `kind` or `tenant` ends the pause of that one only.

        A paused queue claims nothing, also of a kind or a tenant that goes on. The log has the name `by`. Return
        False if it was not paused.
        """
        return self._run(lambda: self._calls.resume(kind=kind, tenant=tenant, by=by))
