"""The demo's parts: the lines it reads, the model server it asks, and the check at its end."""

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from maas_backoff import TaskEntity, TaskError, TaskStatus
from maas_backoff.demo import summary
from maas_backoff.demo.lines import InputError, read_lines
from maas_backoff.demo.server import ModelServer, generate


def test_the_sample_is_short_lines_of_text() -> None:
    lines = read_lines(None)
    assert len(lines) == len(set(lines)) == 60
    assert all(10 < len(line) < 80 and line.isascii() for line in lines)


def test_lines_end_where_an_editor_ends_them(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffone\r\n\ntwo\x0bthree\n".encode())
    assert read_lines(file) == ["one", "", "two\x0bthree"]
    file.write_bytes(b"\n")
    with pytest.raises(InputError):
        read_lines(file)
    file.write_bytes(b"\n\n")
    assert read_lines(file) == ["", ""]


def post(url: str, body: Any) -> tuple[int, Any, str | None]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with opener.open(urllib.request.Request(url, data), timeout=10) as answer:
            return answer.status, json.load(answer), None
    except HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers["Retry-After"]


def test_the_model_server_refuses_what_it_has_no_place_for() -> None:
    """At most `capacity` requests are in work, whoever asks; a refusal says when to come back."""
    with ModelServer(capacity=2, seed=1) as model, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: post(model.url, {"id": str(number), "prompt": "a b"}), range(12)))
    refused = [retry_after for status, _, retry_after in answers if status == 503]
    assert 4 <= len(refused) == model.refused.total() <= 10
    assert all(0 < float(retry_after or 0) <= 1 for retry_after in refused)
    assert [body for status, body, _ in answers if status == 200] == [generate("a b")] * model.answered.total()


def test_the_model_server_alone_has_all_the_capacity_it_needs() -> None:
    """Without a crowd nothing is refused; a seed decides which requests fail, once or twice, before they succeed."""
    with ModelServer(capacity=4, seed=4) as model, ThreadPoolExecutor(4) as pool:

        def until_answered(number: int) -> int:
            times = 1
            while post(model.url, {"id": str(number), "prompt": "x"})[0] != 200:
                times += 1
            return times

        times = list(pool.map(until_answered, range(30)))
    assert model.refused.total() == 0
    assert set(times) == {1, 2, 3}
    assert 2 <= sum(number > 1 for number in times) <= 12
    assert all(model.answered[str(number)] == 1 for number in range(30))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"id": 1}', b"\xff"])
def test_the_model_server_says_what_it_wants(body: bytes) -> None:
    with ModelServer(capacity=1, seed=1) as model:
        assert post(model.url, body)[0] == 400
        assert post(model.url + "/other", body)[0] == 404


def test_the_model_server_is_gone_afterwards() -> None:
    with ModelServer(capacity=1, seed=1) as model:
        pass
    with pytest.raises(OSError, match="refused"):
        post(model.url, {})
    assert not any(thread.name == "model-server" for thread in threading.enumerate())


# The check must find what is wrong

PROMPTS = {"line-1": "one", "line-2": "two words"}
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def completed(task_id: str, prompt: str) -> TaskEntity:
    return TaskEntity(
        task_id,
        "demo",
        {"prompt": prompt},
        status=TaskStatus.COMPLETED,
        attempt=1,
        created_at=THEN,
        started_at=THEN + timedelta(seconds=1),
        finished_at=THEN + timedelta(seconds=1.25),
        result=generate(prompt),
    )


GOOD = [completed(*item) for item in PROMPTS.items()]
FAILED = TaskEntity(
    "line-2",
    "demo",
    {},
    status=TaskStatus.FAILED,
    error=TaskError("HTTPError", "500"),
    finished_at=THEN,
    created_at=THEN,
)


@pytest.mark.parametrize(
    ("tasks", "answered", "fault"),
    [
        (GOOD, {"line-1": 1, "line-2": 1}, None),
        (GOOD, {"line-1": 1, "line-2": 2}, None),
        (GOOD[:1], {"line-1": 1, "line-2": 1}, "line-2: its task is gone"),
        ([*GOOD, GOOD[0]], {"line-1": 1, "line-2": 1}, "line-1: 2 tasks"),
        ([GOOD[0], FAILED], {"line-1": 1}, "line-2: failed (HTTPError: 500)"),
        ([GOOD[0], completed("line-2", "another")], {"line-1": 1, "line-2": 1}, "line-2: has a result that is not"),
        (GOOD, {"line-1": 1}, "line-2: has a result, and the model server never answered"),
        ([*GOOD, completed("line-3", "x")], {"line-1": 1, "line-2": 1}, "line-3: a task without a line"),
    ],
)
def test_the_check_finds_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tasks: list[TaskEntity], answered: dict[str, int], fault: str | None
) -> None:
    with ModelServer(capacity=1, seed=1) as model:
        model.answered.update(answered)
    code = summary.show(PROMPTS, tasks, model, 1.0)
    lines = capsys.readouterr().out.splitlines()[2:]
    found = {line[:14].strip(): line[14:] for line in lines}
    assert code == (0 if fault is None else 1)
    assert found.get("FAULT", "").startswith(fault or "")
    assert found["check"].startswith("every line" if fault is None else "FAILED: 1 of 2 lines")
    if tasks is GOOD:
        assert found["pending"] == "p50 1.00 s   p95 1.00 s   max 1.00 s for a line"
        assert found["processing"] == "p50 0.25 s   p95 0.25 s   max 0.25 s for a line"
    if sum(answered.values()) == 3:
        assert found[""].startswith("1 lines were answered more than once")
