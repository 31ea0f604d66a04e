"""Tracing that is broken harms no task."""

from contextvars import Token
from types import TracebackType

from opentelemetry.context import Context, detach
from opentelemetry.trace import Span

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("otel")


class Unharmed:
    """A context manager that lets no exception out, and logs the first one."""

    def __init__(self) -> None:
        self._told = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self._told:
            self._told = True
            log.error("tasks run, but are not traced as they should be; this is logged once: %s", error, exc_info=error)
        return True

    def leave(self, span: Span, token: Token[Context] | None) -> None:
        """End a span, and let what was current before it be so again."""
        if token is not None:
            with self:
                detach(token)
        with self:
            span.end()
