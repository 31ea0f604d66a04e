"""The scheduler of the original library: blocking calls, and a worker in this process."""

import atexit
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from maas_backoff.compat.backoff.gpus import without_missing_gpus
from maas_backoff.compat.backoff.moving import Moved, moved
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.health import Health
from maas_backoff.scheduler import TaskBackoffScheduler as AsyncScheduler
from maas_backoff.sync.portal import portal
from maas_backoff.sync.scheduler import SyncScheduler
from maas_backoff.worker.executors.base import ExceptionHandler, TaskHandler
from maas_backoff.worker.executors.script import ScriptEnd, script

R = TypeVar("R")
H = TypeVar("H", bound=TaskHandler)
E = TypeVar("E", bound=ExceptionHandler)

LISTED = 1000
"""Ids in each state that `get_queue_statistics` returns."""


class TaskBackoffScheduler(SyncScheduler):
    """The original's scheduler: its calls, and all calls of SyncScheduler. `start` runs tasks in this process.

    A child process of `proc_mode="process"` loads the script of the program up to the first call that needs the server,
    mostly `start()`: the script needs no `if __name__ == "__main__":`. Define handlers above.
    """

    def __init__(self, config: TaskBackoffConfig | None = None) -> None:
        """Take a copy of the configuration. Does no I/O.

        Without a GPU on this machine, `min_gpu_memory_gb` and `min_gpu_utilization` are ignored, with a warning.
        """
        own = (config or TaskBackoffConfig()).copy()
        scheduler = AsyncScheduler(own if script.in_child else without_missing_gpus(own))
        super().__init__(scheduler)
        self._worker = scheduler
        self._mutex = threading.Lock()
        self._is_registered = False
        script.ends_itself = True

    def _run(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        if script.is_loading:
            raise ScriptEnd
        return super()._run(call)

    # Handlers

    def set_custom_task_handler(self, handler: H) -> H:
        """Set the function that runs tasks, as TaskBackoffScheduler.set_custom_task_handler does, before `start`.

        The params of the task are `task.task_params`; `task.param` is their JSON text.
        """
        return self._worker.set_custom_task_handler(handler)

    def set_custom_task_exception_handler(self, handler: E) -> E:
        """Set a function that is called after an attempt that raised, timed out or lost its child process.

        If it returns ResultEntity.ok(…), the task completes; ResultEntity.fail(…) sets the code and the message.
        """
        return self._worker.set_custom_task_exception_handler(handler)

    # Start and stop

    def start(self) -> None:
        """Connect, and run tasks in threads or child processes, beside this thread. Does nothing if it is started.

        The program must go on, as with the original: `shutdown`, or the end of the program, stops the worker. Raises
        ConfigError, HandlerError or StorageError; then nothing runs.
        """
        if script.in_child and not script.is_loading:
            return  # a module that starts its scheduler when it is imported
        self._run(self._worker.start)
        with self._mutex:
            if not self._is_registered:
                self._is_registered = True
                atexit.register(self._stop_at_exit)

    def shutdown(self) -> None:
        """Drain and stop: running tasks may end within `shutdown_grace`, others are handed back.

        Does nothing if nothing runs. Raises the error that ended the worker, if any.
        """
        if portal.uses(self._worker):
            try:
                self._run(self._worker.shutdown)
            finally:
                portal.leave(self._worker)

    def close(self) -> None:
        """Stop, as `shutdown` does."""
        self.shutdown()

    def health(self) -> Health:
        """Return whether this process runs tasks as it should, and the reasons if not. Does no I/O."""
        return self._worker.health()

    def _stop_at_exit(self) -> None:
        with suppress(Exception):
            self.shutdown()

    # Statistics

    def get_queue_statistics(self) -> dict[str, Any]:
        """Return totals and at most 1,000 ids each, in the form of the original: `["tasks"]["PENDING"]["total"]`."""
        stats = self.get_queue_stats()
        totals = {
            "PENDING": ("pending", stats.pending_count),
            "DOING": ("processing", stats.processing_count),
            "FAILED": ("failed", stats.failed_count),
        }
        return {"tasks": {name: self._statistics(state, total) for name, (state, total) in totals.items()}}

    # Moving over

    def move_waiting_tasks(self, *, biz_prefix: str | None = None, remove: bool = False) -> Moved:
        """Create the waiting tasks of the original library in this queue, in their order.

        Stop all processes of the original before. Its keys are read on the same server, in the same database.
        `biz_prefix` is the prefix of the original; None: that of this scheduler. A task keeps its id, its params, the
        time of its next attempt, its backoff, and the attempts that it has left. `remove` deletes each moved task of
        the original. A second call creates no task twice. A task whose params are no JSON, or that this library
        refuses for another reason, is `skipped`, and never removed.
        """
        worker, prefix = self._worker, self._worker.config.task.biz_prefix if biz_prefix is None else biz_prefix

        async def move() -> Moved:
            client = worker._client  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no call reads keys of others
            return await moved(worker, client.store.connection.server.execute, prefix, remove=remove)

        return self._run(move)

    def _statistics(self, state: str, total: int) -> dict[str, Any]:
        page = self.list_tasks(state, limit=LISTED, brief=True) if total else None
        return {"total": total, "queue": [] if page is None else [task.task_id for task in page.tasks]}
