"""Records of a handler in a child process are in its parent's log as if the parent had logged them."""

import asyncio
import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import child_handlers as handlers
import pytest
from test_process import FakeCall, executor, until

from maas_backoff.domain.outcome import Succeeded
from maas_backoff.logs import JsonFormatter, PlainFormatter, TaskLogFilter
from maas_backoff.worker.executors import records
from maas_backoff.worker.executors.base import Handler

pytestmark = pytest.mark.anyio


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, with the fields of the library. pytest has one handler for all tests."""
    caplog.set_level(logging.INFO)
    fields = TaskLogFilter()
    caplog.handler.addFilter(fields)
    yield caplog
    caplog.handler.removeFilter(fields)


def of(caplog: pytest.LogCaptureFixture, name: str = "my.service") -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == name]


async def test_a_record_keeps_what_it_has(told: pytest.LogCaptureFixture) -> None:
    """Level, logger, message, time, place, traceback and extra fields; its task is told, also in a thread."""
    before = time.time()
    async with executor(handlers.logs) as made:
        assert await made.run(FakeCall()) == Succeeded("null")
        info, error, extra, thread = of(told)
        (child,) = made.pool._children
    assert (info.levelname, info.getMessage(), info.funcName) == ("INFO", "told as info", "logs")
    assert (info.filename, info.module) == ("child_handlers.py", "child_handlers")
    assert before - 1 < info.created < time.time() + 1
    assert (error.levelno, error.getMessage()) == (logging.ERROR, "told as error: 5")
    assert error.exc_text is not None and error.exc_text.endswith("ValueError: broken \\x1b[2J")
    assert {(one.task_id, one.attempt, one.child_pid) for one in of(told)} == {("task-1", 0, child.pid)}
    assert (extra.size, extra.shape, extra.model) == (3, [1, 2], "<model>")
    assert (thread.getMessage(), thread.threadName) == ("from a thread", "mine")
    assert not of(told, "maas_backoff.output"), "nothing of it is printed as well"


async def test_formatters_show_the_traceback(told: pytest.LogCaptureFixture) -> None:
    async with executor(handlers.logs) as made:
        await made.run(FakeCall())
    error = of(told)[1]
    line = json.loads(JsonFormatter().format(error))
    assert (line["level"], line["logger"], line["task_id"]) == ("ERROR", "my.service", "task-1")
    assert "ValueError: broken" in line["traceback"]
    assert "ValueError: broken \\x1b" in PlainFormatter().format(error)


async def test_the_parents_levels_hold(told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are when the child starts; DEBUG of one logger, and only ERROR of another."""
    told.handler.setLevel(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("my.service"), "level", logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("my.other"), "level", logging.ERROR)
    async with executor(handlers.logs_at_all_levels) as made:
        await made.run(FakeCall())
    assert [one.levelname for one in of(told)] == ["DEBUG", "INFO", "WARNING", "ERROR"]
    assert [one.levelname for one in of(told, "my.other")] == ["ERROR"]
    assert [one.levelname for one in of(told, "my.third")] == ["INFO", "WARNING", "ERROR"]


async def test_hostile_records(told: pytest.LogCaptureFixture) -> None:
    """Wrong arguments, a __str__ that exits, a lone surrogate, ten megabytes: logged, cut, and no failure."""
    async with executor(handlers.logs_what_is_hostile) as made:
        assert await made.run(FakeCall()) == Succeeded("null")
        assert await made.run(FakeCall()) == Succeeded("null")
        assert len(made.pool._children) == 1
    wrong, hostile, surrogate, large, fields, raised, _, *rest = of(told)
    assert wrong.getMessage() == "%d and %d (TypeError in its arguments)"
    assert hostile.getMessage() == "%s (SystemExit in its arguments)"
    assert surrogate.getMessage() == "\\ud800"
    assert len(large.getMessage()) == 8192
    assert fields.getMessage() == "many fields" and not hasattr(fields, "field_1")
    assert raised.exc_text is not None and "HostileError" in raised.exc_text
    assert len(rest) == 7


async def test_more_than_the_parent_takes(told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler is held up a moment and no longer; the parent is told how many records it has not got."""
    async with executor(handlers.logs_much) as made:
        (child,) = made.pool._children
        loop, sent = asyncio.get_running_loop(), child._log._records
        loop.remove_reader(sent._end)  # as if the parent's loop were busy
        assert await made.run(FakeCall()) == Succeeded("null")
        got = len(of(told))
        assert 0 < got < 10_000
        loop.add_reader(sent._end, sent._read)
        await made.run(FakeCall(once=True))
        (dropped,) = of(told, "maas_backoff.output")
        assert (
            dropped.getMessage() == f"child {child.pid} logged {10_000 - got} records faster than they could be taken"
        )


async def test_a_forked_process_logs_too(told: pytest.LogCaptureFixture) -> None:
    async with executor(handlers.logs_in_a_fork) as made:
        await made.run(FakeCall())
        await until(lambda: len(of(told)) == 2)
    assert [one.getMessage() for one in of(told)] == ["from the fork", "from the child"]
    first, second = of(told)
    assert first.process != second.process


async def test_noise_is_passed_over(told: pytest.LogCaptureFixture) -> None:
    for message in (b"", b"{", b"[]", b"{}", b'{"taken": 1, "dropped": "x"}', b"[" * 100_000, b"\xff"):
        records.log_here(message, 1)
    assert told.records == []


async def test_a_log_handler_that_raises_ends_nothing(told: pytest.LogCaptureFixture) -> None:
    """It is the parent's, and has no part in the attempt."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no room")

    handler = Raising()
    loggers = [logging.getLogger(name) for name in ("my.service", "maas_backoff.output")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        async with executor(handlers.logs) as made:
            assert await made.run(FakeCall()) == Succeeded("null")
        async with executor(handlers.prints) as made:
            assert await made.run(FakeCall()) == Succeeded('"printed"')
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def test_a_console_is_what_writes_to_a_standard_stream(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The child prints no record that its parent prints. A handler with another target of its own keeps its records."""
    closed = (tmp_path / "closed").open("w")
    closed.close()
    with os.fdopen(os.dup(2), "w") as copy, open(2, "w", closefd=False) as same:
        streams = {sys.stdout: True, sys.stderr: True, same: True, copy: False, io.StringIO(): False, closed: False}
        for stream, expected in streams.items():
            assert records._is_console(logging.StreamHandler(stream)) is expected, stream
    with contextlib.closing(logging.FileHandler(tmp_path / "file")) as file:
        assert not records._is_console(file)
    assert not records._is_console(logging.NullHandler())


CONFIGURED = """
import logging, logging.config, os, sys

FILE = {file!r}
logging.config.dictConfig({{
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {{
        "console": {{"class": "logging.StreamHandler", "formatter": "own"}},
        "file": {{"class": "logging.FileHandler", "filename": FILE, "formatter": "own"}},
    }},
    "formatters": {{"own": {{"format": "own %(levelname)s %(message)s"}}}},
    "root": {{"level": "INFO", "handlers": ["console"]}},
    "loggers": {{"audit": {{"level": "INFO", "handlers": ["file"], "propagate": True}}}},
}})

def handle(task):
    logging.getLogger("my.service").error("to the console")
    logging.getLogger("audit").info("to both")
"""


@asynccontextmanager
async def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Handler]:
    """A module that configures logging when it is imported, in the parent and in each child."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "configures_logging.py").write_text(CONFIGURED.format(file=str(tmp_path / "audit.log")))
    root, audit = logging.getLogger(), logging.getLogger("audit")
    before, level = list(root.handlers), root.level
    import configures_logging  # type: ignore[import-not-found] - just written

    try:
        yield configures_logging.handle
    finally:
        for handler in (*root.handlers, *audit.handlers):
            handler.close()
        root.handlers[:], audit.handlers[:] = before, []
        root.setLevel(level)
        del sys.modules["configures_logging"]


async def test_nothing_is_doubled_where_the_module_configures_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line on the parent's console, in its own format, and one in the file that both processes have open."""
    async with configured(tmp_path, monkeypatch) as handle, executor(handle) as made:
        outcome: Any = await made.run(FakeCall())
        assert outcome == Succeeded("null")
    lines = [line for line in capfd.readouterr().err.splitlines() if "to the console" in line or "to both" in line]
    assert lines == ["own ERROR to the console", "own INFO to both"]
    assert (tmp_path / "audit.log").read_text() == "own INFO to both\n"
