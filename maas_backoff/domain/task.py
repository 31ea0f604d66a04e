"""A task and its state."""

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol, Self

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.emission import TEXT, Emission, checked_line, checked_part
from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.labels import NO_LABELS
from maas_backoff.domain.lane import NO_LIMITS, NO_TENANT, checked_used
from maas_backoff.domain.progress import checked_message, checked_progress
from maas_backoff.domain.status import TaskStatus
from maas_backoff.errors import InvalidValueError


@attrs.frozen
class TaskError:
    """The error of an attempt or a task.

    `type` is the exception's class name, or one of: `failed` (ResultEntity.fail), `timeout`, `crashed`
    (the child process died), `lease_lost`, `discarded`, `snoozed_too_often`, `not_serializable`, `bad_arguments` (they
    do not fit the parameters of the kind's function), `wrong_outcomes` (a batch's function did not return one for each
    task), `corrupt` (the stored params are no JSON), `unknown_outcome` (the outcome could not be settled).
    """

    type: str
    message: str
    code: int | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@attrs.frozen
class FailedAttempt:
    """One failed attempt: its number, times, worker and error.

    `ended_by` is the option that made this failure final, `retry_on` or `give_up_on`; else it is empty. `gpu` is the
    UUID of its device; empty: it had none, or ran in a release that did not note it.
    """

    number: int
    started_at: datetime
    ended_at: datetime
    worker: str
    error: TaskError
    traceback: str = ""
    ended_by: str = ""
    gpu: str = ""


class Receiver(Protocol):
    """Receives the reports of handlers, each with the token of its attempt. One receiver serves all attempts."""

    def progressed(self, token: int, progress: float, message: str | None, /) -> None:
        """Take the progress of an attempt, 0..100, and a message."""
        ...

    def used(self, token: int, cost: float | None, limits: Mapping[str, float], /) -> None:
        """Take what an attempt has used: its cost, or None, and units by limit."""
        ...

    def emission(self, token: int, /) -> Emission | None:
        """Return what an attempt emits, made with the first call; None: the attempt has ended."""
        ...


def _shown_limits(limits: Mapping[str, float]) -> str:
    return repr({**limits})


@attrs.frozen(slots=False)  # made for each task: a third of the time
class TaskEntity:
    """A task at the moment when it was read. Times are aware datetimes in UTC, by the server's clock.

    `attempt` counts claims from 1 and never goes back. `retry_count` counts the failed attempts that were retried;
    `max_retry_count` limits only this. `token` is a fencing token for your own writes: it grows from claim to claim
    over the whole queue, and is below 2**53. It is never below the server's clock in microseconds: a server that has
    lost its data gives no token twice if that clock is right. `worker` is the name of the worker of the running
    attempt, else of the last one; None for a task that `mark_task_processing` has taken. `gpu` is the device of that
    attempt, if the attempt asked for one.
    `oom_count` counts the attempts that ran out of GPU memory and came back without using a retry: a handler may shrink
    its batch. `kind` is the name of the function that runs the task; empty: the handler of `set_custom_task_handler`.
    `deadline` is the moment at which `complete_within` ends all attempts. `cancel_reason` says why a task is cancelled:
    `expired` if a deadline has passed, `requested` by a call. `cost` and `limits` are those of its creation: what its
    tenant pays for each attempt, and the units that each attempt uses of each limit. `labels` select tasks.

    For its handler, a task has the failures of earlier attempts: `error` is the last one, or None, and `attempts` are
    the last ten, without their tracebacks.

    The `repr` has neither params nor result. A copy of the entity of a handler reports as the entity does. A pickled
    copy does not: `update_progress`, `used`, `emit` and `log` do nothing in another process.
    """

    task_id: str
    biz_prefix: str
    task_params: dict[str, Any] = attrs.field(repr=False)
    status: TaskStatus = TaskStatus.PENDING
    priority: int = 0
    progress: float = 0
    progress_message: str | None = None
    retry_count: int = 0
    max_retry_count: int = 3
    attempt: int = 0
    lost_count: int = 0
    snooze_count: int = 0
    next_execute_time: datetime | None = None
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: Any = attrs.field(default=None, repr=False)
    error: TaskError | None = None
    attempts: tuple[FailedAttempt, ...] = ()
    token: int = 0
    waiting_for: str | None = None
    gpu: GpuAssignment | None = None
    oom_count: int = 0
    kind: str = NAMELESS
    tenant: str = NO_TENANT
    cost: float = 1
    limits: Mapping[str, float] = attrs.field(default=NO_LIMITS, repr=_shown_limits)
    deadline: datetime | None = None
    cancel_reason: str | None = None
    labels: tuple[str, ...] = NO_LABELS
    worker: str | None = None
    _receiver: Receiver | None = attrs.field(default=None, repr=False, eq=False)

    @property
    def param(self) -> str:
        """The params as JSON text: the name and the form of the original `maas-backoff-scheduler`."""
        return jsontext.plain(self.task_params)

    def update_progress(self, progress: float, message: str | None = None) -> None:
        """Report the progress of this attempt, 0 to 100, from a coroutine, a thread or a child process. Not awaited.

        The newest value is sent within a tenth of a second, with 2000 characters of the message. Does nothing outside
        of the handler that was called with this entity. Raises InvalidValueError for a value outside 0..100, or a
        message that is no text.
        """
        checked_progress(progress)
        message = checked_message(message)
        if self._receiver is not None:
            self._receiver.progressed(self.token, progress, message)

    def used(self, cost: float | None = None, limits: Mapping[str, float] | None = None) -> None:
        """Report what this attempt really uses, from a coroutine, a thread or a child process. Not awaited.

        When the attempt began, its tenant and its limits were charged with `cost` and `limits` of the creation. When it
        ends, whatever its outcome, the difference to `task.used(cost=3.2, limits={"openai": 830})` is charged, or given
        back. Numbers are from 0 on. The last of several calls counts, for the cost and for each limit. If the task
        comes back, its next attempt is charged again with `cost` and `limits` of the creation.

        Does nothing for a task without a tenant and limits, or outside of the handler that was called with this entity.
        Raises InvalidValueError for a wrong number, or a limit that the task does not name.
        """
        checked, units = checked_used(cost, limits)
        if not self.tenant and not self.limits:
            return
        if unknown := sorted(units.keys() - self.limits.keys()):
            named = ", ".join(self.limits) or "none"
            raise InvalidValueError("limits", f"limits that the task names ({named})", unknown)
        if self._receiver is not None:
            self._receiver.used(self.token, checked, units)

    def emit(self, part: object) -> None:
        """Add a part to the stream of the task: a text, or any JSON value.

        Works in a coroutine, a thread and a child process, and is not awaited. `scheduler.stream` yields the parts in
        any process. Texts that are emitted within some 20 ms arrive as one part; an empty text is left out. The first
        part of a later attempt takes the place of the parts of earlier attempts, unless `keep_emitted` was called.

        Does nothing outside of the handler that was called with this entity. Raises PayloadError for a value that is no
        JSON, or text with half of an emoji, and StreamFullError if the stream would have more than `max_stream_bytes`.
        """
        checked = checked_part(part)
        emission = self._emission()
        if checked is not None and emission is not None:
            emission.add(checked)

    def keep_emitted(self) -> None:
        """Keep the parts of earlier attempts: the parts of this attempt come after them, and no reader begins anew.

        Call it before the first `emit`, and go on where `emitted` ends. Does nothing outside of the handler, and for a
        task without earlier parts. Raises StreamError after the first `emit`.
        """
        emission = self._emission()
        if emission is not None:
            emission.keep()

    @property
    def emitted(self) -> tuple[Any, ...]:
        """The parts of the stream, for the handler: texts and JSON values.

        Until this attempt emits its first part, they are those of earlier attempts. Texts may have been joined. Outside
        of the handler there are none: read the stream with `scheduler.stream`.
        """
        emission = self._emission()
        return () if emission is None else tuple(part.data for part in emission.parts())

    def emitted_text(self) -> str:
        """Return the texts among `emitted` as one text: `return task.emitted_text()` makes the stream the result."""
        emission = self._emission()
        return "" if emission is None else "".join(part.text for part in emission.parts() if part.form == TEXT)

    def log(self, line: str) -> None:
        """Add a line to the log of the task, from a coroutine, a thread or a child process. Not awaited.

        `scheduler.logs(task_id)`, `maas-backoff logs ID` and the dashboard show the lines of all attempts: about the
        last 1,000, with 2,000 characters each. Does nothing outside of the handler that was called with this entity.
        Raises PayloadError unless the line is text.
        """
        checked = checked_line(line)
        emission = self._emission()
        if emission is not None:
            emission.log(checked)

    def _emission(self) -> Emission | None:
        return None if self._receiver is None else self._receiver.emission(self.token)

    def connected(self, receiver: Receiver) -> Self:
        """Return this entity, fresh from the store, with a receiver of its reports."""
        self.__dict__["_receiver"] = receiver  # a copy of 30 fields per attempt would be the alternative
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "limits": {**self.limits}, "_receiver": None}

    def __copy__(self) -> Self:
        return self._copied(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._copied({**deepcopy(self.__getstate__(), memo), "_receiver": self._receiver})

    def _copied(self, values: Mapping[str, Any]) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__.update(values)
        return copied

    def to_dict(self) -> dict[str, Any]:
        """Return the task as values for JSON; times in ISO 8601."""
        return {name: _jsonable(value) for name, value in self.__dict__.items() if name != "_receiver"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], receiver: Receiver | None = None) -> Self:
        """Return the task in a dict of `to_dict`, which reports to `receiver`."""
        fields = _with_times(data, "next_execute_time", "created_at", "started_at", "finished_at", "deadline")
        fields["status"] = TaskStatus(fields["status"])
        fields["error"] = fields["error"] and TaskError(**fields["error"])
        fields["attempts"] = tuple(map(_attempt, fields["attempts"]))
        fields["gpu"] = GpuAssignment.from_dict(fields["gpu"])
        fields["labels"] = tuple(fields["labels"])
        fields["receiver"] = receiver
        return cls(**fields)


_PLAIN = frozenset({str, int, float, bool, dict, list, type(None)})


def _jsonable(value: Any) -> Any:
    if type(value) in _PLAIN:  # most values are plain, and `match` takes several times as long
        return value
    match value:
        case datetime():
            return value.isoformat()
        case MappingProxyType():  # `limits`, the only read-only mapping
            return {**value}  # pyright: ignore[reportUnknownVariableType] - of texts and numbers
        case tuple():
            return [_jsonable(item) for item in value]  # pyright: ignore[reportUnknownVariableType] - `attempts` or `labels`
        case TaskError() | FailedAttempt() | GpuAssignment():
            return {field.name: _jsonable(getattr(value, field.name)) for field in attrs.fields(type(value))}
        case _:
            return value


def _attempt(data: Mapping[str, Any]) -> FailedAttempt:
    fields = _with_times(data, "started_at", "ended_at")
    fields["error"] = TaskError(**fields["error"])
    return FailedAttempt(**fields)


def _with_times(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {**data, **{name: datetime.fromisoformat(data[name]) for name in names if data.get(name)}}
