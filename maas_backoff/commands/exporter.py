"""`maas-backoff metrics`: serve the numbers of a queue for Prometheus and for an autoscaler."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus

import anyio

from maas_backoff.commands.command import OK, Options
from maas_backoff.common.until_stopped import stop_signals
from maas_backoff.errors import InvalidValueError
from maas_backoff.language import t
from maas_backoff.prometheus.app import MetricsApp
from maas_backoff.prometheus.asgi import Answer, OneAnswer
from maas_backoff.prometheus.scale import ScaleApp
from maas_backoff.scheduler import TaskBackoffScheduler

LARGEST_HEAD = 16_384
"""The most bytes of a request up to the empty line."""

PATIENCE = 10.0
"""The most seconds in which a client sends a request, and reads the answer."""

MOST_CLIENTS = 50
"""The most connections at a time. Each has one request; further ones are closed."""

_TEXT = "text/plain; charset=utf-8"


class Exporter:
    """Answers GET /metrics and GET /scale. It is for a trusted network: it asks for no password."""

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._apps: Mapping[str, OneAnswer] = {"/metrics": MetricsApp(scheduler), "/scale": ScaleApp(scheduler)}
        self._clients = 0

    async def serve(self, host: str, port: int) -> None:
        """Serve until SIGTERM, SIGHUP or Ctrl-C. Raises InvalidValueError if the address cannot be used."""
        try:
            server = await asyncio.start_server(self._client, host, port, limit=LARGEST_HEAD)
        except (OSError, UnicodeError) as error:
            expected = f"a free port of this machine ({getattr(error, 'strerror', None) or error})"
            raise InvalidValueError("host and port", expected, f"{host}:{port}") from error
        shown = f"[{host}]" if ":" in host else host
        with anyio.open_signal_receiver(*stop_signals()) as signals:
            print(t("{url} and /scale  (Ctrl-C ends it)", url=f"http://{shown}:{port}/metrics"), flush=True)
            async for _ in signals:
                break
        server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                with anyio.fail_after(PATIENCE):
                    if self._clients <= MOST_CLIENTS:
                        writer.write(await self._answered(await reader.readuntil(b"\r\n\r\n")))
                        await writer.drain()
        finally:
            self._clients -= 1
            writer.close()

    async def _answered(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path, _, query = rest.partition(" ")[0].partition("?")
        app = self._apps.get(path.rstrip("/"))
        if method not in {"GET", "HEAD"}:
            return _response(Answer(b"expected GET\n", _TEXT, 405), with_text=True)
        if app is None:
            return _response(Answer(b"expected /metrics or /scale\n", _TEXT, 404), with_text=method == "GET")
        return _response(await app.answer(query), with_text=method == "GET")


def _response(answer: Answer, *, with_text: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (answer.text if with_text else b"")


async def serve(scheduler: TaskBackoffScheduler, options: Options) -> int:
    """Serve the numbers until a signal arrives, and return the exit code.

    Raises InvalidValueError for an address that cannot be used.
    """
    await Exporter(scheduler).serve(options.host, options.port)
    return OK
