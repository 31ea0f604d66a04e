"""The names of the original `maas-backoff-scheduler`: a program of it runs after a change of its import.

`from backoff.scheduler.backoff_scheduler import …` becomes `from maas_backoff.compat.backoff import …`.
"""

from maas_backoff.compat.backoff.codes import ErrorCode
from maas_backoff.compat.backoff.moving import Moved
from maas_backoff.compat.backoff.scheduler import TaskBackoffScheduler
from maas_backoff.compat.backoff.status import TaskStatus
from maas_backoff.config import SchedulerConfig, StorageConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
from maas_backoff.domain.backoff import BackoffStrategy as BackoffType
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.task import TaskEntity

__all__ = [
    "BackoffType",
    "ErrorCode",
    "Moved",
    "ResultEntity",
    "SchedulerConfig",
    "StorageConfig",
    "TaskBackoffConfig",
    "TaskBackoffScheduler",
    "TaskConfig",
    "TaskEntity",
    "TaskStatus",
    "ThreadPoolConfig",
]
