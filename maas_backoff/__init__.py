"""Tasks with retries and backoff over Redis or Valkey, for asyncio services that serve AI models.

A public name is imported when it is first used: a child process that only calls a handler starts without the client,
the worker and redis-py, in a third of the time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from maas_backoff.common.version import __version__

if TYPE_CHECKING:
    from maas_backoff.config import GpuConfig, SchedulerConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
    from maas_backoff.config.storage import StorageConfig
    from maas_backoff.domain.backoff import Backoff, BackoffStrategy
    from maas_backoff.domain.breakdown import Breakdown, SettledAttempts
    from maas_backoff.domain.context import current_task
    from maas_backoff.domain.event import TaskEvent
    from maas_backoff.domain.gpu import GpuAssignment, GpuStatus, GpuTask
    from maas_backoff.domain.health import Health
    from maas_backoff.domain.histogram import BatchSizes, Durations, MemorySizes
    from maas_backoff.domain.history import Activity, History
    from maas_backoff.domain.limit import Limit
    from maas_backoff.domain.page import TaskPage
    from maas_backoff.domain.result import ResultEntity
    from maas_backoff.domain.retries_ahead import RetryAhead
    from maas_backoff.domain.selection import Selection, SelectionProgress
    from maas_backoff.domain.shares import LimitList, LimitStats, TenantStats
    from maas_backoff.domain.signals import Discard, RateLimited, Retry, Snooze
    from maas_backoff.domain.spec import CreateOptions, Ensured, KindOptions, TaskOptions, TaskSpec
    from maas_backoff.domain.stats import QueueStats
    from maas_backoff.domain.status import TaskStatus
    from maas_backoff.domain.stream import LogLine, StreamPart
    from maas_backoff.domain.task import FailedAttempt, TaskEntity, TaskError
    from maas_backoff.domain.worker import Worker
    from maas_backoff.errors import (
        CallerGoneError,
        ConfigError,
        EventLoopError,
        HandlerError,
        InvalidValueError,
        MaasBackoffError,
        MissingExtraError,
        PayloadError,
        PayloadTooLargeError,
        QueueFullError,
        StorageDeniedError,
        StorageError,
        StorageFullError,
        StorageUnavailableError,
        StorageUnfitError,
        StreamError,
        StreamFullError,
        TaskConflictError,
        TaskFailedError,
        TaskNotFoundError,
        TaskTimeoutError,
        TenantFullError,
        WorkerEndedError,
    )
    from maas_backoff.kinds.handle import TaskHandle
    from maas_backoff.kinds.kind import KindSpec, TaskFunction, TaskKind
    from maas_backoff.scheduler import TaskBackoffScheduler
    from maas_backoff.sync.kinds import SyncKind, SyncTaskHandle
    from maas_backoff.sync.scheduler import SyncScheduler

__all__ = [
    "Activity",
    "Backoff",
    "BackoffStrategy",
    "BatchSizes",
    "Breakdown",
    "CallerGoneError",
    "ConfigError",
    "CreateOptions",
    "Discard",
    "Durations",
    "Ensured",
    "EventLoopError",
    "FailedAttempt",
    "GpuAssignment",
    "GpuConfig",
    "GpuStatus",
    "GpuTask",
    "HandlerError",
    "Health",
    "History",
    "InvalidValueError",
    "KindOptions",
    "KindSpec",
    "Limit",
    "LimitList",
    "LimitStats",
    "LogLine",
    "MaasBackoffError",
    "MemorySizes",
    "MissingExtraError",
    "PayloadError",
    "PayloadTooLargeError",
    "QueueFullError",
    "QueueStats",
    "RateLimited",
    "ResultEntity",
    "Retry",
    "RetryAhead",
    "SchedulerConfig",
    "Selection",
    "SelectionProgress",
    "SettledAttempts",
    "Snooze",
    "StorageConfig",
    "StorageDeniedError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "StorageUnfitError",
    "StreamError",
    "StreamFullError",
    "StreamPart",
    "SyncKind",
    "SyncScheduler",
    "SyncTaskHandle",
    "TaskBackoffConfig",
    "TaskBackoffScheduler",
    "TaskConfig",
    "TaskConflictError",
    "TaskEntity",
    "TaskError",
    "TaskEvent",
    "TaskFailedError",
    "TaskFunction",
    "TaskHandle",
    "TaskKind",
    "TaskNotFoundError",
    "TaskOptions",
    "TaskPage",
    "TaskSpec",
    "TaskStatus",
    "TaskTimeoutError",
    "TenantFullError",
    "TenantStats",
    "ThreadPoolConfig",
    "Worker",
    "WorkerEndedError",
    "__version__",
    "current_task",
]

_MODULES = {
    "Activity": "domain.history",
    "Backoff": "domain.backoff",
    "BackoffStrategy": "domain.backoff",
    "BatchSizes": "domain.histogram",
    "Breakdown": "domain.breakdown",
    "CallerGoneError": "errors",
    "ConfigError": "errors",
    "CreateOptions": "domain.spec",
    "Discard": "domain.signals",
    "Durations": "domain.histogram",
    "Ensured": "domain.spec",
    "EventLoopError": "errors",
    "FailedAttempt": "domain.task",
    "GpuAssignment": "domain.gpu",
    "GpuConfig": "config",
    "GpuStatus": "domain.gpu",
    "GpuTask": "domain.gpu",
    "HandlerError": "errors",
    "Health": "domain.health",
    "History": "domain.history",
    "InvalidValueError": "errors",
    "KindOptions": "domain.spec",
    "KindSpec": "kinds.kind",
    "Limit": "domain.limit",
    "LimitList": "domain.shares",
    "LimitStats": "domain.shares",
    "LogLine": "domain.stream",
    "MaasBackoffError": "errors",
    "MemorySizes": "domain.histogram",
    "MissingExtraError": "errors",
    "PayloadError": "errors",
    "PayloadTooLargeError": "errors",
    "QueueFullError": "errors",
    "QueueStats": "domain.stats",
    "RateLimited": "domain.signals",
    "ResultEntity": "domain.result",
    "Retry": "domain.signals",
    "RetryAhead": "domain.retries_ahead",
    "SchedulerConfig": "config",
    "Selection": "domain.selection",
    "SelectionProgress": "domain.selection",
    "SettledAttempts": "domain.breakdown",
    "Snooze": "domain.signals",
    "StorageConfig": "config.storage",
    "StorageDeniedError": "errors",
    "StorageError": "errors",
    "StorageFullError": "errors",
    "StorageUnavailableError": "errors",
    "StorageUnfitError": "errors",
    "StreamError": "errors",
    "StreamFullError": "errors",
    "StreamPart": "domain.stream",
    "SyncKind": "sync.kinds",
    "SyncScheduler": "sync.scheduler",
    "SyncTaskHandle": "sync.kinds",
    "TaskBackoffConfig": "config",
    "TaskBackoffScheduler": "scheduler",
    "TaskConfig": "config",
    "TaskConflictError": "errors",
    "TaskEntity": "domain.task",
    "TaskError": "domain.task",
    "TaskEvent": "domain.event",
    "TaskFailedError": "errors",
    "TaskFunction": "kinds.kind",
    "TaskHandle": "kinds.handle",
    "TaskKind": "kinds.kind",
    "TaskNotFoundError": "errors",
    "TaskOptions": "domain.spec",
    "TaskPage": "domain.page",
    "TaskSpec": "domain.spec",
    "TaskStatus": "domain.task",
    "TaskTimeoutError": "errors",
    "TenantFullError": "errors",
    "TenantStats": "domain.shares",
    "ThreadPoolConfig": "config",
    "Worker": "domain.worker",
    "WorkerEndedError": "errors",
    "current_task": "domain.context",
}


if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        """Import a public name."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
