"""The error codes of the original library, for programs that name them."""

from enum import Enum


class ErrorCode(Enum):
    """A number, and its meaning in words. This library raises errors instead; a handler may return a code."""

    SUCCESS = (200, "success")
    INTERNAL_ERROR = (500, "internal error")
    TASK_NOT_FOUND = (1001, "the task does not exist")
    TASK_ALREADY_EXISTS = (1002, "the task exists already")
    TASK_EXECUTE_FAILURE = (1003, "the task has failed")
    TASK_ID_EMPTY = (1008, "the task id is empty")
    TASK_EXECUTED = (1009, "the task is running")
    TASK_REPOSITORY_NOT_INIT = (1010, "the store is not ready")

    @property
    def code(self) -> int:
        """The number."""
        return self.value[0]

    @property
    def message(self) -> str:
        """The meaning."""
        return self.value[1]
