"""The fields of a task's hash that a settlement sets. codec.py describes the fields."""

from typing import Any, NamedTuple

from maas_backoff.domain import jsontext
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskError
from maas_backoff.store.codec import EXPIRED, KEPT_ATTEMPTS, PARAMS


class AttemptInfo(NamedTuple):
    """The number, times, worker and GPU (its UUID, or "") of the attempt that is being settled."""

    number: int
    started_ms: float
    ended_ms: float
    worker: str
    gpu: str = ""


def settlement_fields(
    settlement: Settlement,
    before: Counts,
    info: AttemptInfo | None,
    progress: tuple[float, str | None] | None = None,
    overrides: bytes | None = None,
) -> list[str]:
    """Return the fields that a settlement sets, names and values in turn; `before` are the counts so far."""
    fields: list[str] = []
    if progress is not None:
        fields += "g", f"{progress[0]:g}", "m", progress[1] or ""
    if settlement.result is not None and settlement.result != "null":
        fields += "r", settlement.result
    if settlement.counts is not None:
        counts = settlement.counts
        gpu = f" {counts.oom} {counts.fault}" if counts.oom or counts.fault else ""
        fields += "k", f"{counts.retry} {counts.lost} {counts.snooze}{gpu} {counts.suspect:d}"
        if counts.cohort or counts.blame != counts.lost or counts.lost > before.lost:
            fields += "c", f"{counts.blame} {counts.cohort or '-'} {counts.cohort_size}"
    if settlement.gpu is not None:
        demand, avoid = settlement.gpu
        fields += "q", f"{demand.name} {avoid}"
    if settlement.params is not None:
        own: dict[str, Any] = jsontext.parse(overrides) if overrides else {}
        fields += "o", jsontext.plain({**own, PARAMS: jsontext.parse(settlement.params)})
    if settlement.expired:
        fields += "w", EXPIRED
    if settlement.error is not None:
        fields += _error_fields(settlement, settlement.error, before, info)
    return fields


def _error_fields(settlement: Settlement, error: TaskError, before: Counts, info: AttemptInfo | None) -> list[str]:
    about = {"type": error.type, "message": error.message, "code": error.code}
    fields = ["e", jsontext.plain(about)]
    if info is not None:
        when = {"number": info.number, "started_ms": info.started_ms, "ended_ms": info.ended_ms}
        record = {**about, **when, "worker": info.worker, "traceback": settlement.traceback}
        if settlement.ended_by:
            record["ended_by"] = settlement.ended_by
        if info.gpu:
            record["gpu"] = info.gpu
        failures = before.retry + before.lost + before.oom + before.fault
        fields += f"a{failures % KEPT_ATTEMPTS}", jsontext.plain(record)
    return fields
