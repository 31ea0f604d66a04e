"""The fields of a task's hash, and tasks of them.

A task's fields: p creation (see _queue.lua: a line with time and policy, then the params), o overrides,
q demand of a GPU where it is not that of its creation, and the device to avoid ("<MiB>:<percent> uuid"),
s state (none: pending), t token, n attempt, k counts ("retries losses snoozes [ooms faults] suspect"; none: all 0),
c suspicion of a task that was lost, or whose batch failed ("blame cohort cohort_size"; none: each loss counts fully,
and a suspect runs alone),
u due ms, y runner ("started_ms worker", then a line "uuid index MiB"), f finished ms, g progress, m progress message,
r result (none: null), e error, a0…a9 failed attempts, x cancel requested, w why it was cancelled (`expired`),
d settled by ("token:settle_id").
Names are short, because each task takes memory for them. Each field costs the server time in every read and write.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.domain.labels import NO_LABELS, Labels
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import FailedAttempt, TaskEntity, TaskError
from maas_backoff.domain.waiting import at
from maas_backoff.store.creation import Creation
from maas_backoff.store.time_limits import TimeLimits

KEPT_ATTEMPTS = 10
PARAMS = "params"
"""The override for params that replaced the first ones. The first params stay stored for the idempotency check."""
TRACE = "tp"
"""The override for the place in a trace where the task was created. With a W3C traceparent alone, overrides have 64
bytes, and the task's hash still is a compact one. One byte more would take 160 bytes."""
LABELS = "lb"
"""The override for the labels of a task."""
NO_COUNTS = Counts()
EXPIRED, REQUESTED = "expired", "requested"
"""The reasons of a cancelled task: a deadline has passed, or a call asked for it."""

EXTERNAL = "external"
"""The stored state of a task that was marked processing from outside."""


def traced(overrides: str, trace: str) -> str:
    """Return stored overrides with the place in a trace added."""
    own: dict[str, Any] = jsontext.parse(overrides) if overrides else {}
    return jsontext.plain({**own, TRACE: trace})


def labels_of(own: Mapping[str, Any]) -> Labels:
    """Return the labels in stored overrides. If a person has overwritten them, return none."""
    labels = own.get(LABELS)
    return tuple(map(str, labels)) if isinstance(labels, list) else NO_LABELS  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - of JSON


def trace_of(stored: bytes | None) -> str:
    """Return the place in a trace that stored overrides have; empty if the creation was not traced."""
    trace = jsontext.parse(stored).get(TRACE) if stored else None
    return trace if isinstance(trace, str) else ""


def now_and_ahead(time: bytes) -> tuple[float, float]:
    """Return the queue's time in a reply, and how far it is ahead of the server's, in ms: see _time.lua."""
    now, _, ahead = time.partition(b" ")
    return float(now), float(ahead or 0)


def by_server_clock(fields: Mapping[bytes, bytes], ahead_ms: float) -> Mapping[bytes, bytes]:
    """Return a task's fields with times by the server's clock; the queue's clock is `ahead_ms` ahead of it."""
    if not ahead_ms:
        return fields
    shown = {name: _earlier(value, ahead_ms) if name in _TIMES else value for name, value in fields.items()}
    for name in _ATTEMPTS & shown.keys():
        record = jsontext.parse(shown[name])
        times = {key: record[key] - ahead_ms for key in ("started_ms", "ended_ms")}
        shown[name] = jsontext.plain({**record, **times}).encode()
    return shown


_TIMES = {b"p", b"u", b"y", b"f"}
"""Fields that begin with a time."""
_ATTEMPTS = {b"a%d" % index for index in range(KEPT_ATTEMPTS)}


def _earlier(value: bytes, by_ms: float) -> bytes:
    moment = re.match(rb"\d+", value)
    return value if moment is None else b"%d%s" % (int(moment[0]) - int(by_ms), value[moment.end() :])


def counts_of(stored: bytes | None, suspicion: bytes | None = None) -> Counts:
    """Return how often a task has come back, from its fields k and c."""
    if stored is None:
        return NO_COUNTS
    retry, lost, snooze, *gpu, suspect = map(int, stored.split())
    oom, fault = gpu or (0, 0)
    counts = Counts(retry, lost, snooze, suspect == 1, oom, fault)
    if not suspicion:
        return counts
    blame, cohort, size = suspicion.decode().split()
    if lost:  # else the field may be one of earlier losses, which an operation has forgiven
        counts = attrs.evolve(counts, blame=float(blame))
    return attrs.evolve(counts, cohort=cohort, cohort_size=int(size)) if suspect and cohort != "-" else counts


ComeBack = tuple[Counts, TaskError | None, tuple[FailedAttempt, ...]]
"""How often a task has come back, its last error, and its failed attempts."""

_NEVER_BACK: ComeBack = (NO_COUNTS, None, ())


def comeback_of_claim(stored: bytes | None, ahead_ms: float) -> ComeBack:
    """Return the counts, the error and the failed attempts in a claim of settle.lua.

    Each is a line: field k, field c of a suspect, field e, then the fields a<n>. A "+" before the first line says that
    earlier attempts have emitted something. If a person has overwritten the failures, return none of them: the task
    must run.
    """
    if stored is None:
        return _NEVER_BACK
    line, suspicion, *failures = stored.removeprefix(b"+").split(b"\n")
    counts = counts_of(line or None, suspicion)
    if not failures:
        return counts, None, ()
    error, *records = failures
    try:
        attempts = _in_order([jsontext.parse(record) for record in records], ahead_ms)
        return counts, TaskError(**jsontext.parse(error)) if error else None, attempts
    except (ValueError, TypeError, KeyError):
        return counts, None, ()


def demand_of(stored: bytes | None, policy: Policy) -> Demand | None:
    """Return a task's demand on a GPU: its field q if it ran out of memory before, else its policy's demand."""
    return Demand.parse(stored.split(b" ", 1)[0].decode()) if stored else policy.demand


def held_by(stored: bytes | None) -> tuple[float | None, str, GpuAssignment | None]:
    """Return the start of the last attempt in ms, its worker and its GPU, from the field y.

    For a task that was marked processing from outside, the worker is empty. Without the field y, the start is None.
    """
    if stored is None:
        return None, "", None
    line, _, device = stored.decode().partition("\n")
    started, _, worker = line.partition(" ")
    if not device:
        return float(started), worker, None
    uuid, index, mib = device.split(" ")
    return float(started), worker, GpuAssignment.of(uuid, int(index), int(mib))


def decode(
    task_id: str,
    biz_prefix: str,
    creation: Creation,
    fields: Mapping[bytes, bytes],
    policy: Policy,
    own: Mapping[str, Any],
    waiting_for: str | None,
    now_ms: float,
    ahead_ms: float = 0,
) -> TaskEntity:
    """Return the task of a stored hash; `own` are its overrides. `now_ms` and `fields` are by the server's clock.

    The deadlines are by the queue's clock, which is `ahead_ms` ahead. A pending task whose deadline has passed is
    cancelled, also if no worker has noted it yet.
    """
    state = fields.get(b"s", b"pending").decode()
    status = TaskStatus.PROCESSING if state == EXTERNAL else TaskStatus(state)
    lane, limits = Lane.of(creation.lane), TimeLimits.of(own)
    ended_ms = _number(fields, b"f") if status.finished else None
    reason = (_text(fields, b"w") or REQUESTED) if status is TaskStatus.CANCELLED else None
    if limits is not None and status is TaskStatus.PENDING and limits.expiry - ahead_ms <= now_ms:
        status, reason, ended_ms, waiting_for = TaskStatus.CANCELLED, EXPIRED, limits.expiry - ahead_ms, None
    due_ms = _number(fields, b"u") or creation.created_ms
    error = fields.get(b"e")
    counts = counts_of(fields.get(b"k"), fields.get(b"c"))
    started_ms, worker, gpu = held_by(fields.get(b"y"))
    completed = status is TaskStatus.COMPLETED
    return TaskEntity(
        task_id=task_id,
        biz_prefix=biz_prefix,
        task_params=own[PARAMS] if PARAMS in own else _parsed(creation.params, {}),
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
        finished_at=None if ended_ms is None else at(ended_ms),
        result=_parsed(fields.get(b"r"), None) if completed else None,
        error=None if completed or error is None else TaskError(**jsontext.parse(error)),
        attempts=_attempts(fields),
        token=int(fields.get(b"t", 0)),
        waiting_for=waiting_for,
        gpu=gpu,
        oom_count=counts.oom,
        kind=creation.kind,
        tenant=lane.tenant,
        cost=lane.cost,
        limits=lane.limits,
        deadline=deadline_of(limits, ahead_ms),
        cancel_reason=reason,
        labels=labels_of(own) if own else NO_LABELS,
        worker=worker or None,
    )


def deadline_of(limits: TimeLimits | None, ahead_ms: float) -> datetime | None:
    """Return the moment at which all attempts of a task end, by the server's clock; None if there is none."""
    return None if limits is None or not limits.complete_by else at(limits.complete_by - ahead_ms)


def _parsed(text: bytes | None, otherwise: Any) -> Any:
    """Return a field's value, or `otherwise` if a person has overwritten the field: its task must stay visible."""
    try:
        return otherwise if text is None else jsontext.parse(text)
    except ValueError:
        return otherwise


def _attempts(fields: Mapping[bytes, bytes]) -> tuple[FailedAttempt, ...]:
    names = [b"a%d" % index for index in range(KEPT_ATTEMPTS)]
    return _in_order([jsontext.parse(fields[name]) for name in names if name in fields])


def _in_order(records: list[dict[str, Any]], ahead_ms: float = 0) -> tuple[FailedAttempt, ...]:
    records.sort(key=lambda record: record["number"])
    return tuple(
        FailedAttempt(
            number=record["number"],
            started_at=at(record["started_ms"] - ahead_ms),
            ended_at=at(record["ended_ms"] - ahead_ms),
            worker=record["worker"],
            error=TaskError(record["type"], record["message"], record["code"]),
            traceback=record.get("traceback", ""),
            ended_by=record.get("ended_by", ""),
            gpu=record.get("gpu", ""),
        )
        for record in records
    )


def _number(fields: Mapping[bytes, bytes], name: bytes) -> float | None:
    value = fields.get(name)
    return None if value is None else float(value)


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = fields.get(name)
    return value.decode() if value else None
