"""The base of all parts of TaskBackoffScheduler that make calls on a queue."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # see scheduler.py: the client is imported with the first scheduler
    from maas_backoff.client.client import QueueClient


class CallsPart(ABC):
    """Calls that need the client of the running event loop."""

    @property
    @abstractmethod
    def _client(self) -> "QueueClient":
        """The client of the running event loop."""
        ...
