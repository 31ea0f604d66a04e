"""The numbers of a queue for Prometheus, read from the server at each scrape. Extra `prometheus`."""

from maas_backoff.errors import MissingExtraError

try:
    from maas_backoff.prometheus.app import MetricsApp
    from maas_backoff.prometheus.exposition import CONTENT_TYPE, metrics
except ImportError as _error:
    raise MissingExtraError.instead_of(_error, "maas_backoff.prometheus", "prometheus") from _error

__all__ = ["CONTENT_TYPE", "MetricsApp", "metrics"]
