"""`maas-backoff dashboard`: serve the page on this machine only."""

import socket

from maas_backoff.commands.command import OK, Options
from maas_backoff.dashboard import Access, dashboard, server_dashboard
from maas_backoff.errors import InvalidValueError, MissingExtraError
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler

try:
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from uvicorn import Config, Server
except ImportError as _error:
    raise MissingExtraError.instead_of(_error, "The dashboard", "dashboard") from _error

HERE = "127.0.0.1"


async def serve(scheduler: TaskBackoffScheduler, options: Options) -> int:
    """Serve the page until a signal arrives, and return the exit code.

    Raises InvalidValueError for a port in use, and StorageError.
    """
    with _listening(options.port) as listening:
        await scheduler.get_queue_stats()
        await _serve(scheduler, options, listening)
    return OK


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((HERE, port))
    except OSError as error:
        expected = f"one that is free on {HERE}, and allowed ({error.strerror})"
        raise InvalidValueError("port", expected, port) from error


async def _serve(scheduler: TaskBackoffScheduler, options: Options, listening: socket.socket) -> None:
    access = Access.ACT if options.act else Access.READ

    def authorize(_: Request) -> Access:
        return access

    make = server_dashboard if options.all else dashboard
    page = make(scheduler, authorize=authorize, payloads=options.payloads, errors=options.errors or None)
    # Refuse other host names: another web site may point its own name to this address (DNS rebinding).
    app = TrustedHostMiddleware(page, allowed_hosts=[HERE, "localhost"], www_redirect=False)
    actions = t("with actions; Ctrl-C ends it") if options.act else t("without actions; Ctrl-C ends it")
    print(f"http://{HERE}:{options.port}/  ({actions})", flush=True)
    await Server(Config(app, lifespan="off", log_level="warning")).serve([listening])
