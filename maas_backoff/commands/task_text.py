"""One task in words, for `maas-backoff get`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from maas_backoff.commands.json_text import json_text
from maas_backoff.commands.text import moment, span
from maas_backoff.domain.retries_ahead import RetryAhead
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import FailedAttempt, TaskEntity
from maas_backoff.language import sentence, t
from maas_backoff.language.width import padded
from maas_backoff.logs import printable

_NAME_WIDTH = 10


def task_lines(task: TaskEntity, retries: Sequence[RetryAhead]) -> list[str]:
    """Return a task as lines: its state and why, its numbers and times, its failed attempts, its retries left."""
    facts = [(name, value) for name, value in _facts(task, datetime.now(UTC)) if value]
    lines = [f"{padded(t(name), _NAME_WIDTH)} {value}" for name, value in facts]
    for one in task.attempts:
        lines += _attempt_lines(one)
    return [*lines, *map(_retry_line, retries)]


def _facts(task: TaskEntity, now: datetime) -> Iterator[tuple[str, str]]:
    yield "task", t("{task} in queue {queue}", task=printable(task.task_id), queue=printable(task.biz_prefix))
    state, why = t(task.status), task.cancel_reason
    yield "state", t("{state}: {why}", state=state, why=t(why)) if why else state
    yield "kind", printable(task.kind)
    yield "tenant", t("{name}, cost {cost}", name=printable(task.tenant), cost=f"{task.cost:g}") if task.tenant else ""
    yield "limits", ", ".join(f"{printable(name)} {units:g}" for name, units in task.limits.items())
    yield "labels", printable(", ".join(task.labels))
    yield "waits for", printable(sentence(task.waiting_for or ""))
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
    return t(", ").join(filter(None, (percent, message)))


def _attempts(task: TaskEntity) -> str:
    """Return the counters in words; those that are 0 are left out."""
    used = "{number}, {n} of {most} retries used"
    told = [t(used, number=task.attempt, n=task.retry_count, most=task.max_retry_count)]
    if task.lost_count:
        told.append(t("lost with its worker {times}", times=_times(task.lost_count)))
    if task.oom_count:
        told.append(t("out of GPU memory {times}", times=_times(task.oom_count)))
    if task.snooze_count:
        told.append(t("snoozed {times}", times=_times(task.snooze_count)))
    return t(", ").join(told)


def _times(number: int) -> str:
    return t("once") if number == 1 else t("{n} times", n=f"{number:,}")


def _moment(at: datetime | None, now: datetime) -> str:
    if at is None:
        return ""
    seconds = (at - now).total_seconds()
    if seconds > 0:
        return t("{moment} (in {span})", moment=moment(at), span=span(seconds))
    return t("{moment} ({span} ago)", moment=moment(at), span=span(-seconds))


def _with_code(text: str, code: int | None) -> str:
    return text if code is None else t("{text}, code {code}", text=text, code=code)


def _attempt_lines(one: FailedAttempt) -> list[str]:
    time = span(max(0.0, (one.ended_at - one.started_at).total_seconds()))
    where = t("ran {span} until {moment}", span=time, moment=moment(one.ended_at))
    where += f"{t(', ')}{printable(one.worker)}" if one.worker else ""
    where = t("{where} on {gpu}", where=where, gpu=printable(one.gpu)) if one.gpu else where
    where = _with_code(where, one.error.code)
    where = t("{where}, ended by {option}", where=where, option=printable(one.ended_by)) if one.ended_by else where
    error = f"{printable(one.error.type)}: {printable(one.error.message)}"
    head = t("attempt {number}: {error} ({where})", number=one.number, error=error, where=where)
    return [head, *(f"  {printable(line)}" for line in one.traceback.splitlines())]


def _retry_line(one: RetryAhead) -> str:
    """Return when a retry would come: at a moment if the attempts before take no time."""
    is_exact = one.shortest == one.longest
    after = t("{span} after a failure", span=span(one.shortest))
    if not is_exact:
        text = "{span} to {longest} after a failure, as the backoff function decides"
        after = t(text, span=span(one.shortest), longest=span(one.longest))
    if one.earliest is None or one.latest is None:
        return t("retry {number}: {after}", number=one.number, after=after)
    when = moment(one.earliest)
    when = when if is_exact else t("{moment} to {latest}", moment=when, latest=moment(one.latest))
    return t("retry {number}: {when} at the earliest, {after}", number=one.number, when=when, after=after)
