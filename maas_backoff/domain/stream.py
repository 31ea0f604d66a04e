"""The parts of a task's stream and the lines of its log, as readers get them."""

import re
from datetime import datetime
from typing import Any

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.errors import InvalidValueError

_ID = re.compile(r"\d{1,16}-\d{1,14}")


@attrs.frozen
class StreamPart:
    """A part of a task's stream.

    `data` is what the handler has emitted: a text, or a JSON value. Texts that were emitted within a few ms are joined.
    `id` is unique in the stream; `stream(task_id, after=id)` goes on behind it. `attempt` is the number of the attempt
    that has emitted the part.

    If `restarted` is true, the part has no data: a later attempt begins the stream anew. All parts before it are void:
    clear them where they are shown.
    """

    id: str
    data: Any = attrs.field(repr=False)
    attempt: int
    restarted: bool = False

    def to_sse(self) -> dict[str, str]:
        """Return the part for `sse_starlette.EventSourceResponse`: the event is `part` or `restarted`.

        The data is JSON text: JSON keeps line ends, which an event stream would change. A client that reconnects sends
        the id as `Last-Event-ID`.
        """
        return {"id": self.id, "event": "restarted" if self.restarted else "part", "data": jsontext.encoded(self.data)}


@attrs.frozen
class LogLine:
    """A line of a task's log, with the number of its attempt and its time by the server's clock."""

    id: str
    text: str = attrs.field(repr=False)
    attempt: int
    at: datetime

    def to_sse(self) -> dict[str, str]:
        """Return the line for `sse_starlette.EventSourceResponse`: the event is `line`, the data JSON text."""
        about = {"text": self.text, "attempt": self.attempt, "at": self.at.isoformat()}
        return {"id": self.id, "event": "line", "data": jsontext.plain(about)}


def checked_after(after: object) -> str:
    """Return the id after which a stream is read; empty for None. Raises InvalidValueError."""
    if after is None:
        return ""
    if not isinstance(after, str) or not _ID.fullmatch(after):
        raise InvalidValueError("after", "the id of a part or a line, or None", after)
    return after
