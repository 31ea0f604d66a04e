"""The numbers of a queue for Prometheus and for an autoscaler, read from the server at each request.

Extra `prometheus`.
"""

from maas_backoff.errors import MissingExtraError

try:
    from maas_backoff.prometheus.app import MetricsApp
    from maas_backoff.prometheus.exposition import CONTENT_TYPE, metrics
    from maas_backoff.prometheus.scale import ScaleApp
except ImportError as _error:
    raise MissingExtraError.instead_of(_error, "maas_backoff.prometheus", "prometheus") from _error

__all__ = ["CONTENT_TYPE", "MetricsApp", "ScaleApp", "metrics"]
