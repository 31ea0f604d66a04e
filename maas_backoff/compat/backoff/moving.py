"""Waiting tasks of the original library, moved into a queue of this one."""

import json
import time
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import attrs

from maas_backoff.client.calls import QueueCalls
from maas_backoff.config import TaskConfig
from maas_backoff.domain.backoff import BackoffStrategy
from maas_backoff.domain.spec import TaskOptions
from maas_backoff.errors import ConfigError, InvalidValueError, PayloadError, TaskConflictError

PAGE = 500
"""Ids that are read from the original's queue at once."""

_WAITS = ("PENDING", "DOING")
"""States of a task that is not finished. A worker that died has left its tasks in the second one."""


@attrs.frozen
class Moved:
    """The ids of the tasks that were created, and of those that were in the queue; the reasons of others, by id."""

    created: tuple[str, ...]
    present: tuple[str, ...]
    skipped: Mapping[str, str]


class Execute(Protocol):
    """Sends a command to the server, and returns the reply."""

    def __call__(self, *command: str) -> Awaitable[Any]: ...


async def moved(calls: QueueCalls, execute: Execute, prefix: str, *, remove: bool) -> Moved:
    """Create the waiting tasks of the original's queue `prefix`. `remove` deletes each that is in the new queue."""
    created: list[str] = []
    present: list[str] = []
    skipped: dict[str, str] = {}
    for task_id in await _waiting_ids(execute, prefix):
        found = await execute("HGETALL", f"{prefix}:task:{task_id}")
        try:
            params, options = _task_of({_text(name): _text(value) for name, value in found.items()})
            ensured = await calls.ensure_task(params, task_id, **options)
        except (ConfigError, InvalidValueError, PayloadError, TaskConflictError, ValueError) as error:
            skipped[task_id] = str(error)
            continue
        (created if ensured.is_new else present).append(task_id)
        if remove:
            await execute("DEL", f"{prefix}:task:{task_id}")
            for name in ("pending_queue", "processing_queue"):
                await execute("ZREM", f"{prefix}:{name}", task_id)
    return Moved(tuple(created), tuple(present), skipped)


async def _waiting_ids(execute: Execute, prefix: str) -> list[str]:
    """Return all ids of the original's queue: in its order, before one of them is removed."""
    ids: list[str] = []
    while True:
        page = await execute("ZRANGE", f"{prefix}:pending_queue", str(len(ids)), str(len(ids) + PAGE - 1))
        ids += map(_text, page)
        if len(page) < PAGE:
            return ids


def _task_of(fields: Mapping[str, str]) -> tuple[dict[str, Any], TaskOptions]:
    """Return the params and the options of a stored task. Raises ValueError with the reason if there are none."""
    if fields.get("status") not in _WAITS:
        raise ValueError(f"its status is {fields.get('status', 'missing')!r}, and not one of {', '.join(_WAITS)}")
    try:
        params = json.loads(fields.get("param") or "{}")
    except ValueError:
        raise ValueError("its params are no JSON") from None
    # The original counts all attempts, and this library the retries after the first one.
    left = max(1, int(fields.get("max_retry_count", "3")) - int(fields.get("retry_count", "0")))
    options = TaskOptions(max_retry_count=left - 1)
    if "backoff_interval" in fields:
        interval = float(fields["backoff_interval"])
        options["backoff_interval"] = interval
        options["max_backoff_interval"] = max(interval, TaskConfig().max_backoff_interval)
    if "backoff_multiplier" in fields:
        options["backoff_multiplier"] = float(fields["backoff_multiplier"])
    if fields.get("backoff_strategy") in list(BackoffStrategy):
        options["backoff_strategy"] = fields["backoff_strategy"]
    due = float(fields.get("next_execution_time") or 0)
    if due > time.time():
        options["run_at"] = datetime.fromtimestamp(due, UTC)
    return params, options


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
