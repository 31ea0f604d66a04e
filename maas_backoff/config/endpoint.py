"""The addresses of servers, as URLs and as texts like host:port, and the logins."""

import os
import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

if TYPE_CHECKING:  # redis-py is more than half of the whole import, and a configuration needs no connection
    from redis.credentials import CredentialProvider

Node = tuple[str, int]

_SCHEME = re.compile(r"(?:(redis|valkey)(s?)(?:\+(sentinel|cluster))?|unix)")
_SCHEMES = "redis, rediss, valkey, valkeys (each also with +sentinel or +cluster) and unix"
_NODE = re.compile(r"(?P<host>[^\s:/@\[\]]+|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_PORTS = {"sentinel": 26_379}
_QUERY = ("db", "sentinel_username", "sentinel_password")

HOMELESS = "a path whose '~' is a home directory: there is no such user, or HOME is not set"
"""The expected form of a path that still begins with `~`."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """Addresses and logins. `nodes` are the server, the Sentinels, or some nodes of the Cluster."""

    type: Literal["redis", "sentinel", "cluster"] = "redis"
    nodes: tuple[Node, ...] = ()
    path: str | None = None
    master: str = ""
    database: int = 0
    username: str = ""
    password: str = attrs.field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = attrs.field(default="", repr=False)
    credential_provider: "CredentialProvider | None" = attrs.field(default=None, repr=False)
    tls: bool = False

    @classmethod
    def from_url(cls, url: str) -> "Endpoint":
        """Return the endpoint of a URL. Raises ValueError with the expected form, which never repeats the URL."""
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("a URL") from None
        scheme = _SCHEME.fullmatch(parts.scheme)
        if scheme is None:
            raise ValueError(f"a URL with one of the schemes {_SCHEMES}")
        if parts.fragment:
            raise ValueError("a URL without '#': write it as %23 in a password")
        login, _, hosts = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if query.keys() - set(_QUERY):
            raise ValueError(f"a URL whose query has only {', '.join(_QUERY)}; other options are fields")
        found = cls(
            username=unquote(username),
            password=unquote(password),
            sentinel_username=query.get("sentinel_username", ""),
            sentinel_password=query.get("sentinel_password", ""),
        )
        if parts.scheme == "unix":
            return attrs.evolve(found, path=_socket(hosts, parts.path), database=_database(query.get("db", "")))
        kind: Literal["redis", "sentinel", "cluster"] = scheme[3] or "redis"  # type: ignore[assignment] # pyright: ignore[reportAssignmentType] - what the pattern has
        words = [word for word in parts.path.split("/") if word]
        master = unquote(words.pop(0)) if kind == "sentinel" and words else ""
        if kind == "sentinel" and not master:
            raise ValueError("redis+sentinel://host:port,host:port/name-of-the-master/database")
        if len(words) > 1:
            raise ValueError("a URL whose path is the number of the database")
        nodes = tuple(node(one, kind) for one in hosts.split(","))
        if kind == "redis" and len(nodes) > 1:
            raise ValueError("a URL with one host, unless it is for Sentinels or a Cluster")
        database = _database(words[0] if words else query.get("db", ""))
        return attrs.evolve(found, type=kind, nodes=nodes, master=master, database=database, tls=bool(scheme[2]))


def _socket(host: str, path: str) -> str:
    """Return the path of a socket, of unix:///run/x; unix://~/x and unix:///~/x are in the home directory."""
    if host.startswith("~"):
        path = f"/{host}{path}"
    elif host or not path:
        raise ValueError("unix:///path/of/the/socket")
    path = expanded(unquote(path.removeprefix("/") if path.startswith("/~") else path))
    if path.startswith("~"):
        raise ValueError(HOMELESS)
    return path


def node(given: str, kind: str = "redis") -> Node:
    """Return host and port of `host:port`. Raises ValueError with the expected form."""
    match = _NODE.fullmatch(given)
    port = int(match["port"] or _PORTS.get(kind, 6379)) if match else 0
    if match is None or not 1 <= port <= 65_535:
        raise ValueError("host:port, with a port from 1 to 65535")
    return match["host"].strip("[]"), port


def _database(given: str) -> int:
    if not re.fullmatch(r"[0-9]{0,6}", given):
        raise ValueError("a URL whose database is a whole number")
    return int(given or 0)


def expanded(path: str) -> str:
    """Return a path with a leading '~' or '~user' replaced: no shell does that in an .env file or a unit."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path would change "./~x" and a path's end


def without_secrets(url: str) -> str:
    """Return the scheme and the hosts of a URL, without what may be a password, a path or a query."""
    scheme, _, rest = url.partition("://")
    if not rest or not _WORD.fullmatch(scheme):
        return "…"
    hidden = "…@" if "@" in rest else ""
    hosts = _PATH.split(rest.rpartition("@")[2])[0]
    # Without a login, a word that is no host may be a password.
    shown = hosts if hidden or _HOSTS.fullmatch(hosts) else "…"
    return f"{scheme}://{hidden}{shown}"


_WORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_PATH = re.compile(r"[/?#]")
_HOSTS = re.compile(r"[A-Za-z0-9._-]+(:\d*)?(,[A-Za-z0-9._-]+(:\d*)?)*")
