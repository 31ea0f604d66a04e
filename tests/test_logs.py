"""Formats with the library's fields work for any record; what a handler raised is in the log of its last attempt."""

import io
import json
import logging
from collections.abc import Iterator

import anyio
import pytest
from support import eventually

from maas_backoff import (
    Discard,
    ResultEntity,
    Retry,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    ThreadPoolConfig,
)
from maas_backoff.commands.stderr import log_to_stderr
from maas_backoff.domain.context import current
from maas_backoff.logs import JsonFormatter, TaskLogFilter, about

FIELDS = "[%(event)s %(task_id)s %(attempt)d %(token)d %(queue)s %(child_pid)d] %(message)s"
TASK = TaskEntity(task_id="mine", biz_prefix="x", task_params={}, attempt=3)


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Return the output of a logger in a format that has all of our fields."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(FIELDS))
    handler.addFilter(TaskLogFilter())
    log = logging.getLogger("maas_backoff.test_logs")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield text
    log.removeHandler(handler)


@pytest.mark.parametrize(
    ("extra", "outside", "inside"),
    [
        ({}, "- - 0 0 - 0", "- mine 3 0 x 0"),
        ({"task_id": "other"}, "- other 0 0 - 0", "- other 0 0 - 0"),
        ({"task_id": "mine"}, "- mine 0 0 - 0", "- mine 3 0 x 0"),
        ({"task_id": "other", "child_pid": 7}, "- other 0 0 - 7", "- other 0 0 - 7"),
        ({"attempt": 9}, "- - 9 0 - 0", "- mine 9 0 x 0"),
        (about("failed", "other", 2, 5), "failed other 2 5 - 0", "failed other 2 5 - 0"),
        ({"event": "paused", "queue": "q"}, "paused - 0 0 q 0", "paused mine 3 0 q 0"),
    ],
)
def test_any_record_has_all_fields(extra: dict[str, object], outside: str, inside: str, out: io.StringIO) -> None:
    log = logging.getLogger("maas_backoff.test_logs")
    log.info("text", extra=extra)
    token = current.set(TASK)
    log.info("text", extra=extra)
    current.reset(token)
    assert out.getvalue().splitlines() == [f"[{outside}] text", f"[{inside}] text"]


def test_what_the_filter_fills_in_is_no_field_of_a_json_line() -> None:
    def told(extra: dict[str, object]) -> set[str]:
        record = logging.makeLogRecord({"msg": "text", **extra})
        assert TaskLogFilter().filter(record)
        return json.loads(JsonFormatter().format(record)).keys() - {"time", "level", "logger", "message"}

    assert told({}) == {"task_id", "attempt"}
    assert told({"event": "paused", "queue": "q"}) == {"task_id", "attempt", "event", "queue", "token"}
    assert told(about("failed", "x", 1, 7)) == {"task_id", "attempt", "event", "token"}
    assert told(about("created", "x")) == {"task_id", "attempt", "event", "token"}


def test_a_json_line_has_letters_as_they_are_and_one_line() -> None:
    text = "一只猫 😀 \x1b[2J \x9b \u2028 \u202e \ud800"
    record = logging.makeLogRecord({"msg": text})
    line = JsonFormatter().format(record)
    assert "一只猫 😀" in line and json.loads(line)["message"] == text
    assert line.isprintable() and line.encode() and len(line.splitlines()) == 1
    plain = JsonFormatter(ascii_only=True).format(record)
    assert plain.isascii() and json.loads(plain)["message"] == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_form_that_was_asked_for_replaces_that_of_the_module(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding)
    monkeypatch.setattr("sys.stderr", stream)
    other, ours = logging.StreamHandler(io.StringIO()), logging.StreamHandler(stream)
    monkeypatch.setattr(logging.root, "handlers", [other, ours])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    log_to_stderr(None)
    assert (other.formatter, ours.formatter, logging.root.level) == (None, None, logging.WARNING)
    log_to_stderr("info", "json")
    assert other.formatter is None and isinstance(ours.formatter, JsonFormatter) and logging.root.level == logging.INFO
    ours.handle(logging.makeLogRecord({"msg": "猫"}))
    stream.flush()
    assert json.loads(written.getvalue())["message"] == "猫"


def test_a_form_that_has_no_effect_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.root, "handlers", [caplog.handler])
    log_to_stderr(None, "json")
    assert "--log-format json has no effect: the module of the scheduler has set up logging" in caplog.text


def child_handler(task: TaskEntity) -> object:
    """Do as the id of the task says."""
    match task.task_id:
        case "raises":
            raise ValueError("no model")
        case "groups":
            raise ExceptionGroup("several", [Discard("bad prompt"), KeyError("x")])
        case "retries":
            raise Retry(0, "busy")
        case "retries-in-a-group":
            raise ExceptionGroup("several", [Retry(0, "busy"), KeyError("x")])
        case _:
            return ResultEntity.fail(7, "no")


async def coroutine_handler(task: TaskEntity) -> object:
    return child_handler(task)


def records(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in list(caplog.records) if getattr(record, "event", "") == event]


IDS = ("raises", "groups", "retries", "retries-in-a-group", "returns")


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["coroutine", "thread", "process"])
async def test_a_final_failure_is_an_error_with_its_exception(
    config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """The exception itself where the handler ran in this process, else the text of its traceback."""
    config.threadpool = ThreadPoolConfig(proc_mode="process" if mode == "process" else "thread", concurrency=2)
    caplog.set_level(logging.INFO, "maas_backoff.worker")
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(coroutine_handler if mode == "coroutine" else child_handler)
    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, name, max_retry_count=1, backoff_interval=0) for name in IDS)
        for name in IDS:
            assert (await scheduler.wait_task(name, 40)).status == "failed"
        await eventually(lambda: len(records(caplog, "failed")) == len(IDS), "all are told")
    last = {record.task_id: record for record in records(caplog, "failed")}  # type: ignore[attr-defined] - of ours
    assert {record.levelname for record in last.values()} == {"ERROR"}
    raised = {name: record.exc_info and type(record.exc_info[1]).__name__ for name, record in last.items()}
    if mode == "process":
        assert set(raised.values()) == {None}
        assert "\nTraceback (most recent call last):\n" in last["raises"].getMessage()
        assert last["raises"].getMessage().endswith("\nValueError: no model")
    else:
        assert raised == {
            "raises": "ValueError",
            "groups": "ExceptionGroup",
            "retries": "Retry",
            "retries-in-a-group": "ExceptionGroup",
            "returns": None,
        }
        assert last["raises"].getMessage() == "task 'raises': attempt 2: ValueError: no model; failed"
        for record in last.values():
            assert not record.exc_info or "executors" not in str(record.exc_info[2].tb_frame.f_code.co_filename)  # type: ignore[union-attr] - raised
    again = {record.task_id: record.levelname for record in records(caplog, "retried")}  # type: ignore[attr-defined] - of ours
    assert again == {"raises": "WARNING", "returns": "WARNING", "retries": "INFO", "retries-in-a-group": "WARNING"}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


@pytest.mark.anyio
async def test_an_exception_that_cannot_be_printed_ends_no_exchange_loop(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text is a user's code, which runs again when the record is written."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_id.startswith("bad"):
            raise Unprintable
        return "fine"

    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("maas_backoff.worker").addHandler(handler)
    try:
        async with scheduler:
            for number in range(4):  # more than there are exchange loops
                await scheduler.create_task({}, f"bad-{number}", max_retry_count=0)
                task = await scheduler.wait_task(f"bad-{number}", 20)
                assert str(task.error) == "Unprintable: <unprintable Unprintable>"
            await scheduler.create_task({}, "good")
            assert (await scheduler.wait_task("good", 20)).result == "fine"
            with anyio.fail_after(20):
                while len(records(caplog, "failed")) < 4:
                    await anyio.sleep(0.01)
            assert scheduler.health().ready
    finally:
        logging.getLogger("maas_backoff.worker").removeHandler(handler)
