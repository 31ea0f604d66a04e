"""Traces of OpenTelemetry (extra `otel`): a span for each create, attempt, settle and operation, linked.

Use `TaskBackoffScheduler(config, tracing=OpenTelemetry())` in each process that creates or runs tasks. If child
processes should export their own spans, set up the SDK in the handler's module or in the worker_lifespan.
"""

from maas_backoff.errors import MissingExtraError

try:
    from maas_backoff.otel.tracing import OpenTelemetry
except ImportError as _error:
    raise MissingExtraError.instead_of(_error, "Tracing", "otel") from _error

__all__ = ["OpenTelemetry"]
