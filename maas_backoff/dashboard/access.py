"""Access to the page, to read or to act, checked first for every request."""

import inspect
from collections.abc import Awaitable, Callable
from enum import StrEnum

import attrs
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_backoff.common.guard import Log, log_for
from maas_backoff.errors import InvalidValueError

log: Log = log_for("dashboard")


class Access(StrEnum):
    """The rights of a visitor."""

    NONE = "none"
    READ = "read"
    ACT = "act"


@attrs.frozen
class Visitor:
    """A visitor with a name, which the log has with each action: `Visitor(Access.ACT, "ada@example.com")`."""

    access: Access
    name: str = ""


Rights = Access | bool | Visitor

Authorize = Callable[[Request], Rights | Awaitable[Rights]]
"""Returns the rights of a request: an Access, or a Visitor with an Access and a name.

True means ACT, False NONE. May raise HTTPException of starlette or FastAPI.
"""

_HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        # Nothing from other servers, nothing inline. The text of a task can never become markup, even by mistake.
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }.items()
]


class Guard:
    """Passes allowed requests to `app`, with `request.state.access`, and adds headers to each response."""

    def __init__(self, app: ASGIApp, authorize: Authorize | None) -> None:
        if authorize is None:
            log.warning("the dashboard has no `authorize`: everybody who reaches it may read, and nobody may act")
        self._app = app
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; other scopes go to `app`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        request = Request(scope, receive)
        refusal = await self._refusal(request)
        await (refusal or self._app)(scope, receive, send_with_headers)

    async def _refusal(self, request: Request) -> Response | None:
        try:
            visitor = await self._visitor(request)
        except HTTPException as error:
            # The detail of FastAPI's HTTPException may be any JSON value.
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        access = request.state.access = visitor.access
        request.state.visitor = visitor.name
        if access is Access.NONE:
            return _refused("you may not see this")
        if request.method in {"GET", "HEAD"}:
            return None
        if access is not Access.ACT:
            return _refused("you may look, and not act")
        if not is_same_origin(request):
            return _refused(
                "actions must come from the page itself (Sec-Fetch-Site: same-origin); a proxy without TLS has to pass "
                f"on the Host header as the browser has sent it: here it is {request.headers.get('host')!r}"
            )
        return None

    async def _visitor(self, request: Request) -> Visitor:
        if self._authorize is None:
            return Visitor(Access.READ)
        answer = self._authorize(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Visitor):
            return answer
        if isinstance(answer, bool):
            return Visitor(Access.ACT if answer else Access.NONE)
        if not isinstance(answer, str) or answer not in set(Access):
            raise InvalidValueError("authorize", "an Access, a bool or a Visitor as its answer", answer)
        return Visitor(Access(answer))


def _refused(why: str) -> Response:
    return JSONResponse({"error": why}, 403)


def is_same_origin(request: Request) -> bool:
    """Return whether a browser sent this request from our own page, or a program claims so.

    Browsers send the origin of a request in Sec-Fetch-Site, and a page cannot change this header. Over plain HTTP, and
    from browsers before 2023, there is only Origin, which must name the host of the request. Neither header shows
    whether that host name is ours: TrustedHostMiddleware of starlette checks it.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] == request.headers.get("host")
