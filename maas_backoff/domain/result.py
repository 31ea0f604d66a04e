"""The result that a handler may return."""

import time
from typing import Any, Self

import attrs


@attrs.frozen
class ResultEntity:
    """The outcome of a handler as a value. Any other JSON value that a handler returns means success, too.

    `code` is 0 for success. `message` and `code` of a failure are kept with the failed attempt.
    `timestamp` is in seconds since 1970. The library uses neither `timestamp` nor `task_id`.
    """

    code: int = 0
    message: str = ""
    success: bool = True
    result: Any = attrs.field(default=None, repr=False)
    task_id: str = ""
    timestamp: int = attrs.field(factory=lambda: int(time.time()), eq=False)

    @classmethod
    def ok(cls, result: Any = None, task_id: str = "") -> Self:
        """Return a success; `result` is any JSON value."""
        return cls(result=result, task_id=task_id)

    @classmethod
    def fail(cls, code: int = -1, message: str = "", result: Any = None, task_id: str = "") -> Self:
        """Return a failure: the task is retried while it has retries left, then it is failed."""
        return cls(code=code, message=message, success=False, result=result, task_id=task_id)
