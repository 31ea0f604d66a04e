"""The root of the errors: its answer for web clients, and its copies."""

from typing import Any, Self, TypeVar


class MaasBackoffError(Exception):
    """The root of all errors of this library.

    A web service can answer with `http_status`, `http_headers` and `http_detail`. Errors can be pickled and copied.
    """

    http_status: int = 500
    """The HTTP status for a web client: 4xx if the request is wrong, 503 if the client may try again."""

    @property
    def http_headers(self) -> dict[str, str]:
        """The headers of the HTTP answer: `Retry-After` if the error has a time for it, else none."""
        return {}

    @property
    def http_detail(self) -> str:
        """The text of the HTTP answer: the message for 4xx, else a sentence without addresses and options."""
        return str(self) if self.http_status < 500 else _DETAILS.get(self.http_status, "internal error")

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with the message alone, which most of these classes do not accept.
        return _rebuilt, (type(self), self.args), self._state()

    def __copy__(self) -> Self:
        copied = _rebuilt(type(self), self.args)
        copied.__setstate__({**self._state(), **vars(self)})
        return copied

    def _state(self) -> dict[str, Any]:
        """Return the attributes of a pickled error."""
        return dict(vars(self))


_DETAILS = {503: "the task queue cannot be reached now; try again later", 504: "the task has not finished yet"}

_E = TypeVar("_E", bound=MaasBackoffError)


def _rebuilt(kind: type[_E], args: tuple[Any, ...]) -> _E:
    """Return an error without calling its `__init__`; its attributes are set afterwards."""
    error = kind.__new__(kind, *args)
    error.args = args  # OSError.__new__ leaves this to an `__init__`
    return error
