"""A queue's numbers for Prometheus, read from the server when somebody asks: the extra `prometheus`."""

from importlib.util import find_spec

from maas_backoff.errors import MissingExtraError

if find_spec("prometheus_client") is None:
    raise MissingExtraError("maas_backoff.prometheus", "prometheus")

from maas_backoff.prometheus.app import MetricsApp
from maas_backoff.prometheus.exposition import CONTENT_TYPE, metrics

__all__ = ["CONTENT_TYPE", "MetricsApp", "metrics"]
