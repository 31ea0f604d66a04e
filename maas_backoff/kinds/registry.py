"""The kinds of one scheduler."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from maas_backoff.errors import HandlerError

if TYPE_CHECKING:
    # A program that declares no kind imports none of these: see scheduler.py.
    from maas_backoff.client.client import QueueClient
    from maas_backoff.kinds.declaration import Declaration


class KindRegistry:
    """The declared kinds by their names, and the client that creates their tasks."""

    def __init__(self, client: "Callable[[], QueueClient]") -> None:
        """`client` returns the client of the running event loop."""
        self._client = client
        self._kinds: dict[str, Declaration] = {}

    def __iter__(self) -> "Iterator[Declaration]":
        return iter(self._kinds.values())

    def __len__(self) -> int:
        return len(self._kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the kinds, in the order of their declarations."""
        return tuple(self._kinds)

    def get(self, name: str) -> "Declaration | None":
        """Return the kind with this name, or None."""
        return self._kinds.get(name)

    def client(self) -> "QueueClient":
        """Return the client of the running event loop."""
        return self._client()

    def redirect(self, client: "Callable[[], QueueClient]") -> "Callable[[], QueueClient]":
        """Let another client create the tasks from now on; return the client before."""
        before, self._client = self._client, client
        return before

    def add(self, kind: "Declaration") -> None:
        """Add a kind. Raises HandlerError if its name is taken, or its function cannot be used."""
        if kind.name in self._kinds:
            raise HandlerError(f"kind {kind.name!r}: the scheduler has this kind; give the second one a `name=`")
        kind.check()
        self._kinds[kind.name] = kind
