"""The tracing spans of operations."""

from contextlib import AbstractContextManager, nullcontext

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.config.peer import peer_of
from maas_backoff.domain.tracing import SettleSpan, Tracing


class _NoSpan:
    """Do nothing: stands in for a span where no operation is traced."""

    def link(self, task_id: str, trace: str) -> None: ...

    def changed(self, number: int) -> None: ...


NO_SPAN: SettleSpan = _NoSpan()


class OperationSpans:
    """The spans of the operations on one queue that end tasks; without `tracing`, none."""

    def __init__(self, config: TaskBackoffConfig, tracing: Tracing | None) -> None:
        self._queue = config.task.biz_prefix
        self._tracing = tracing
        self._peer = None if tracing is None else peer_of(config.storage)

    def around(self, name: str, task_id: str = "") -> AbstractContextManager[SettleSpan]:
        """Trace an operation on one task, or on those of a selection."""
        if self._tracing is None:
            return nullcontext(NO_SPAN)
        return self._tracing.operation(self._queue, name, task_id, self._peer)
