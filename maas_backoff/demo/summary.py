"""The summary of the demo: the result of every line is read, compared and counted."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from maas_backoff.demo.server import ModelServer, generate
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.language import sentence, t
from maas_backoff.language.width import padded

_SHOWN = 5
_WIDTH = 12
"""Columns of the names in a summary."""


def show(prompts: Mapping[str, str], tasks: Sequence[TaskEntity], model: ModelServer, seconds: float) -> int:
    """Print the summary; return 0 if every line has exactly one result, else 1."""
    faults = list(_faults(prompts, tasks, model.answered))
    print(f"\n{t('Summary')}")
    for name, text in _rows(tasks, model, seconds):
        print(summary_line(name, text))
    if not faults:
        told = "every line has exactly one result: {n} read back, equal to the model's answer"
        print(summary_line(t("check"), t(told, n=len(prompts))))
        return 0
    for fault in faults[:_SHOWN]:
        print(summary_line(t("FAULT"), fault))
    told = "FAILED: {n} of {most} lines do not have exactly one result"
    print(summary_line(t("check"), t(told, n=len(faults), most=len(prompts))))
    return 1


def summary_line(name: str, text: str) -> str:
    """Return a line of a summary: a name and a text, both in the language of the command."""
    return f"  {padded(name, _WIDTH)}{text}"


def _faults(prompts: Mapping[str, str], tasks: Sequence[TaskEntity], answered: Mapping[str, int]) -> Iterator[str]:
    found = {task.task_id: task for task in tasks}
    times = Counter(task.task_id for task in tasks)
    for task_id, prompt in prompts.items():
        task = found.get(task_id)
        if task is None:
            yield t("{task}: its task is gone", task=task_id)
        elif times[task_id] != 1:
            yield t("{task}: {n} tasks", task=task_id, n=times[task_id])
        elif task.status is not TaskStatus.COMPLETED:
            why = str(task.error or "") or sentence(task.waiting_for or "") or t("no reason given")
            yield t("{task}: {state} ({why})", task=task_id, state=t(task.status), why=why)
        elif task.result != generate(prompt):
            told = "{task}: has a result that is not the model's answer: {result}"
            yield t(told, task=task_id, result=f"{task.result!a:.60}")
        elif not answered.get(task_id):
            yield t("{task}: has a result, and the model server never answered", task=task_id)
    for task_id in found.keys() - prompts.keys():
        yield t("{task}: a task without a line", task=task_id)


def _rows(tasks: Sequence[TaskEntity], model: ModelServer, seconds: float) -> Iterator[tuple[str, str]]:
    states = Counter(task.status for task in tasks)
    counts = [t("{n} {state}", n=states[status], state=t(status)) for status in TaskStatus]
    yield t("tasks"), t(", ").join(counts)
    retries = [task.retry_count for task in tasks]
    yield t("attempts"), f"{sum(task.attempt for task in tasks)}"
    told = "{n}, of {lines} lines; at most {most} of one"
    yield t("retries"), t(told, n=sum(retries), lines=sum(map(bool, retries)), most=max(retries, default=0))
    ended = [task for task in tasks if task.finished_at is not None]
    yield t("pending"), _spread([_waiting(task) for task in ended])
    yield t("processing"), _spread([_running(task) for task in ended])
    told = "{rate} lines a second, {seconds} s in all"
    yield t("throughput"), t(told, rate=f"{len(ended) / seconds:.0f}", seconds=f"{seconds:.1f}")
    answers, refused, broken = (one.total() for one in (model.answered, model.refused, model.broken))
    told = "{n} answers, {refused} refused (503), {broken} broken (500)"
    yield t("model"), t(told, n=answers, refused=refused, broken=broken)
    if several := sum(times > 1 for times in model.answered.values()):
        # Tasks run at least once: an answer that is lost with its lease is requested again.
        yield "", t("{n} lines were answered more than once, and one answer of each was accepted", n=several)


def _running(task: TaskEntity) -> float:
    """Return the seconds of all attempts of a task."""
    spans = [attempt.ended_at - attempt.started_at for attempt in task.attempts]
    # `attempts` has failed attempts only, also the last one of a failed task.
    if task.status is TaskStatus.COMPLETED and task.started_at is not None and task.finished_at is not None:
        spans.append(task.finished_at - task.started_at)
    return sum(spans, timedelta()).total_seconds()


def _waiting(task: TaskEntity) -> float:
    """Return the seconds in which a task waited for a slot or for its next retry."""
    assert task.finished_at is not None
    return (task.finished_at - task.created_at).total_seconds() - _running(task)


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "-"
    named = (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    seconds = [(name, f"{ordered[math.ceil(share * len(ordered)) - 1]:.2f}") for name, share in named]
    told = "   ".join(f"{name} {t('{number} s', number=number)}" for name, number in seconds)
    return t("{quantiles} for a line", quantiles=told)
