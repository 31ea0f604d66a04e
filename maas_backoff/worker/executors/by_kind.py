"""The executors of a worker that runs several kinds of tasks in several ways."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from maas_backoff.domain.outcome import HandlerOutcome
from maas_backoff.worker.executors.base import BatchOutcome, Call, CallOfBatch, ExecutorGroup
from maas_backoff.worker.setback import Setback


class ExecutorByKind:
    """Runs each call with the executor of its task's kind. The executors share the records of their children."""

    def __init__(self, by_kind: Mapping[str, ExecutorGroup]) -> None:
        self._by_kind = by_kind
        self.groups: Sequence[ExecutorGroup] = list(dict.fromkeys(by_kind.values()))
        self.stoppable: bool = any(group.stoppable for group in self.groups)

    def stops(self, kind: str, /) -> bool:
        """Return whether the executor of the kind can stop a handler."""
        return self._by_kind[kind].stops(kind)

    @property
    def setback(self) -> Setback | None:
        """The record of children or threads that could not be started, which all executors share."""
        return next((group.setback for group in self.groups if group.setback is not None), None)

    @property
    def child_ended(self) -> asyncio.Event:
        """Set when a child process has ended. Either all executors have children, and share it, or none has."""
        return self.groups[0].child_ended

    def run(self, call: Call) -> Coroutine[Any, Any, HandlerOutcome]:
        """Call the handler once."""
        return self._by_kind[call.task.kind].run(call)

    def run_batch(self, call: CallOfBatch) -> Coroutine[Any, Any, BatchOutcome]:
        """Call the handler once for a batch."""
        return self._by_kind[call.task.kind].run_batch(call)

    async def aclose(self) -> None:
        """Close all executors. Raises the error of the first that raised one."""
        errors: list[BaseException] = []
        for group in self.groups:
            try:
                await group.aclose()
            except BaseException as error:  # noqa: BLE001 - the others must be closed, too
                errors.append(error)
        if errors:
            raise errors[0]
