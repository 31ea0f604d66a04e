"""Traces of OpenTelemetry (extra `otel`): a span for each create and for each attempt, linked.

`TaskBackoffScheduler(config, tracing=OpenTelemetry())`, in whatever process creates or runs tasks. Child processes that
are to export spans of their own set their SDK up in the handler's module, or in its worker_lifespan.
"""

from maas_backoff.errors import MissingExtraError

try:
    from maas_backoff.otel.tracing import OpenTelemetry
except ImportError as _error:
    raise MissingExtraError.instead_of(_error, "Tracing", "otel") from _error

__all__ = ["OpenTelemetry"]
