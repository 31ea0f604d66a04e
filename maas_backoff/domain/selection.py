"""The selection of tasks: conditions that a task matches or does not match."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self, cast

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.kind import NAMELESS, checked_kind
from maas_backoff.domain.labels import NO_LABELS, Labels, checked_label, checked_labels, has_label
from maas_backoff.domain.lane import checked_tenant
from maas_backoff.domain.status import TaskStatus, checked_status
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import InvalidValueError

Moment = datetime | timedelta
Statuses = tuple[TaskStatus, ...]

ORDER: Statuses = (
    TaskStatus.PENDING,
    TaskStatus.PROCESSING,
    TaskStatus.FAILED,
    TaskStatus.CANCELLED,
    TaskStatus.COMPLETED,
)
"""The order in which the states of a selection are read."""

CHANGED_IN: Mapping[str, Statuses] = {
    "update": (TaskStatus.PENDING,),
    "cancel": (TaskStatus.PENDING,),
    "cancel running": (TaskStatus.PENDING, TaskStatus.PROCESSING),
    "retry": (TaskStatus.FAILED, TaskStatus.CANCELLED),
    "delete": tuple(status for status in ORDER if status is not TaskStatus.PROCESSING),
}
"""The states in which each operation changes a task."""

LONGEST_TEXT = 1000
"""The most characters of a condition."""

_FARTHEST = timedelta(days=3650)


def _in_statuses(given: str | Iterable[str]) -> Statuses:
    chosen = {checked_status(one, *TaskStatus) for one in _each("status", "a state, or a list of states", given)}
    return tuple(status for status in ORDER if status in chosen)


def _in_labels(given: str | Iterable[str]) -> Labels:
    return checked_labels(tuple(_each("labels", "a label, or a list of labels", given)))


def _each(option: str, expected: str, given: object) -> Iterable[object]:
    """Return the values of a condition that has one value, or several."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Iterable):
        raise InvalidValueError(option, expected, given)
    return cast("Iterable[object]", given)


def _text(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= LONGEST_TEXT):
        raise InvalidValueError(attribute.name, f"text of 1 to {LONGEST_TEXT} characters, or None", value)


def _moment(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is None or (isinstance(value, datetime) and value.utcoffset() is not None):
        return
    least = -_FARTHEST if attribute.name.startswith("due") else timedelta()
    if not isinstance(value, timedelta) or not least <= value <= _FARTHEST:
        raise InvalidValueError(attribute.name, "an aware datetime, a timedelta of at most ten years, or None", value)


def _named(check: Callable[[object], object]) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    def validate(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
        if value is not None:
            check(value)

    return validate


def _checked_kind(value: object) -> object:
    return value if isinstance(value, str) and value == NAMELESS else checked_kind(value)


def _waiting(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and not (isinstance(value, str) and value in ("slot", "gpu")):
        raise InvalidValueError(attribute.name, '"slot", "gpu", or None', value)


@attrs.frozen(kw_only=True)
class Selection:
    """The tasks that match all of these conditions: `Selection(status="failed", kind="render", error="CUDA")`.

    Every field is optional. A selection without conditions has all tasks. Raises InvalidValueError for a wrong value.

    `status`: a state, or several. `kind`: `""` is the handler of `set_custom_task_handler`. `labels`: all of these; the
    label `customer` finds `customer=acme`, too. `error`: a text in the last error, "type: message". `error_type`: the
    whole type of the last error. `worker`: the name of the worker of the running or last attempt, or the name's
    beginning up to a `-`, such as the host or a `worker_name`. `gpu`: the UUID of the device of that attempt, or its
    beginning. `text`: a text in id, error, progress message or reason to wait. `params`: a text in the JSON text of the
    params. Only `params` makes the calls read the params, which takes longer. `error`, `text` and `params` find upper
    and lower case. `waiting_for`: as for `list_tasks`.

    The moments are aware datetimes, from `…_from` on and before `…_to`. A timedelta is the time before now for
    `created` and `ended`, and the time from now on for `due`. Only pending tasks are due, and only finished ones have
    ended.
    """

    status: Statuses = attrs.field(default=(), converter=_in_statuses)
    kind: str | None = attrs.field(default=None, validator=_named(_checked_kind))
    tenant: str | None = attrs.field(default=None, validator=_named(checked_tenant))
    labels: Labels = attrs.field(default=NO_LABELS, converter=_in_labels)
    id_prefix: str | None = attrs.field(default=None, validator=_text)
    error: str | None = attrs.field(default=None, validator=_text)
    error_type: str | None = attrs.field(default=None, validator=_text)
    worker: str | None = attrs.field(default=None, validator=_text)
    gpu: str | None = attrs.field(default=None, validator=_text)
    created_from: Moment | None = attrs.field(default=None, validator=_moment)
    created_to: Moment | None = attrs.field(default=None, validator=_moment)
    due_from: Moment | None = attrs.field(default=None, validator=_moment)
    due_to: Moment | None = attrs.field(default=None, validator=_moment)
    ended_from: Moment | None = attrs.field(default=None, validator=_moment)
    ended_to: Moment | None = attrs.field(default=None, validator=_moment)
    waiting_for: str | None = attrs.field(default=None, validator=_waiting)
    text: str | None = attrs.field(default=None, validator=_text)
    params: str | None = attrs.field(default=None, validator=_text, repr=lambda one: "None" if one is None else "…")

    @property
    def has_conditions(self) -> bool:
        """Whether a task may fail to match."""
        return self != Selection()

    @property
    def statuses(self) -> Statuses:
        """The states in which tasks may match, in the order in which they are read."""
        possible = self.status or ORDER
        if self._of_pending:
            possible = tuple(one for one in possible if one is TaskStatus.PENDING)
        if self.ended_from is not None or self.ended_to is not None:
            possible = tuple(one for one in possible if one.finished)
        return possible

    @property
    def _of_pending(self) -> bool:
        return any(one is not None for one in (self.due_from, self.due_to, self.waiting_for))

    def within(self, call: str, *allowed: TaskStatus) -> Self:
        """Return this selection for a call that changes tasks in some states only. Raises InvalidValueError."""
        if any(one not in allowed for one in self.status):
            raise InvalidValueError("status", f"{either(allowed)} for {call}", ", ".join(self.status))
        return attrs.evolve(self, status=self.status or allowed)

    def at(self, now: datetime) -> Self:
        """Return this selection with moments in the place of timedeltas."""
        moments: dict[str, Any] = {}
        for name in _MOMENTS:
            value = getattr(self, name)
            if isinstance(value, timedelta):
                moments[name] = now + value if name.startswith("due") else now - value
        return attrs.evolve(self, **moments) if moments else self

    def matches(self, task: TaskEntity) -> bool:
        """Return whether a task matches. `at` has replaced the timedeltas. `waiting_for` is left to the listing."""
        return (
            (not self.status or task.status in self.status)
            and (self.kind is None or task.kind == self.kind)
            and (self.tenant is None or task.tenant == self.tenant)
            and all(has_label(task.labels, label) for label in self.labels)
            and (self.id_prefix is None or task.task_id.startswith(self.id_prefix))
            and self._matches_attempt(task)
            and _is_within(task.created_at, self.created_from, self.created_to)
            and _is_within(task.next_execute_time, self.due_from, self.due_to)
            and _is_within(task.finished_at, self.ended_from, self.ended_to)
            and self._matches_text(task)
        )

    def _matches_attempt(self, task: TaskEntity) -> bool:
        return (
            (self.error_type is None or (task.error is not None and task.error.type == self.error_type))
            and (self.error is None or _has(self.error, task.error))
            and (self.worker is None or _is_worker(task.worker or "", self.worker))
            and (self.gpu is None or (task.gpu is not None and task.gpu.uuid.startswith(self.gpu)))
        )

    def _matches_text(self, task: TaskEntity) -> bool:
        places = (task.task_id, task.error, task.progress_message, task.waiting_for)
        return (self.text is None or any(_has(self.text, place) for place in places)) and (
            self.params is None or _has(self.params, jsontext.plain(task.task_params))
        )

    @classmethod
    def of_texts(cls, texts: Mapping[str, Sequence[str]]) -> Self:
        """Return the selection in texts by the names of FIELDS. Several labels, and states, are several texts.

        A time is `2h` (before now, for `due` from now on), or ISO 8601 with a zone. Raises InvalidValueError.
        """
        values: dict[str, Any] = {}
        for name, given in texts.items():
            if not given:
                continue
            if name == "state":
                values["status"] = () if "all" in given else tuple(one for text in given for one in text.split(","))
            elif name == "label":
                values["labels"] = tuple(checked_label(one) for one in given)
            else:
                values[name] = _moment_of(name, given[-1]) if name in _MOMENTS else given[-1]
        return cls(**values)


def either(statuses: Statuses) -> str:
    """Return states in words: "pending, failed or cancelled"."""
    *others, last = statuses
    return f"{', '.join(others)} or {last}" if others else last


@attrs.frozen
class SelectionProgress:
    """The progress of a call on a selection: tasks that were read, that matched, and that were changed so far."""

    read: int
    matched: int
    changed: int


OnProgress = Callable[[SelectionProgress], object]
"""Called after each page of about 200 tasks."""


_MOMENTS = ("created_from", "created_to", "due_from", "due_to", "ended_from", "ended_to")

FIELDS: Mapping[str, str] = {
    "state": "a state, several with commas between, or all",
    "kind": "the kind of the task; an empty one: the handler of tasks without a kind",
    "tenant": "the tenant of the task",
    "label": "a label; `key` finds key=value, too; may be given several times",
    "id_prefix": "the beginning of the id",
    "error": 'a text in the last error, "type: message"',
    "error_type": "the whole type of the last error",
    "worker": "the worker of the running or last attempt: its name, or the name's beginning up to a -",
    "gpu": "the GPU of that attempt: its UUID, or the beginning",
    "created_from": "created from this time on: 2h (before now), or ISO 8601",
    "created_to": "created before this time",
    "due_from": "pending, due from this time on: 10m (from now on), or ISO 8601",
    "due_to": "pending, due before this time",
    "ended_from": "ended from this time on: 2h (before now), or ISO 8601",
    "ended_to": "ended before this time",
    "text": "a text in id, error, progress or reason to wait",
    "params": "a text in the params; takes longer",
}
"""The conditions as a command and the dashboard name them, and their meanings."""

_TIME = re.compile(r"(-?)(\d{1,9}(?:\.\d{1,3})?) ?([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _moment_of(name: str, text: str) -> Moment:
    found = _TIME.fullmatch(text)
    try:
        if found is not None:
            return timedelta(**{_UNITS[found[3]]: float(found[2])}) * (-1 if found[1] else 1)
        moment = datetime.fromisoformat(text)
        if moment.utcoffset() is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):  # no time, or one that is not within the years 1 to 9999 in UTC
        pass
    expected = "a time such as 90s, 10m, 2h or 3d, or one of ISO 8601 with a zone, such as 2030-01-31T12:00Z"
    raise InvalidValueError(name, expected, text)


def _is_within(moment: datetime | None, first: Moment | None, end: Moment | None) -> bool:
    if first is None and end is None:
        return True
    assert not isinstance(first, timedelta)
    assert not isinstance(end, timedelta)
    return moment is not None and (first is None or moment >= first) and (end is None or moment < end)


def _has(wanted: str, text: object) -> bool:
    return text is not None and wanted.casefold() in str(text).casefold()


def _is_worker(worker: str, wanted: str) -> bool:
    return worker == wanted or worker.startswith(f"{wanted}-")
