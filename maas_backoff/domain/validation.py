"""The validation of a new task, before it is sent to the server."""

import base64
import secrets
import time
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from maas_backoff.domain.seconds import in_seconds
from maas_backoff.domain.spec import Reschedule, TaskOptions
from maas_backoff.errors import InvalidValueError, PayloadError

LONGEST_ID = 256
LARGEST_PRIORITY = 1000
_TIME = 2**42 - 1  # what 7 characters hold
HORIZON = timedelta(days=3650)
"""The longest time ahead for which a task may be scheduled."""

# Base 64 with its digits in the order of their bytes, so that ids sort by the time of their creation.
_DIGITS = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz",
)


def new_task_id() -> str:
    """Return a new id: 16 characters, 7 of the time in ms and 9 (54 bits) random.

    The time starts over in 2109, and every 139 years: ids stay unique, and sort by time until then.
    """
    return _digits((_now() | secrets.randbits(54)).to_bytes(12))


def new_task_ids(number: int) -> list[str]:
    """Return `number` new ids; each takes half of the time of `new_task_id`."""
    now = _now()
    random = secrets.token_bytes(7 * number)  # two bits of each seven bytes are left over
    values = [now | int.from_bytes(random[at : at + 7]) >> 2 for at in range(0, len(random), 7)]
    text = _digits(b"".join([value.to_bytes(12) for value in values]))
    return [text[at : at + 16] for at in range(0, len(text), 16)]


def _now() -> int:
    return (time.time_ns() // 1_000_000 & _TIME) << 54


def _digits(packed: bytes) -> str:
    return base64.b64encode(packed).translate(_DIGITS).decode()


def rename(error: InvalidValueError, option: str) -> None:
    """Give the option of an error another name: the one that the caller knows it by."""
    error.args = (option + str(error).removeprefix(error.option),)
    error.option = option


def own_name(option: str, given: Collection[str]) -> str:
    """Return the name that an option of the configuration has in a call: `exec_timeout`, not `threadpool.exec_timeout`.

    `given` are the names of all options of the call: one of them may stand for another.
    """
    name = option.rpartition(".")[2]
    return "min_gpu_utilization" if name == "max_gpu_utilization" and name not in given else name


def checked_task_id(task_id: object) -> str:
    """Return `task_id` if it is valid. Ids are stored unchanged, and never parsed."""
    if not isinstance(task_id, str) or not 1 <= len(task_id) <= LONGEST_ID or not task_id.isprintable():
        raise InvalidValueError("task_id", f"text of 1 to {LONGEST_ID} printable characters", task_id)
    return task_id


def checked_params(params: object, option: str = "task_params") -> Mapping[str, object]:
    """Return `params` if they are a dict. `jsontext.canonical` checks their values."""
    if not isinstance(params, dict):
        raise PayloadError(option, "a dict", params)
    return params  # pyright: ignore[reportUnknownVariableType] - a user's dict; jsontext.canonical checks each key


def checked_priority(priority: object) -> int:
    """Return `priority` if it is a whole number from -1000 to 1000."""
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > LARGEST_PRIORITY:
        expected = f"a whole number from -{LARGEST_PRIORITY} to {LARGEST_PRIORITY}"
        raise InvalidValueError("priority", expected, priority)
    return priority


def checked_due(options: Reschedule) -> float | datetime:
    """Return when the task is due: seconds from now, or an aware datetime."""
    if "run_at" in options:
        if "delay" in options:
            raise InvalidValueError("run_at", "either delay or run_at", options["run_at"])
        return _checked_moment(options["run_at"])
    delay = options.get("delay", 0)
    seconds = in_seconds(delay)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= HORIZON.total_seconds():
        raise InvalidValueError("delay", "seconds from 0 to ten years, or a timedelta", delay)
    return seconds


def _checked_moment(run_at: object) -> datetime:
    if not isinstance(run_at, datetime) or run_at.utcoffset() is None:
        raise InvalidValueError("run_at", "a datetime with a time zone", run_at)
    if run_at > datetime.now(run_at.tzinfo) + HORIZON:
        raise InvalidValueError("run_at", "a moment within ten years", run_at)
    return run_at


def overrides_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task that override the queue's policy. Raises InvalidValueError for unknown names."""
    for name in options:
        if name not in _OPTIONS:
            raise InvalidValueError(name, "one of the options " + ", ".join(sorted(_OPTIONS)), options[name])
    return {name: value for name, value in options.items() if name not in _OF_CREATION}


_OF_CREATION = frozenset({"priority", "delay", "run_at", "tenant", "cost", "limits", "labels"})
"""Options that are no overrides: they are stored in the task's creation."""
_OPTIONS = frozenset(TaskOptions.__annotations__)
