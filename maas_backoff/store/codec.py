"""Tasks and settlements as the fields of a hash, and back.

A task's fields: p creation (see _queue.lua: a line with time and policy, then the params), o overrides,
s state (none: pending), t token, n attempt, k counts ("retries losses snoozes suspect"; none: all 0), u due ms,
y held by ("started_ms worker"), f finished ms, g progress, m progress message, r result (none: null), e error,
a0…a9 failed attempts, x cancel requested, d settled by ("token:settle_id"), w waited for until ms.
Short, because memory is counted per task, and few: each costs the server time whenever a task is read or written.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import FailedAttempt, TaskEntity, TaskError, TaskStatus
from maas_backoff.domain.waiting import at, waiting_for
from maas_backoff.store.creation import Creation

KEPT_ATTEMPTS = 10
NO_COUNTS = Counts()

EXTERNAL = "external"
"""The stored state of a task that was marked processing from outside."""


@attrs.frozen
class AttemptInfo:
    """When and where the attempt ran that is being settled."""

    number: int
    started_ms: float
    ended_ms: float
    worker: str


def settlement_fields(
    settlement: Settlement, before: Counts, info: AttemptInfo | None, progress: tuple[float, str | None] | None = None
) -> list[str]:
    """Return the fields, names and values in turn, that a settlement sets; `before` are the counts so far."""
    fields: list[str] = []
    if progress is not None:
        fields += "g", f"{progress[0]:g}", "m", progress[1] or ""
    if settlement.result is not None and settlement.result != "null":
        fields += "r", settlement.result
    if settlement.counts is not None:
        counts = settlement.counts
        fields += "k", f"{counts.retry} {counts.lost} {counts.snooze} {counts.suspect:d}"
    error = settlement.error
    if error is not None:
        about = {"type": error.type, "message": error.message, "code": error.code}
        fields += "e", jsontext.plain(about)
        if info is not None:
            when = {"number": info.number, "started_ms": info.started_ms, "ended_ms": info.ended_ms}
            record = {**about, **when, "worker": info.worker, "traceback": settlement.traceback}
            fields += f"a{(before.retry + before.lost) % KEPT_ATTEMPTS}", jsontext.plain(record)
    return fields


def counts_of(stored: bytes | None) -> Counts:
    """Return how often a task has come back."""
    if stored is None:
        return NO_COUNTS
    retry, lost, snooze, suspect = map(int, stored.split())
    return Counts(retry, lost, snooze, suspect == 1)


def held_by(stored: bytes | None) -> tuple[float | None, str]:
    """Return when the last attempt was started, in ms, and the worker; from outside there is none."""
    if stored is None:
        return None, ""
    started, _, worker = stored.partition(b" ")
    return float(started), worker.decode()


def decode(
    task_id: str,
    biz_prefix: str,
    creation: Creation,
    fields: Mapping[bytes, bytes],
    policy: Policy,
    now_ms: float,
    workers: int,
) -> TaskEntity:
    """Return the task of a stored hash."""
    state = fields.get(b"s", b"pending").decode()
    status = TaskStatus.PROCESSING if state == EXTERNAL else TaskStatus(state)
    due_ms = _number(fields, b"u") or creation.created_ms
    error = fields.get(b"e")
    counts = counts_of(fields.get(b"k"))
    started_ms, _ = held_by(fields.get(b"y"))
    completed = status is TaskStatus.COMPLETED
    return TaskEntity(
        task_id=task_id,
        biz_prefix=biz_prefix,
        task_params=_parsed(creation.params, {}),
        status=status,
        priority=creation.priority,
        progress=100 if completed else _number(fields, b"g") or 0,
        progress_message=_text(fields, b"m"),
        retry_count=counts.retry,
        max_retry_count=policy.max_retry_count,
        attempt=int(fields.get(b"n", 0)),
        lost_count=counts.lost,
        snooze_count=counts.snooze,
        next_execute_time=at(due_ms) if status is TaskStatus.PENDING else None,
        created_at=at(creation.created_ms),
        started_at=None if started_ms is None else at(started_ms),
        finished_at=_time(fields, b"f") if status.finished else None,
        result=_parsed(fields.get(b"r"), None) if completed else None,
        error=None if completed or error is None else TaskError(**jsontext.parse(error)),
        attempts=_attempts(fields),
        token=int(fields.get(b"t", 0)),
        waiting_for=waiting_for(due_ms, now_ms, policy, workers) if status is TaskStatus.PENDING else None,
    )


def _parsed(text: bytes | None, otherwise: Any) -> Any:
    """What somebody wrote over by hand must not keep a task, or the page it is on, from being read."""
    try:
        return otherwise if text is None else jsontext.parse(text)
    except ValueError:
        return otherwise


def _attempts(fields: Mapping[bytes, bytes]) -> tuple[FailedAttempt, ...]:
    names = [b"a%d" % index for index in range(KEPT_ATTEMPTS)]
    records: list[dict[str, Any]] = [jsontext.parse(fields[name]) for name in names if name in fields]
    records.sort(key=lambda record: record["number"])
    return tuple(
        FailedAttempt(
            number=record["number"],
            started_at=at(record["started_ms"]),
            ended_at=at(record["ended_ms"]),
            worker=record["worker"],
            error=TaskError(record["type"], record["message"], record["code"]),
            traceback=record["traceback"],
        )
        for record in records
    )


def _number(fields: Mapping[bytes, bytes], name: bytes) -> float | None:
    value = fields.get(name)
    return None if value is None else float(value)


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = fields.get(name)
    return value.decode() if value else None


def _time(fields: Mapping[bytes, bytes], name: bytes) -> Any:
    value = _number(fields, name)
    return None if value is None else at(value)
