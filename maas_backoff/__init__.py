"""Tasks with retries and backoff over Redis or Valkey, for asyncio services that serve AI models."""

from maas_backoff.common.version import __version__
from maas_backoff.config import GpuConfig, SchedulerConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
from maas_backoff.config.storage import StorageConfig
from maas_backoff.domain.backoff import Backoff, BackoffStrategy
from maas_backoff.domain.context import current_task
from maas_backoff.domain.event import TaskEvent
from maas_backoff.domain.gpu import GpuAssignment, GpuStatus, GpuTask
from maas_backoff.domain.health import Health
from maas_backoff.domain.history import Activity, Durations, History, MemorySizes
from maas_backoff.domain.page import TaskPage
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.signals import Discard, Retry, Snooze
from maas_backoff.domain.spec import TaskOptions, TaskSpec
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import FailedAttempt, TaskEntity, TaskError, TaskStatus
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
    TaskConflictError,
    TaskNotFoundError,
    TaskTimeoutError,
    WorkerEndedError,
)
from maas_backoff.scheduler import TaskBackoffScheduler

__all__ = [
    "Activity",
    "Backoff",
    "BackoffStrategy",
    "CallerGoneError",
    "ConfigError",
    "Discard",
    "Durations",
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
    "MaasBackoffError",
    "MemorySizes",
    "MissingExtraError",
    "PayloadError",
    "PayloadTooLargeError",
    "QueueFullError",
    "QueueStats",
    "ResultEntity",
    "Retry",
    "SchedulerConfig",
    "Snooze",
    "StorageConfig",
    "StorageDeniedError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "StorageUnfitError",
    "TaskBackoffConfig",
    "TaskBackoffScheduler",
    "TaskConfig",
    "TaskConflictError",
    "TaskEntity",
    "TaskError",
    "TaskEvent",
    "TaskNotFoundError",
    "TaskOptions",
    "TaskPage",
    "TaskSpec",
    "TaskStatus",
    "TaskTimeoutError",
    "ThreadPoolConfig",
    "Worker",
    "WorkerEndedError",
    "__version__",
    "current_task",
]
