"""The connection of one process to one queue: the server, the names of the keys, the policies, the clock."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar

from maas_backoff.common.orphans import Origin
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.store.connect import Client
from maas_backoff.store.creation import Creation
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.keys import Keys
from maas_backoff.store.policies import Policies
from maas_backoff.store.scripts import Script
from maas_backoff.store.server import Server

_R = TypeVar("_R")


class QueueConnection:
    """The connection to one queue. It connects on first use."""

    def __init__(self, config: TaskBackoffConfig, embedded: EmbeddedServer | None = None) -> None:
        """Take the configuration; `embedded` is a shared server, which its owner stops."""
        self.config = config
        self.keys: Keys = Keys(config.task.biz_prefix)
        self.server: Server = Server(config.storage, self.keys.prefix, embedded)
        self.policies: Policies = Policies(config.task.policy)
        self.clock = ""
        """The time for scripts, in ms; empty for the server's own. Only tests set it."""
        self.process: Origin | None = None
        """The identity of this process for the registry of workers, which a worker sets; None if it cannot be told."""

    def over(self, client: Client) -> Self:
        """Return this connection over another client, for example the client of another event loop."""
        other = copy.copy(self)
        other.server = self.server.over(client)
        return other

    async def run(self, script: Script[_R], args: Sequence[Any], **own: str) -> _R:
        """Run a script until the server answers, or `storage.timeout` is over. `own` are the call's own keys."""
        return await self.server.run(script, self.keys.all(script.keys, **own), args)

    async def learn(self, creations: Iterable[Creation], deadline: float | None = None) -> None:
        """Read the policies that this process does not know yet. The deadline is as in `Server.patiently`."""
        unknown = self.policies.unknown(creation.policy for creation in creations)
        if unknown:
            key = self.keys("policies")
            texts = await self.server.patiently(lambda client: client.execute("HMGET", key, *unknown), deadline)
            self.policies.add(unknown, texts)

    async def aclose(self) -> None:
        """Close the connections, and leave the embedded server. The next call connects again."""
        await self.server.aclose()
