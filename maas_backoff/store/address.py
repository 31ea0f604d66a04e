"""A server's address, and connections to it."""

import socket
import ssl
from typing import Any, NamedTuple

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from maas_backoff.config.storage import StorageConfig

# The kernel notices a silent peer in half a minute (15 + 3 * 5 s), also while no call waits for an answer.
_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_KEEPALIVE: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value for name, value in _PROBES.items() if hasattr(socket, name)
    },
}


class Address(NamedTuple):
    """A server's host and port, or the path of its unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def connection(self, tls: dict[str, Any] | None, **options: Any) -> Any:
        """Return an unconnected connection; `tls` comes from `tls_options`, `options` are redis-py's."""
        options = {**_common(), **options}
        if self.path is not None:
            return UnixDomainSocketConnection(path=self.path, **options)
        options |= _KEEPALIVE
        if tls is not None:
            return SSLConnection(host=self.host, port=self.port, **tls, **options)
        return Connection(host=self.host, port=self.port, **options)


def _common() -> dict[str, Any]:
    return {
        "socket_connect_timeout": 3.0,
        "socket_timeout": None,
        # redis-py would repeat each script whose reply was lost. `Server.run` repeats only calls that may be repeated.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 3,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "decode_responses": False,
        "client_name": "maas-backoff",
        # redis-py's default reads its package metadata from disk, on the event loop, for each connection.
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
