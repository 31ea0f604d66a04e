"""The errors of the server: it is away, refuses a command, or has no room."""

import math
from collections.abc import Sequence
from typing import Any

from maas_backoff.common.shown import shown
from maas_backoff.errors.base import MaasBackoffError


class StorageError(MaasBackoffError, ConnectionError):
    """Raised when the server refuses a command, or cannot be reached.

    `created` are the ids of the same `create_tasks` that are certainly in the queue. It sends 1,000 tasks at a time.
    """

    http_status = 503

    def __init__(self, *args: object) -> None:
        self.created: list[str] = []
        super().__init__(*args)


class StorageUnavailableError(StorageError):
    """Raised when the server gave no answer in time. The call may be repeated."""


class StorageDeniedError(StorageError):
    """Raised when the server refuses the credentials or a command, or its certificate is not trusted."""


class StorageUnfitError(StorageError):
    """Raised at start when tasks would not be safe on this server. `findings` name each fault and its remedy."""

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings: list[str] = list(findings)
        super().__init__("; ".join(self.findings))


class StorageFullError(StorageError):
    """Raised when the server's memory is full, and has no room for new tasks. Running tasks go on."""


class QueueFullError(StorageFullError):
    """Raised when a queue would have more than `max_queue_size` unfinished tasks.

    `create_task` has created nothing. `create_tasks` sends 1,000 tasks at a time, each time all of them or none:
    `created` are the ids of the same call that are in the queue now, and `asked` is the number of tasks of the call.

    `retry_after` is an estimate of the seconds until there is room, from 1 to 300: the excess tasks, divided by the
    tasks finished per second lately; 10 if none was finished.
    """

    def __init__(
        self, limit: int, size: int, retry_after: float, *, created: Sequence[str] = (), asked: int | None = None
    ) -> None:
        self.asked = asked
        self.limit = limit
        self.size = size
        self.retry_after = retry_after
        text = f"the queue is full: {size} of at most {limit} unfinished tasks; try again in {retry_after:g} s"
        super().__init__(text if asked is None else f"{text}; {len(created)} of {asked} tasks are in the queue")
        self.created: list[str] = list(created)

    @property
    def http_headers(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds."""
        return {"Retry-After": str(math.ceil(self.retry_after))}

    @property
    def http_detail(self) -> str:
        """The message, which has only numbers."""
        return str(self)


class TenantFullError(QueueFullError):
    """Raised when a tenant would have more than `max_tenant_queue_size` waiting tasks. Other tenants are not refused.

    `tenant` is its name. Whether tasks of the same call are created is as for QueueFullError.
    """

    http_status = 429

    def __init__(self, tenant: str, limit: int, *, created: Sequence[str] = (), asked: int | None = None) -> None:
        super().__init__(limit, limit, 10, created=created, asked=asked)
        self.tenant = tenant
        text = f"tenant {shown(tenant)} has {limit} waiting tasks, the most that max_tenant_queue_size allows"
        self.args: tuple[Any, ...] = (
            text if asked is None else f"{text}; {len(self.created)} of {asked} tasks are in the queue",
        )
