"""The reports of a handler in a child process: progress, use, and what it emits, passed on at the parent's end."""

from collections.abc import Sequence
from contextlib import suppress

from maas_backoff.domain import emission
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import StreamError
from maas_backoff.worker.executors.base import Call, CallOfBatch
from maas_backoff.worker.executors.frames import Record


def pass_on(call: Call | CallOfBatch, record: Record) -> None:
    """Pass on a report to the task of a call. Raises ValueError for a report that no handler can make."""
    _report(_reporter(call, record), record)


def _reporter(call: Call | CallOfBatch, record: Record) -> TaskEntity:
    """Return the task of a report: one of the batch, if there is one. Raises ValueError for one that is not there."""
    if "member" not in record:
        return call.task
    members: Sequence[Call] = getattr(call, "members", ())
    place = record["member"]
    if not isinstance(place, int) or not 0 <= place < len(members):
        raise ValueError("a report of a task that is not in the batch")
    return members[place].task


def _report(task: TaskEntity, record: Record) -> None:
    """Pass a report of the handler on. Raises ValueError for one that no handler can make."""
    if "progress" in record:
        task.update_progress(record["progress"], record["message"])
    elif "emitted" in record:
        _emit(task, record["emitted"], record["text"])
    else:
        task.used(record["used"], record["limits"])


def _emit(task: TaskEntity, form: str, text: str) -> None:
    with suppress(StreamError):  # the server does not take it; the child was not told
        match form:
            case emission.TEXT | emission.JSON:
                task.emit(emission.Part(form, text).data)
            case emission.LINE:
                task.log(text)
            case _:
                task.keep_emitted()
