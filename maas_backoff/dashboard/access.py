"""Access to the page, to look and to act: checked before anything else, for every request."""

import inspect
from collections.abc import Awaitable, Callable
from enum import StrEnum

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas_backoff.errors import InvalidValueError


class Access(StrEnum):
    """The rights of a visitor."""

    NONE = "none"
    READ = "read"
    ACT = "act"


Authorize = Callable[[Request], Access | bool | Awaitable[Access | bool]]
"""Says what a request may do; True is to act, False nothing. It may raise starlette's (or FastAPI's) HTTPException."""

_HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        # Nothing from elsewhere, nothing inline; and no text of a task can ever be made markup, by mistake either.
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }.items()
]


class Guard:
    """Lets through what may pass to `app`, with `request.state.access`, and gives each answer its headers."""

    def __init__(self, app: ASGIApp, authorize: Authorize | None) -> None:
        self._app = app
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; there are no others, and no lifespan."""
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
            request.state.access = access = await self._access(request)
        except HTTPException as error:
            # FastAPI's detail may be anything that JSON can hold.
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
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

    async def _access(self, request: Request) -> Access:
        if self._authorize is None:
            return Access.READ
        answer = self._authorize(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, bool):
            return Access.ACT if answer else Access.NONE
        if not isinstance(answer, str) or answer not in set(Access):
            raise InvalidValueError("authorize", "an Access or a bool as its answer", answer)
        return Access(answer)


def _refused(why: str) -> Response:
    return JSONResponse({"error": why}, 403)


def is_same_origin(request: Request) -> bool:
    """Whether a browser sent this from our own page, or a program says so.

    Browsers tell where a request comes from (Sec-Fetch-Site), and no page can say otherwise; over plain HTTP, and from
    browsers before 2023, there is only Origin, which has to name the host that was asked. Neither knows whether that
    name is one of ours: starlette's TrustedHostMiddleware does.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] == request.headers.get("host")
