"""A web page that shows and changes a queue. Extra `dashboard`: `app.mount("/tasks", dashboard(scheduler))`."""

from maas_backoff.errors import MissingExtraError

try:
    from maas_backoff.dashboard.access import Access, Authorize, Visitor
    from maas_backoff.dashboard.app import dashboard
    from maas_backoff.dashboard.queues import server_dashboard
except ImportError as _error:
    raise MissingExtraError.instead_of(_error, "The dashboard", "dashboard") from _error

__all__ = ["Access", "Authorize", "Visitor", "dashboard", "server_dashboard"]
