"""The base of all parts of SyncScheduler: the calls that are awaited, and a way to wait for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from maas_backoff.client.calls import QueueCalls

R = TypeVar("R")


class SyncPart(ABC):
    """Blocking calls."""

    @property
    @abstractmethod
    def _calls(self) -> QueueCalls:
        """The calls that are awaited."""
        ...

    @abstractmethod
    def _run(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Make a call in the event loop of blocking calls, and wait for its result."""
        ...
