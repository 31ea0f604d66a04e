"""What a child prints becomes log lines of its worker."""

import os

import pytest
from support import eventually

from maas_backoff.worker.executors.output import LINE_LIMIT, Output

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
