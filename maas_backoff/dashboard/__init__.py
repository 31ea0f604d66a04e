"""A page that shows a queue and steers it. Extra `dashboard`: `app.mount("/tasks", dashboard(scheduler))`."""

from maas_backoff.errors import MissingExtraError

try:
    from maas_backoff.dashboard.access import Access, Authorize
    from maas_backoff.dashboard.app import dashboard
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"starlette", "sse_starlette"}:
        raise
    raise MissingExtraError("The dashboard", "dashboard") from error

__all__ = ["Access", "Authorize", "dashboard"]
