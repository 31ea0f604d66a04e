"""One task in words, for `maas-backoff get`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from maas_backoff.commands.json_text import json_text
from maas_backoff.commands.text import moment, span
from maas_backoff.domain.retries_ahead import RetryAhead
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import FailedAttempt, TaskEntity
from maas_backoff.logs import printable

_NAME_WIDTH = 10


def task_lines(task: TaskEntity, retries: Sequence[RetryAhead]) -> list[str]:
    """Return a task as lines: its state and why, its numbers and times, its failed attempts, its retries left."""
    facts = [(name, value) for name, value in _facts(task, datetime.now(UTC)) if value]
    lines = [f"{name:{_NAME_WIDTH}} {value}" for name, value in facts]
    for one in task.attempts:
        lines += _attempt_lines(one)
    return [*lines, *map(_retry_line, retries)]


def _facts(task: TaskEntity, now: datetime) -> Iterator[tuple[str, str]]:
    yield "task", f"{printable(task.task_id)} in queue {printable(task.biz_prefix)}"
    yield "state", f"{task.status}: {task.cancel_reason}" if task.cancel_reason else task.status
    yield "kind", printable(task.kind)
    yield "tenant", f"{printable(task.tenant)}, cost {task.cost:g}" if task.tenant else ""
    yield "limits", ", ".join(f"{printable(name)} {units:g}" for name, units in task.limits.items())
    yield "labels", printable(", ".join(task.labels))
    yield "waits for", printable(task.waiting_for or "")
    yield "progress", _progress(task)
    yield "error", "" if task.error is None else printable(_with_code(str(task.error), task.error.code))
    yield "attempts", _attempts(task)
    yield "priority", f"{task.priority}"
    yield "worker", printable(task.worker or "")
    yield "gpu", f"{task.gpu.index} ({task.gpu.uuid}), {task.gpu.memory_gb:.3g} GiB" if task.gpu else ""
    yield "created", _moment(task.created_at, now)
    yield "started", _moment(task.started_at, now)
    yield "due", _moment(task.next_execute_time, now)
    yield "deadline", _moment(task.deadline, now)
    yield "ended", _moment(task.finished_at, now)
    yield "params", json_text(task.task_params)
    yield "result", json_text(task.result) if task.status is TaskStatus.COMPLETED else ""


def _progress(task: TaskEntity) -> str:
    """Return the progress of an attempt that runs, or its last message."""
    message = printable(task.progress_message or "")
    percent = f"{task.progress:g} %" if task.status is TaskStatus.PROCESSING else ""
    return ", ".join(filter(None, (percent, message)))


def _attempts(task: TaskEntity) -> str:
    """Return the counters in words; those that are 0 are left out."""
    gone = {"lost with its worker": task.lost_count, "out of GPU memory": task.oom_count, "snoozed": task.snooze_count}
    told = [f"{task.attempt}", f"{task.retry_count} of {task.max_retry_count} retries used"]
    return ", ".join([*told, *(f"{words} {_times(number)}" for words, number in gone.items() if number)])


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _moment(at: datetime | None, now: datetime) -> str:
    if at is None:
        return ""
    seconds = (at - now).total_seconds()
    return f"{moment(at)} ({f'in {span(seconds)}' if seconds > 0 else f'{span(-seconds)} ago'})"


def _with_code(text: str, code: int | None) -> str:
    return text if code is None else f"{text}, code {code}"


def _attempt_lines(one: FailedAttempt) -> list[str]:
    time = span(max(0.0, (one.ended_at - one.started_at).total_seconds()))
    where = f"ran {time} until {moment(one.ended_at)}"
    where += f", {printable(one.worker)}" if one.worker else ""
    where += f" on {printable(one.gpu)}" if one.gpu else ""
    where = _with_code(where, one.error.code)
    where += f", ended by {printable(one.ended_by)}" if one.ended_by else ""
    head = f"attempt {one.number}: {printable(one.error.type)}: {printable(one.error.message)} ({where})"
    return [head, *(f"  {printable(line)}" for line in one.traceback.splitlines())]


def _retry_line(one: RetryAhead) -> str:
    """Return when a retry would come: at a moment if the attempts before take no time."""
    is_exact = one.shortest == one.longest
    after = f"{span(one.shortest)} after a failure"
    if not is_exact:
        after = f"{span(one.shortest)} to {span(one.longest)} after a failure, as the backoff function decides"
    if one.earliest is None or one.latest is None:
        return f"retry {one.number}: {after}"
    when = moment(one.earliest) if is_exact else f"{moment(one.earliest)} to {moment(one.latest)}"
    return f"retry {one.number}: {when} at the earliest, {after}"
