"""The server as traces and metrics name it."""

from maas_backoff.config.storage import StorageConfig
from maas_backoff.domain.tracing import Peer


def peer_of(storage: StorageConfig) -> Peer | None:
    """Return the address of the server, of the first Sentinel or node, or a socket's path; None: it is embedded."""
    if storage.type == "embedded" and storage.url is None:
        return None
    endpoint = storage.endpoint
    if endpoint.path is not None:
        return Peer(endpoint.path)
    return Peer(*endpoint.nodes[0]) if endpoint.nodes else None
