"""The summary of the demo: the result of every line is read, compared and counted."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from maas_backoff.demo.server import ModelServer, generate
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity

_SHOWN = 5


def show(prompts: Mapping[str, str], tasks: Sequence[TaskEntity], model: ModelServer, seconds: float) -> int:
    """Print the summary; return 0 if every line has exactly one result, else 1."""
    faults = list(_faults(prompts, tasks, model.answered))
    print("\nSummary")
    for name, text in _rows(tasks, model, seconds):
        print(f"  {name:<12}{text}")
    if not faults:
        print(
            f"  {'check':<12}every line has exactly one result: {len(prompts)} read back, equal to the model's answer"
        )
        return 0
    for fault in faults[:_SHOWN]:
        print(f"  {'FAULT':<12}{fault}")
    print(f"  {'check':<12}FAILED: {len(faults)} of {len(prompts)} lines do not have exactly one result")
    return 1


def _faults(prompts: Mapping[str, str], tasks: Sequence[TaskEntity], answered: Mapping[str, int]) -> Iterator[str]:
    found = {task.task_id: task for task in tasks}
    times = Counter(task.task_id for task in tasks)
    for task_id, prompt in prompts.items():
        task = found.get(task_id)
        if task is None:
            yield f"{task_id}: its task is gone"
        elif times[task_id] != 1:
            yield f"{task_id}: {times[task_id]} tasks"
        elif task.status is not TaskStatus.COMPLETED:
            yield f"{task_id}: {task.status} ({task.error or task.waiting_for or 'no reason given'})"
        elif task.result != generate(prompt):
            yield f"{task_id}: has a result that is not the model's answer: {task.result!a:.60}"
        elif not answered.get(task_id):
            yield f"{task_id}: has a result, and the model server never answered"
    for task_id in found.keys() - prompts.keys():
        yield f"{task_id}: a task without a line"


def _rows(tasks: Sequence[TaskEntity], model: ModelServer, seconds: float) -> Iterator[tuple[str, str]]:
    states = Counter(task.status for task in tasks)
    yield "tasks", ", ".join(f"{states[status]} {status}" for status in TaskStatus)
    retries = [task.retry_count for task in tasks]
    yield "attempts", f"{sum(task.attempt for task in tasks)}"
    yield "retries", f"{sum(retries)}, of {sum(map(bool, retries))} lines; at most {max(retries, default=0)} of one"
    ended = [task for task in tasks if task.finished_at is not None]
    yield "pending", _spread([_waiting(task) for task in ended])
    yield "processing", _spread([_running(task) for task in ended])
    yield "throughput", f"{len(ended) / seconds:.0f} lines a second, {seconds:.1f} s in all"
    yield (
        "model",
        f"{model.answered.total()} answers, {model.refused.total()} refused (503), {model.broken.total()} broken (500)",
    )
    if several := sum(times > 1 for times in model.answered.values()):
        # Tasks run at least once: an answer that is lost with its lease is requested again.
        yield "", f"{several} lines were answered more than once, and one answer of each was accepted"


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
    return (
        "   ".join(f"{name} {ordered[math.ceil(share * len(ordered)) - 1]:.2f} s" for name, share in named)
        + " for a line"
    )
