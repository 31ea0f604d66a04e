"""Log records of a child process, logged by its parent: with their level, logger, time, traceback and extra fields.

The child sends each record as one message over a socket that keeps messages whole. A record is sent or dropped, never
cut, and the processes that a handler forks may send theirs, too.
"""

import contextlib
import json
import logging
import select
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maas_backoff.domain import tracebacks
from maas_backoff.domain.context import current_task
from maas_backoff.domain.shorten import TEXT_LIMIT, cut
from maas_backoff.domain.task import TaskEntity
from maas_backoff.logs import OWN_FIELDS, printable, trace_ids

LARGEST_MESSAGE = 196_608
"""Bytes of a message: less than what Linux lets a socket hold. A larger record is sent without its extra fields."""

LONGEST_FIELD = 4096
"""Characters of JSON that an extra field may have; of a longer one the beginning of its text is sent."""

LONGEST_WAIT = 1.0
"""Seconds that a record waits for the parent to take others. After one that waited in vain, the next do not wait."""

_TELLS = ("levelno", "levelname", "created", "pathname", "lineno", "funcName", "process", "thread", "threadName")

_NOTHING = {"task_id": "-", "attempt": 0, "queue": "-", "trace_id": "-", "span_id": "-"}
"""The fields of a record that has no task and no trace."""

_output = logging.getLogger("maas_backoff.output")


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Return the end of the parent and that of the child."""
    # macOS has no SEQPACKET. Linux limits how many datagrams may wait, but not how many of these messages.
    kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with contextlib.suppress(OSError):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_048_576)
    return ours, theirs


def levels() -> dict[str, Any]:
    """Return the levels that are set in this process: by logger ("" is the root), and what `disable` keeps from all."""
    manager = logging.root.manager
    # A copy, made in one go: other threads may be making loggers.
    known = list(manager.loggerDict.items())
    loggers = {name: one.level for name, one in known if isinstance(one, logging.Logger) and one.level}
    return {"disable": manager.disable, "loggers": {"": logging.root.level, **loggers}}


def set_levels(levels: Mapping[str, Any]) -> None:
    """Set the levels that `levels` has returned in another process."""
    logging.disable(levels["disable"])
    for name, level in levels["loggers"].items():
        logging.getLogger(name or None).setLevel(level)


class Sender:
    """In a child: sends what its loggers let pass to the parent, in place of what they would print.

    A handler that writes to stdout or stderr is left out: the parent, which has imported the same module, has one like
    it. Other handlers of the child are called, as ever; then the parent's own ones of that kind are left out.
    """

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)
        end.setblocking(False)
        self.task: TaskEntity | None = None
        """The task whose handler is being called, for records of threads that it has started."""
        self._socket = end
        self._room = select.poll()
        self._room.register(end, select.POLLOUT)
        self._dropped = 0

    def install(self) -> None:
        """Have all loggers of this process, also later ones, send their records."""

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            self.handle(logger, record)

        # No handler of the root's: a dictConfig in the handler's module would remove it, and loggers that do not
        # propagate would not reach it.
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign,assignment] # for all loggers

    def handle(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Send a record; if that cannot be done at all, let the handlers print it that would have."""
        willing = [handler for handler in _handlers(logger) if record.levelno >= handler.level]
        others = [handler for handler in willing if not _is_console(handler)]
        sent = self._send(_told(record, current_task() or self.task, taken=bool(others)))
        for handler in others if sent else willing:
            handler.handle(record)

    def _send(self, told: dict[str, Any]) -> bool:
        """Send a record, or drop it when the parent does not take any; False when there is no way to the parent."""
        message = _encoded({**told, "dropped": self._dropped})
        if len(message) > LARGEST_MESSAGE:
            message = _encoded({**told, "dropped": self._dropped, "extra": {}})
        try:
            try:
                self._socket.send(message)
            except BlockingIOError:
                # A timeout of the socket's would wait before it tries: a quarter full, it is not writable any more.
                if self._dropped or not self._room.poll(LONGEST_WAIT * 1000):
                    raise
                self._socket.send(message)
        except BlockingIOError:
            self._dropped += 1
            return True
        except OSError:  # the handler has closed it, or the parent is gone
            return False
        self._dropped = 0
        return True


def log_here(message: bytes, child_pid: int) -> None:
    """Log a record that a child has sent, in the parent. Other messages are dropped."""
    try:
        told: dict[str, Any] = json.loads(message)
        record, taken, dropped = _record(told, child_pid), told["taken"], int(told["dropped"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    # Handlers are the user's. One that raises must not end what has called this.
    with contextlib.suppress(Exception):
        if dropped:
            _output.warning("child %d logged %d records faster than they could be taken", child_pid, dropped)
        logger = logging.getLogger(record.name)
        if not taken:
            logger.handle(record)
            return
        for handler in _handlers(logger):
            if record.levelno >= handler.level and _is_console(handler):
                handler.handle(record)


def _handlers(logger: logging.Logger) -> Iterator[logging.Handler]:
    """Give the handlers that a record of this logger goes to."""
    at: logging.Logger | None = logger
    while at is not None:
        yield from at.handlers
        at = at.parent if at.propagate else None


def _is_console(handler: logging.Handler) -> bool:
    """Whether a handler writes to stdout or stderr."""
    if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
        return False
    stream: Any = vars(handler).get("stream")
    if any(stream is standard for standard in (sys.stdout, sys.stderr)):
        return True
    try:
        return stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):
        return False


def _told(record: logging.LogRecord, task: TaskEntity | None, *, taken: bool) -> dict[str, Any]:
    """Return a record as the parent is told of it: as JSON can hold it, and bounded, whatever it has."""
    extra = {name: _field(value) for name, value in vars(record).items() if name not in OWN_FIELDS}
    if task is not None:
        extra = {"task_id": task.task_id, "attempt": task.attempt, "queue": task.biz_prefix, **trace_ids(), **extra}
    return {
        "name": record.name,
        "message": _message(record),
        "exc_text": _traceback(record),
        "stack_info": None if record.stack_info is None else cut(record.stack_info),
        "fields": {name: getattr(record, name, None) for name in _TELLS},
        "extra": extra,
        "taken": taken,
    }


def _message(record: logging.LogRecord) -> str:
    try:
        return cut(record.getMessage())
    except BaseException as error:  # noqa: BLE001 - too few arguments, or a hostile __str__
        return f"{cut(record.msg)} ({type(error).__name__} in its arguments)"


def _traceback(record: logging.LogRecord) -> str | None:
    """Return the end of the traceback, which says most."""
    if record.exc_text or not record.exc_info or record.exc_info[1] is None:
        return record.exc_text or None
    try:
        text = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    except BaseException:  # noqa: BLE001 - it calls __str__
        text = tracebacks.frames_of(record.exc_info[1])
    return text.encode(errors="backslashreplace")[-TEXT_LIMIT:].decode(errors="ignore")


def _field(value: object) -> Any:
    with contextlib.suppress(BaseException):  # not JSON, or hostile
        if len(json.dumps(value)) <= LONGEST_FIELD:
            return value
    return cut(value)[:LONGEST_FIELD]


def _encoded(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, ensure_ascii=False).encode(errors="surrogatepass")


def _record(told: Mapping[str, Any], child_pid: int) -> logging.LogRecord:
    """Return the record that a child has told of. Raises what a wrong shape leads to."""
    fields = {name: told["fields"][name] for name in _TELLS}
    extra = {name: value for name, value in told["extra"].items() if name not in OWN_FIELDS}
    created, name, path = float(fields["created"]), str(told["name"]), Path(str(fields["pathname"]))
    own = {
        **fields,
        "name": name,
        "levelno": int(fields["levelno"]),
        "msg": str(told["message"]),
        "created": created,
        "msecs": created % 1 * 1000,
        "filename": path.name,
        "module": path.stem,
        "exc_text": _shown(told["exc_text"]),
        "stack_info": _shown(told["stack_info"]),
    }
    # As TaskLogFilter says it: what the parent runs meanwhile has nothing to do with the record.
    return logging.makeLogRecord({**_NOTHING, **extra, "child_pid": child_pid, **own})


def _shown(text: object) -> str | None:
    """Return lines as formatters take them over: without what a terminal would act on."""
    return None if text is None else "\n".join(map(printable, str(text).splitlines()))
