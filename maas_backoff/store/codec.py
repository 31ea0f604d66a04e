"""Tasks and settlements as the fields of a hash, and back.

A task's fields: p params, c creation record ("created_ms priority policy head_start_ms class"), o overrides,
s state (none: pending), t token, n attempt, k retries, l losses, z snoozes, q is a suspect, u due ms, b started ms,
f finished ms, y worker, g progress, m progress message, r result, e error, a0…a9 failed attempts, x cancel requested,
d settled by ("token:settle_id"), w waited for until ms. Short, because memory is counted per task.
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
    if settlement.result is not None:
        fields += "r", settlement.result
    if settlement.counts is not None:
        counts = settlement.counts
        fields += "k", str(counts.retry), "l", str(counts.lost), "z", str(counts.snooze)
        if counts.suspect or before.suspect:
            fields += "q", str(int(counts.suspect))
    error = settlement.error
    if error is not None:
        fields += "e", jsontext.plain(attrs.asdict(error))
        if info is not None:
            record = {**attrs.asdict(error), **attrs.asdict(info), "traceback": settlement.traceback}
            fields += f"a{(before.retry + before.lost) % KEPT_ATTEMPTS}", jsontext.plain(record)
    return fields


def settlement_args(
    task_id: str, precondition: str, token: int | None, status: str, settlement: Settlement, fields: list[str]
) -> list[str]:
    """Return one settle as settle.lua takes it."""
    return [
        task_id,
        precondition,
        "" if token is None else str(token),
        status,
        f"{settlement.delay * 1000:.0f}",
        f"{max(1, settlement.ttl):.0f}",
        str(len(fields) // 2),
        *fields,
    ]


def decode(
    task_id: str, biz_prefix: str, fields: Mapping[bytes, bytes], policy: Policy, now_ms: float, workers: int
) -> TaskEntity:
    """Return the task of a stored hash."""
    creation = Creation.from_record(fields[b"c"])
    state = fields.get(b"s", b"pending").decode()
    status = TaskStatus.PROCESSING if state == EXTERNAL else TaskStatus(state)
    due_ms = _number(fields, b"u") or creation.created_ms
    error = fields.get(b"e")
    completed = status is TaskStatus.COMPLETED
    return TaskEntity(
        task_id=task_id,
        biz_prefix=biz_prefix,
        task_params=_parsed(fields.get(b"p"), {}),
        status=status,
        priority=creation.priority,
        progress=100 if completed else _number(fields, b"g") or 0,
        progress_message=_text(fields, b"m"),
        retry_count=int(fields.get(b"k", 0)),
        max_retry_count=policy.max_retry_count,
        attempt=int(fields.get(b"n", 0)),
        lost_count=int(fields.get(b"l", 0)),
        snooze_count=int(fields.get(b"z", 0)),
        next_execute_time=at(due_ms) if status is TaskStatus.PENDING else None,
        created_at=at(creation.created_ms),
        started_at=_time(fields, b"b"),
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
