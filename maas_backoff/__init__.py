"""Tasks with retries and backoff over Redis or Valkey, for asyncio services that serve AI models."""

from maas_backoff.config import SchedulerConfig, StorageConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
from maas_backoff.domain.backoff import Backoff, BackoffStrategy
from maas_backoff.domain.health import Health
from maas_backoff.domain.page import TaskPage
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.spec import TaskOptions, TaskSpec
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import FailedAttempt, TaskEntity, TaskError, TaskStatus
from maas_backoff.errors import (
    ConfigError,
    Discard,
    HandlerError,
    InvalidValueError,
    MaasBackoffError,
    MissingExtraError,
    PayloadError,
    PayloadTooLargeError,
    Retry,
    Snooze,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    TaskConflictError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from maas_backoff.scheduler import TaskBackoffScheduler

__all__ = [
    "Backoff",
    "BackoffStrategy",
    "ConfigError",
    "Discard",
    "FailedAttempt",
    "HandlerError",
    "Health",
    "InvalidValueError",
    "MaasBackoffError",
    "MissingExtraError",
    "PayloadError",
    "PayloadTooLargeError",
    "QueueStats",
    "ResultEntity",
    "Retry",
    "SchedulerConfig",
    "Snooze",
    "StorageConfig",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "TaskBackoffConfig",
    "TaskBackoffScheduler",
    "TaskConfig",
    "TaskConflictError",
    "TaskEntity",
    "TaskError",
    "TaskNotFoundError",
    "TaskOptions",
    "TaskPage",
    "TaskSpec",
    "TaskStatus",
    "TaskTimeoutError",
    "ThreadPoolConfig",
]
