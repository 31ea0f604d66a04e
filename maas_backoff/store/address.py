"""A server's address, and connections to it."""

import ssl
from typing import Any

import attrs
from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from maas_backoff.storage import StorageConfig


@attrs.frozen
class Address:
    """A server's host and port, or the path of its unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def pool(self, tls: dict[str, Any] | None, **options: Any) -> ConnectionPool:
        """Return a pool of connections there, with redis-py's options; `tls` are those of `tls_options`."""
        options = {**_common(), **options}
        if self.path is not None:
            return ConnectionPool(connection_class=UnixDomainSocketConnection, path=self.path, **options)
        kind = Connection if tls is None else SSLConnection
        return ConnectionPool(connection_class=kind, host=self.host, port=self.port, **(tls or {}), **options)


def _common() -> dict[str, Any]:
    return {
        "socket_connect_timeout": 3.0,
        "socket_timeout": None,
        # redis-py would send a script again whose reply was lost; we do, where it may be.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 3,
        # With maintenance notifications on, the pool does not notice that an idle connection was closed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "decode_responses": False,
        "client_name": "maas-backoff",
        # Its default reads the package's metadata from disk, on the event loop, for each connection.
        "driver_info": None,
    }


def tls_options(storage: StorageConfig) -> dict[str, Any]:
    """Return redis-py's options for TLS: the server's certificate and host name are always verified."""
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": storage.tls_ca,
        "ssl_certfile": storage.tls_cert,
        "ssl_keyfile": storage.tls_key,
    }
