"""The handling of tracing errors: they must not fail a task."""

from contextvars import Token
from types import TracebackType

from opentelemetry.context import Context, detach
from opentelemetry.trace import Span

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("otel")


class SuppressedErrors:
    """A context manager that suppresses every exception, and logs the first one."""

    def __init__(self) -> None:
        self._logged = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self._logged:
            self._logged = True
            log.error("an error of tracing: spans may be missing, tasks run on; logged once: %s", error, exc_info=error)
        return True

    def leave(self, span: Span, token: Token[Context] | None) -> None:
        """End a span, and restore the context before it."""
        if token is not None:
            with self:
                detach(token)
        with self:
            span.end()
