"""The store of one queue: a connection, and the objects that read and change the queue over it."""

from typing import Self

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.errors import ConfigError
from maas_backoff.store.breakdowns import Breakdowns
from maas_backoff.store.connect import Client
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.exchange import Exchange
from maas_backoff.store.lost import LostAttempts
from maas_backoff.store.markers import Markers
from maas_backoff.store.reader import Reader
from maas_backoff.store.registry import Registry
from maas_backoff.store.shares import Shares
from maas_backoff.store.streams import Streams
from maas_backoff.store.writer import Writer


class QueueStore:
    """The store of one queue in one process."""

    # `store.clock = …` must raise: the clock is the connection's.
    __slots__ = (
        *("breakdowns", "connection", "exchange", "lost", "markers"),
        *("reader", "registry", "shares", "streams", "writer"),
    )

    def __init__(self, connection: QueueConnection) -> None:
        self.connection: QueueConnection = connection
        self.registry: Registry = Registry(connection)
        self.shares: Shares = Shares(connection)
        self.reader: Reader = Reader(connection, self.registry, self.shares)
        self.breakdowns: Breakdowns = Breakdowns(connection)
        self.writer: Writer = Writer(connection)
        self.markers: Markers = Markers(connection)
        self.exchange: Exchange = Exchange(connection, self.markers)
        self.streams: Streams = Streams(connection)
        self.lost: LostAttempts = LostAttempts(connection)

    @classmethod
    def of(cls, config: TaskBackoffConfig, embedded: EmbeddedServer | None = None) -> Self:
        """Return the store of a configuration's queue. `embedded`: as in `QueueConnection`. Raises ConfigError."""
        if not config.task.biz_prefix:
            raise ConfigError("task.biz_prefix", "1 to 64 of A-Z a-z 0-9 _ . - (or MAAS_BACKOFF_BIZ_PREFIX)", "")
        return cls(QueueConnection(config, embedded))

    def over(self, client: Client) -> Self:
        """Return this store over another client, for example the client of another event loop."""
        return type(self)(self.connection.over(client))

    async def aclose(self) -> None:
        """Close the connections, and leave the embedded server. The next call connects again."""
        await self.connection.aclose()
