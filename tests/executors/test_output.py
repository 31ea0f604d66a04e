"""The output of a child becomes log lines of its worker."""

import json
import logging
import os

import pytest
from support import eventually

from maas_backoff.worker.executors import output as outputs
from maas_backoff.worker.executors import records
from maas_backoff.worker.executors.output import _AT_ONCE, _CHUNK, LINE_LIMIT, Output, Records

pytestmark = pytest.mark.anyio


async def test_a_line_without_an_end_is_logged_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    """A child that never ends its line does not fill the memory of its worker. The rest comes with the task's end."""
    caplog.set_level("INFO")
    end, into = os.pipe()
    output = Output(end, 4711)
    output.belongs_to("x")
    os.write(into, b"a" * LINE_LIMIT * 2 + b"rest")
    await eventually(lambda: len(caplog.records) == 2, "what is long enough is logged at once")
    output.belongs_to("y")
    os.write(into, b"of the next\n")
    os.close(into)
    output.close()
    found = [(record.message, vars(record)["task_id"]) for record in caplog.records]
    assert "".join(text for text, task_id in found if task_id == "x") == "a" * LINE_LIMIT * 2 + "rest"
    assert max(len(text) for text, _ in found) <= LINE_LIMIT
    assert found[-1] == ("of the next", "y")


async def test_all_that_was_printed_before_a_task_is_logged_under_the_one_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also a pipe that is full, which takes more than one read."""
    caplog.set_level("INFO")
    end, into = os.pipe()
    output = Output(end, 4711)
    output.belongs_to("x")
    line = b"a" * 1023 + b"\n"
    os.write(into, line * (_CHUNK // len(line)))
    output.belongs_to("y")
    os.close(into)
    output.close()
    found = [(record.message, vars(record)["task_id"]) for record in caplog.records]
    assert found == [("a" * 1023, "x")] * (_CHUNK // len(line))


async def test_a_child_that_logs_without_end_does_not_hold_up_the_event_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the end of a task, so many records are taken at most; others come later, and none is lost."""
    caplog.set_level("INFO")
    monkeypatch.setattr(outputs, "_MOST_DRAINED", 2 * _AT_ONCE)
    end, far = records.socketpair()
    taken = Records(end, 4711)
    for number in range(3 * _AT_ONCE):
        record = logging.makeLogRecord({"name": "my.service", "levelno": logging.INFO, "msg": f"record {number}"})
        far.send(json.dumps({**records._told(record, None, taken=False), "dropped": 0}).encode())
    taken.drain()
    assert len(caplog.records) == 2 * _AT_ONCE
    await eventually(lambda: len(caplog.records) == 3 * _AT_ONCE, "the loop takes the others")
    assert [record.getMessage() for record in caplog.records] == [f"record {n}" for n in range(3 * _AT_ONCE)]
    taken.close()
    far.close()
