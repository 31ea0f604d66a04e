"""`maas-backoff map`: a task for each line, the results in order, each once, also after an interruption."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Server, eventually, quick_config, started_processes

from maas_backoff import TaskBackoffScheduler, TaskEntity, TaskError, TaskStatus
from maas_backoff.__main__ import main
from maas_backoff.commands.mapping import records
from maas_backoff.commands.mapping.output import Output
from maas_backoff.commands.mapping.source import InputLine, Splitter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

MODULE = """
import os, time
import anyio
from datetime import timedelta
from maas_backoff import *

port = int(os.environ["TEST_PORT"])
storage = StorageConfig(host="127.0.0.1", port=port, timeout=0.3 if port == 1 else 10)
if "TEST_EMBEDDED" in os.environ:
    storage = StorageConfig(type="embedded", path=os.environ["TEST_EMBEDDED"] or None)
config = TaskBackoffConfig(
    storage=storage,
    task=TaskConfig(
        biz_prefix="test", result_ttl=600, failed_ttl=600, max_retry_count=1, backoff_interval=0.05, max_lost=100,
        max_queue_size=int(os.environ.get("TEST_QUEUE_SIZE", "0")) or None,
    ),
    threadpool=ThreadPoolConfig(concurrency=4),
    scheduler=SchedulerConfig(lease=3, shutdown_grace=10),
)
scheduler = TaskBackoffScheduler(config)
only_kinds = TaskBackoffScheduler(config)
producer = TaskBackoffScheduler(config)
private = TaskBackoffScheduler(TaskBackoffConfig(storage=StorageConfig(type="embedded"), task=config.task))

@private.set_custom_task_handler
def unused(task): ...

def note(n):
    file = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{n}\\n".encode())
    os.close(file)

@scheduler.set_custom_task_handler
async def handle(task):
    params = task.task_params
    while params.get("file") and not os.path.exists(params["file"]):
        await anyio.sleep(0.05)
    note(params.get("n"))
    await anyio.sleep(params.get("seconds", 0))
    if params.get("fails") and not os.path.exists("fixed"):
        raise ValueError(params["fails"])
    if params.get("discard"):
        raise Discard("bad prompt", code=400)
    return params

@scheduler.task
@only_kinds.task
async def double(number: int, *, after: timedelta = timedelta(0)) -> int:
    await anyio.sleep(after.total_seconds())
    return 2 * number
"""

Map = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Map]:
    """Start the command in a folder of its own; killed at the end if it still runs."""
    (tmp_path / "mine.py").write_text(MODULE)
    with started_processes() as started:

        def command(
            *words: str, scheduler: str = "mine:scheduler", env: dict[str, str] | None = None
        ) -> subprocess.Popen[bytes]:
            line = [sys.executable, "-m", "maas_backoff", "map", scheduler, *words]
            given = {**os.environ, "TEST_PORT": str(server.port), **(env or {})}
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(line, cwd=tmp_path, env=given, stdin=pipe, stdout=pipe, stderr=pipe))
            return started[-1]

        yield command


@pytest.fixture
def run(start: Map) -> Run:
    """Run the command to its end."""

    def command(*words: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        process = start(*words, **options)
        output, errors = process.communicate(stdin, timeout=60)
        assert b"Traceback" not in errors, errors.decode()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return command


@pytest.fixture
async def producer(server: Server) -> AsyncIterator[TaskBackoffScheduler]:
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer:
        yield producer


def write(folder: Path, lines: Sequence[object]) -> None:
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


@pytest.mark.long
def test_results_come_in_the_order_of_the_lines(run: Run, tmp_path: Path) -> None:
    """Each once. The exit code is 0 if all are completed."""
    dice = random.Random(1)
    lines = [{"n": n, "seconds": dice.choice((0, 0, 0.01, 0.1))} for n in range(200)]
    write(tmp_path, lines)
    done = run("in.jsonl", "out.jsonl", "--tasks-at-once", "20")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    found = results(tmp_path / "out.jsonl")
    assert [one["line"] for one in found] == list(range(1, 201))
    assert [one["result"] for one in found] == lines
    assert {one["status"] for one in found} == {"completed"}
    assert b"200 lines (200 completed) in " in done.stderr
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_lines_that_fail_do_not_stop_others(run: Run, tmp_path: Path) -> None:
    """The exit code is 1. The result says why, and never shows the line; stderr names the lines without a task."""
    lines = [
        b'{"n": 1}',
        b'{"n": 2, "fails": "boom"}',
        b'{"n": 3, "discard": true}',
        b'{"secret": "words"',
        b"",
        b"[7]",
        b'{"n": NaN}',
        b'{"n": "\xff"}',
        b'{"n": ' + 5000 * b"9" + b"}",
        b'{"n": ' + 100_000 * b"[" + b"}",
        b'{"n": "' + 8_000_000 * b"x" + b'"}',
        b'{"n": 12}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    done = run("in.jsonl", "out.jsonl")
    assert done.returncode == 1
    found = {one["line"]: one for one in results(tmp_path / "out.jsonl")}
    assert [line for line, one in found.items() if one["status"] == "completed"] == [1, 12]
    assert found[2]["status"] == found[3]["status"] == "failed"
    assert found[2]["error"] == {"type": "ValueError", "message": "boom", "code": None}
    assert found[3]["error"] == {"type": "discarded", "message": "bad prompt", "code": 400}
    assert 5 not in found, "an empty line"
    why = {line: one["error"]["type"] for line, one in found.items() if one["status"] == "invalid"}
    assert why == {
        **dict.fromkeys((4, 6, 9, 10), "not_json"),
        7: "bad_arguments",
        8: "not_utf8",
        11: "too_long",
    }
    assert "words" not in found[4]["error"]["message"] and b"words" not in done.stderr
    assert b"line 4: the line is not JSON: Expecting ',' delimiter: column 19" in done.stderr
    assert b"11 lines (7 invalid, 2 completed, 2 failed) in " in done.stderr
    assert (tmp_path / "ran").read_text().split().count("2") == 2, "a retry"


@pytest.mark.long
@pytest.mark.rare
def test_a_file_may_be_empty_or_end_without_a_newline(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    done = run("in.jsonl", "none.jsonl")
    assert done.returncode == 0 and (tmp_path / "none.jsonl").read_bytes() == b""
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\r\n{"n": 2}')
    assert run("in.jsonl", "two.jsonl", "--quiet").stderr == b""
    assert [(one["line"], one["result"]["n"]) for one in results(tmp_path / "two.jsonl")] == [(1, 1), (3, 2)]


SEPARATORS = "a\u2028b\u2029c\x85d\x1ce\x0cf\U0001f600"


@pytest.mark.long
@pytest.mark.rare
def test_only_newlines_end_lines(run: Run, tmp_path: Path) -> None:
    """Also in the output, for programs that know more ends of lines."""
    text = json.dumps({"n": SEPARATORS}, ensure_ascii=False).encode()
    assert "\u2028".encode() in text
    (tmp_path / "in.jsonl").write_bytes(text + b"\n" + text + b"\n")
    assert run("in.jsonl", "out.jsonl").returncode == 0
    output = (tmp_path / "out.jsonl").read_text()
    assert "\U0001f600" in output and len(output.splitlines()) == 2
    assert [one["result"]["n"] for one in results(tmp_path / "out.jsonl")] == [SEPARATORS] * 2


@pytest.mark.long
@pytest.mark.rare
def test_lines_may_be_plain_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b'a cat\r\n  {"n": 1} \n\nb\x0cc\n')
    done = run("in.txt", "-", "--text")
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    texts = [(one["line"], one["result"]["text"]) for one in found]
    assert texts == [(1, "a cat"), (2, '  {"n": 1} '), (4, "b\x0cc")]


@pytest.mark.long
@pytest.mark.rare
def test_lines_may_be_the_arguments_of_a_kind(run: Run, tmp_path: Path) -> None:
    """They are checked, and converted from JSON."""
    write(tmp_path, [{"number": 4, "after": 0.01}, {"number": "4"}, {"numbers": 4}, {}])
    done = run("in.jsonl", "-", "--kind", "double", scheduler="mine:only_kinds")
    assert done.returncode == 1
    first, *others = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["result"] == 8
    assert [one["error"]["type"] for one in others] == ["bad_arguments"] * 3
    assert "double.number: expected a whole number, got str" in others[0]["error"]["message"]
    for other in others[1:]:
        assert other["error"]["message"].startswith("double: expected the arguments (number: int, *, after: ")


@pytest.mark.long
async def test_a_pipe_is_read_while_its_tasks_run(start: Map) -> None:
    process = start("-", "-", "--no-worker")
    other = start("-", "-")  # its worker runs the tasks of both
    assert process.stdin is not None and process.stdout is not None
    for n in range(3):
        await anyio.to_thread.run_sync(process.stdin.write, b'{"n": %d}\n' % n)
        await anyio.to_thread.run_sync(process.stdin.flush)
        text = await anyio.to_thread.run_sync(process.stdout.readline)
        assert json.loads(text)["result"] == {"n": n}
    for one in (process, other):
        await anyio.to_thread.run_sync(one.communicate)
        assert one.returncode == 0


@pytest.mark.long
@pytest.mark.rare
async def test_few_lines_are_in_flight(start: Map, tmp_path: Path, producer: TaskBackoffScheduler) -> None:
    """A line that takes long holds up the reading of the file, not only the writing."""
    write(tmp_path, [{"n": 0, "file": "go"}, *({"n": n} for n in range(1, 50))])
    process = start("in.jsonl", "out.jsonl", "--in-flight", "5")
    await eventually(lambda: _completed(producer, 4), "the others in flight are done")
    await anyio.sleep(0.5)
    assert await _completed(producer, 4) and not (await producer.get_queue_stats()).pending_count
    (tmp_path / "go").touch()
    await anyio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0 and len(results(tmp_path / "out.jsonl")) == 50


async def _completed(producer: TaskBackoffScheduler, count: int) -> bool:
    return (await producer.get_queue_stats()).completed_count == count


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


BLOCK = 60
"""Lines of a part of the input. The tasks of each part wait for a file."""


def write_parts(folder: Path, parts: int) -> None:
    lines = range(parts * BLOCK)
    write(folder, [{"n": n, "seconds": random.random() / 10, "file": f"part{n // BLOCK}"} for n in lines])


async def written(folder: Path, lines: int) -> None:
    """Wait until so many lines are written."""
    await eventually(lambda: lines_of(folder / "out.jsonl.partial") >= lines, f"{lines} lines are written", 60)


async def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Wait for the end of a command; return its exit code and what it has said."""
    _, errors = await anyio.to_thread.run_sync(process.communicate)
    return process.returncode, errors


async def test_a_stopped_run_goes_on_where_it_was(start: Map, tmp_path: Path) -> None:
    """Ctrl-C: what runs is finished, the exit code is 130, and no task runs twice."""
    write_parts(tmp_path, 2)
    (tmp_path / "part0").touch()
    # Tasks of one millisecond start in the order of their ids. Those of the second part must not take all slots.
    process = start("in.jsonl", "out.jsonl", "--in-flight", str(BLOCK))
    await written(tmp_path, random.randint(1, BLOCK))
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"SIGINT: finishing running attempts" not in await anyio.to_thread.run_sync(process.stderr.readline):
        assert process.poll() is None
    (tmp_path / "part1").touch()  # some of these may run
    code, errors = await ended(process)
    lines = lines_of(tmp_path / "out.jsonl.partial")
    assert code == 130 and not (tmp_path / "out.jsonl").exists()
    assert f"stopped: {lines} lines ({lines} completed) are written, ".encode() in errors
    assert b"are in flight; run the same command again to go on" in errors
    assert [one["line"] for one in results(tmp_path / "out.jsonl.partial")] == list(range(1, lines + 1))
    assert (await ended(start("in.jsonl", "out.jsonl")))[0] == 0
    _check(tmp_path, 2 * BLOCK)
    runs = Counter((tmp_path / "ran").read_text().split())
    assert set(runs.values()) == {1}


def _check(folder: Path, count: int) -> None:
    """Each line has one result, its own, in order."""
    found = results(folder / "out.jsonl")
    assert [(one["line"], one["result"]["n"]) for one in found] == [(n + 1, n) for n in range(count)]
    assert not (folder / "out.jsonl.partial").exists()


@pytest.mark.parametrize("embedded", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_a_killed_run_goes_on_where_it_was(start: Map, tmp_path: Path, *, embedded: bool) -> None:
    """Only the tasks that ran at that moment run again."""
    count, kills, before = 500, 3, dict[str, int]()
    write(tmp_path, [{"n": n, "seconds": 0.02} for n in range(count)])
    env = {"TEST_EMBEDDED": "data"} if embedded else {}
    for kill in range(kills + 1):
        # Lost tasks come after the others that are in flight.
        process = start("in.jsonl", "out.jsonl", "--in-flight", "20", env=env)
        if kill < kills:
            await written(tmp_path, lines_of(tmp_path / "out.jsonl.partial") + random.randint(1, 40))
            await anyio.sleep(random.random() / 100)
            process.kill()
        code, errors = await ended(process)
        assert code == (-signal.SIGKILL if kill < kills else 0), errors
        runs = Counter((tmp_path / "ran").read_text().split())
        assert before.items() <= runs.items(), "no line that was written has run again"
        before = {str(n): runs[str(n)] for n in range(lines_of(tmp_path / "out.jsonl.partial"))}
    _check(tmp_path, count)
    assert len(runs) == count and runs.total() <= count + kills * 4


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    """As the power fails: half of a line, or bytes that never reached the disk."""
    path, partial = tmp_path / "out", tmp_path / "out.partial"
    whole = [records.of_error(line, f"x-{line}", "failed", "x", "y") for line in (1, 2, 4, 5)]
    text = b"".join(record.text for record in whole)
    half = b"".join(record.text for record in whole[:2])
    for torn, last in (
        (half + whole[2].text[:30], 2),
        (half + 300 * b"\0", 2),
        (half + half, 2),
        (text[:-1], 4),
        (text, 5),
        (b"", 0),
        (text[:10], 0),
    ):
        partial.write_bytes(torn)
        output = Output(str(path), "x")
        assert (output.last, output.counts["failed"]) == (last, sum(record.line <= last for record in whole))
        output.write(whole)  # those that are there are left out
        output.finish()
        output.close()
        assert path.read_bytes() == text and not partial.exists()
        path.unlink()


@pytest.mark.long
async def test_results_that_the_queue_has_lost_are_made_again(
    start: Map, tmp_path: Path, producer: TaskBackoffScheduler
) -> None:
    """As after their time to live. Lines that are written stay."""
    write(tmp_path, [{"n": 0}, {"n": 1, "file": "go"}, *({"n": n} for n in range(2, 20))])
    process = start("in.jsonl", "out.jsonl")
    await eventually(lambda: _completed(producer, 19), "all but the second one are done")
    await written(tmp_path, 1)
    process.kill()
    await ended(process)
    assert lines_of(tmp_path / "out.jsonl.partial") == 1
    assert await producer.purge_tasks("completed") == 19
    (tmp_path / "go").touch()
    assert (await ended(start("in.jsonl", "out.jsonl")))[0] == 0
    _check(tmp_path, 20)
    runs = Counter((tmp_path / "ran").read_text().split())
    assert runs == {"0": 1, "1": 1, **{str(n): 2 for n in range(2, 20)}}


@pytest.mark.long
@pytest.mark.rare
async def test_results_that_are_lost_during_a_run_are_made_again(
    start: Map, tmp_path: Path, producer: TaskBackoffScheduler
) -> None:
    write(tmp_path, [{"n": 0}, {"n": 1}])
    process = start("in.jsonl", "out.jsonl", "--id", "x", "--no-worker")
    await eventually(lambda: producer.get_task("x-2"), "both are created")
    await producer.delete_task("x-2")
    other = start("-", "-")  # its worker runs them
    assert await anyio.to_thread.run_sync(process.wait) == 0
    _check(tmp_path, 2)
    await anyio.to_thread.run_sync(other.communicate)


@pytest.mark.long
async def test_failed_lines_are_retried_without_the_others(
    start: Map, tmp_path: Path, producer: TaskBackoffScheduler
) -> None:
    """As the guide says: retry their tasks, delete the output, run the command again."""
    write(tmp_path, [{"n": n, "fails": "not yet" * (n == 7)} for n in range(10)])
    assert (await ended(start("in.jsonl", "out.jsonl")))[0] == 1
    (tmp_path / "fixed").touch()
    assert await producer.retry_tasks() == 1
    (tmp_path / "out.jsonl").unlink()
    assert (await ended(start("in.jsonl", "out.jsonl")))[0] == 0
    _check(tmp_path, 10)
    runs = Counter((tmp_path / "ran").read_text().split())
    assert runs == {**{str(n): 1 for n in range(10)}, "7": 3}


@pytest.mark.long
@pytest.mark.rare
async def test_a_run_without_a_worker_uses_others(start: Map, tmp_path: Path, producer: TaskBackoffScheduler) -> None:
    """Ctrl-C ends it at once."""
    write(tmp_path, [{"n": n} for n in range(5)])
    process = start("in.jsonl", "out.jsonl", "--no-worker", scheduler="mine:producer")
    await eventually(lambda: _pending(producer, 5), "the tasks wait")
    process.send_signal(signal.SIGINT)
    code, errors = await ended(process)
    assert code == 130 and b"stopped: 0 lines are written, 5 are in flight" in errors
    assert not (tmp_path / "out.jsonl.partial").exists(), "there is nothing in it"
    process = start("in.jsonl", "out.jsonl", "--no-worker", scheduler="mine:producer")
    worker = TaskBackoffScheduler(quick_config(producer.config.storage))

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> dict[str, Any]:
        return task.task_params

    async with worker:
        assert await anyio.to_thread.run_sync(process.wait) == 0
    _check(tmp_path, 5)


async def _pending(producer: TaskBackoffScheduler, count: int) -> bool:
    return (await producer.get_queue_stats()).pending_count == count


@pytest.mark.long
async def test_a_full_queue_and_an_outage_are_waited_for(start: Map, tmp_path: Path, server: Server) -> None:
    write(tmp_path, [{"n": n, "seconds": 0.01} for n in range(50)])
    process = start("in.jsonl", "out.jsonl", env={"TEST_QUEUE_SIZE": "10"})
    await eventually(lambda: lines_of(tmp_path / "out.jsonl.partial"), "lines are written")
    server.pause()
    await anyio.sleep(1)
    server.go_on()
    await anyio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0
    _check(tmp_path, 50)


@pytest.mark.long
async def test_two_runs_do_not_write_one_file(
    start: Map, run: Run, tmp_path: Path, producer: TaskBackoffScheduler
) -> None:
    """The second one is refused."""
    write(tmp_path, [{"n": 0, "file": "go"}])
    first = start("in.jsonl", "out.jsonl")
    await eventually(lambda: _processing(producer), "it runs")
    second = await anyio.to_thread.run_sync(lambda: run("in.jsonl", "out.jsonl"))
    assert second.returncode == 2 and b"another process writes 'out.jsonl.partial'" in second.stderr
    (tmp_path / "go").touch()
    await anyio.to_thread.run_sync(first.communicate)
    assert first.returncode == 0
    _check(tmp_path, 1)


USAGE: list[tuple[str, str, str]] = [
    ("none.jsonl out.jsonl", "mine:scheduler", "cannot read 'none.jsonl': No such file or directory"),
    (". out.jsonl", "mine:scheduler", "cannot read '.': it is a folder"),
    ("in.jsonl none/out.jsonl", "mine:scheduler", "cannot write 'none/out.jsonl.partial': No such file or directory"),
    ("in.jsonl old.jsonl", "mine:scheduler", "'old.jsonl' exists: give another name, or delete it"),
    ("in.jsonl in.jsonl", "mine:scheduler", "'in.jsonl' exists: give another name, or delete it"),
    ("in.jsonl part.jsonl", "mine:scheduler", "'part.jsonl.partial' has lines of another input, kind or --id: "),
    ("in.jsonl out.jsonl --kind none", "mine:scheduler", "expected the name of a declared kind (double), got 'none'"),
    ("in.jsonl out.jsonl", "mine:only_kinds", "no handler for tasks without a kind: add --kind (double)"),
    ("in.jsonl out.jsonl", "mine:producer", "'mine:producer' has no handler"),
    ("in.jsonl out.jsonl --tasks-at-once 0", "mine:scheduler", "concurrency: expected"),
    ("in.jsonl out.jsonl --in-flight 0", "mine:scheduler", "expected a whole number from 1 to 100000, got '0'"),
    ("in.jsonl out.jsonl --id \t", "mine:scheduler", "--id: expected 1 to 200 printable characters"),
    ("in.jsonl out.jsonl --no-worker --tasks-at-once 3", "mine:scheduler", "--tasks-at-once is for the worker"),
    ("in.jsonl out.jsonl --no-worker", "mine:private", "leave out --no-worker"),
    ("in.jsonl", "mine:scheduler", "the following arguments are required: OUT"),
]


async def _processing(producer: TaskBackoffScheduler) -> int:
    return (await producer.get_queue_stats()).processing_count


def test_wrong_usage_is_refused_in_one_sentence(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2. Files that are there stay as they are."""
    (tmp_path / "mine.py").write_text(MODULE)
    write(tmp_path, [{"n": 0}])
    for name in ("old.jsonl", "part.jsonl.partial"):
        (tmp_path / name).write_text("precious\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("maas_backoff.__main__.end_without", lambda *_: None)
    monkeypatch.setenv("TEST_PORT", str(server.port))
    try:
        for words, scheduler, complaint in USAGE:
            with pytest.raises(SystemExit) as caught:
                main(["map", scheduler, *words.split(" ")])
            said = capsys.readouterr()
            assert (caught.value.code, said.out) == (2, "") and complaint in said.err, (words, said)
    finally:
        sys.modules.pop("mine", None)
    names = {"mine.py", "in.jsonl", "old.jsonl", "part.jsonl.partial", "__pycache__"}
    assert {path.name for path in tmp_path.iterdir()} <= names
    assert (tmp_path / "old.jsonl").read_text() == (tmp_path / "part.jsonl.partial").read_text() == "precious\n"


@pytest.mark.long
@pytest.mark.rare
def test_a_server_that_does_not_answer_is_exit_code_3(run: Run, tmp_path: Path) -> None:
    write(tmp_path, [{"n": 0}])
    done = run("in.jsonl", "out.jsonl", env={"TEST_PORT": "1"})
    assert done.returncode == 3 and b"the server does not answer" in done.stderr


@pytest.mark.long
@pytest.mark.rare
def test_a_full_disk_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    write(tmp_path, [{"n": 0}])
    done = run("in.jsonl", "/dev/full")
    assert done.returncode == 1 and b"/dev/full: No space left on device" in done.stderr


@pytest.mark.long
@pytest.mark.rare
async def test_a_run_says_what_its_next_line_waits_for(start: Map, tmp_path: Path) -> None:
    write(tmp_path, [{"n": 0}])
    process = start("in.jsonl", "out.jsonl", "--no-worker")
    assert process.stderr is not None
    said = b""
    while b"0 of 1 lines" not in said or b"line 1: worker: none is running" not in said:
        said = await anyio.to_thread.run_sync(process.stderr.readline)
        assert said, "the command has ended"


@pytest.mark.long
def test_another_input_has_other_tasks(run: Run, tmp_path: Path) -> None:
    """The ids are those of the content, not of the name. With --id, they are given."""
    write(tmp_path, [{"n": 1}, {"n": 2}])
    (tmp_path / "same.jsonl").write_bytes((tmp_path / "in.jsonl").read_bytes())
    for name in ("in", "same"):
        assert run(f"{name}.jsonl", f"{name}.out").returncode == 0
    assert (tmp_path / "in.out").read_bytes() == (tmp_path / "same.out").read_bytes()
    assert sorted((tmp_path / "ran").read_text().split()) == ["1", "2"], "the results are in the queue"
    write(tmp_path, [{"n": 1}, {"n": 3}])
    assert run("in.jsonl", "other.out").returncode == 0
    assert run("in.jsonl", "given.out", "--id", "nightly").returncode == 0
    assert sorted((tmp_path / "ran").read_text().split()[2:]) == ["1", "1", "3", "3"]
    assert [one["task_id"] for one in results(tmp_path / "given.out")] == ["nightly-1", "nightly-2"]
    write(tmp_path, [{"n": 1}, {"n": 4}])
    done = run("in.jsonl", "-", "--id", "nightly")
    assert done.returncode == 1
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["completed", "invalid"]
    assert b"other params: choose another --id" in done.stdout


@pytest.mark.long
@pytest.mark.rare
def test_progress_is_a_line_a_second_elsewhere_than_on_a_terminal(run: Run, tmp_path: Path) -> None:
    write(tmp_path, [{"n": n, "seconds": 0.5} for n in range(12)])
    begun = time.monotonic()
    done = run("in.jsonl", "out.jsonl")
    lines = [line for line in done.stderr.decode().splitlines() if " of 12 lines, 0 failed, " in line]
    assert 1 <= len(lines) <= time.monotonic() - begun


@pytest.mark.long
@pytest.mark.rare
@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bcd"])), st.data())
def test_lines_are_the_same_however_they_arrive(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    splitter, found = Splitter(5), list[InputLine]()
    while whole:
        size = data.draw(st.integers(1, len(whole)))
        found += splitter.feed(whole[:size])
        whole = whole[size:]
    found += splitter.end()
    expected = b"".join(parts).split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert found == [(n, line if len(line) <= 5 else None) for n, line in enumerate(expected, 1)]


@pytest.mark.long
@pytest.mark.rare
def test_the_record_of_a_cancelled_task_says_why() -> None:
    error = TaskError("ValueError", "boom", 7)
    for reason, before, message in (
        ("expired", error, "expired, after ValueError: boom"),
        ("requested", None, "requested"),
        (None, None, "requested"),
    ):
        task = TaskEntity("x-3", "test", {}, TaskStatus.CANCELLED, error=before, cancel_reason=reason)
        found = json.loads(records.of_task(3, task).text)
        assert found == {
            "line": 3,
            "task_id": "x-3",
            "status": "cancelled",
            "error": {"type": "cancelled", "message": message, "code": None},
        }


@pytest.mark.long
@pytest.mark.rare
@given(st.text(min_size=1), st.integers(1, 10**15), st.text())
def test_a_record_is_read_back(prefix: str, line: int, message: str) -> None:
    try:
        (prefix + message).encode()
    except UnicodeEncodeError:
        return
    record = records.of_error(line, records.task_id_of(prefix, line), "failed", "x", message)
    assert record.text.decode().splitlines() == [record.text.decode()[:-1]]
    found = records.read(record.text, prefix)
    assert found is not None and (found.line, found.status) == (line, "failed")
    assert records.read(record.text, prefix + "-") is None
    assert records.read(record.text[:-1], prefix) is None
