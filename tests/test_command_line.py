"""The command line as a whole: help, messages, JSON, completion, and the live view."""

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import anyio
import pytest
from command_line import Run, commands_on
from support import Server, eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.__main__ import parser
from maas_backoff.commands.catalogue import CATALOGUE, command
from maas_backoff.commands.completion import SHELLS
from maas_backoff.commands.json_text import json_text

CAT = "一只猫"


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return commands_on(server, monkeypatch, capsys)


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_command_has_a_description_and_an_example_that_is_right(name: str) -> None:
    found = command(name)
    assert found.about.endswith(".")
    *_, example = found.example.partition("maas-backoff ")
    words = shlex.split(example.rstrip(")"))
    assert words[0] == name
    assert parser([name]).parse_args(words).command == name


def test_the_catalogue_has_all_commands_of_its_modules() -> None:
    modules = {import_module(f"maas_backoff.commands.{entry.module}") for entry in CATALOGUE.values()}
    found = {name for module in modules for name in module.COMMANDS}
    assert found == CATALOGUE.keys()


def test_help_shows_the_example(run: Run) -> None:
    code, out, _ = run("cancel", "--help")
    assert code == 0 and "Example: maas-backoff cancel img-1 --running" in out and "Without --running" in out


def mark(config: TaskBackoffConfig, *ids: str) -> None:
    """Create tasks that run outside of workers."""

    async def create() -> None:
        async with TaskBackoffScheduler(config) as scheduler:
            for task_id in ids:
                await scheduler.create_task({}, task_id)
                assert await scheduler.mark_task_processing(task_id)

    anyio.run(create)


def test_a_refusal_names_the_task_and_what_to_do(run: Run, config: TaskBackoffConfig) -> None:
    mark(config, "img-1")
    for verb, why in (
        ("cancel", "add --running"),
        ("retry", "only failed and cancelled tasks can be retried"),
    ):
        assert run(verb, "img-1") == (1, "", f"maas-backoff {verb}: img-1 is running: {why}\n")
    assert run("update", "img-1", "--delay", "1")[2].endswith("img-1 is running: only pending tasks can be changed\n")
    assert run("cancel", "img-1", "--running")[:2] == (0, "cancelled\n")
    told = run("cancel", "img-1")[2]
    assert re.fullmatch(r"maas-backoff cancel: img-1 was cancelled at \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ\n", told)
    assert run("cancel", "nothing")[2] == "maas-backoff cancel: no task nothing in queue test\n"


def test_acts_print_json(run: Run, config: TaskBackoffConfig) -> None:
    def view(*arguments: str, code: int = 0) -> object:
        found, out, complaint = run(*arguments, "--json")
        assert (found, complaint) == (code, "")
        return json.loads(out)

    assert view("create", "{}", "--id", "x") == {"task_id": "x"}
    assert view("update", "x", "--priority", "3") == {"task_id": "x", "changed": True, "reason": ""}
    assert view("cancel", "x") == {"task_id": "x", "changed": True, "reason": ""}
    reason = "no task y in queue test"
    assert view("cancel", "y", code=1) == {"task_id": "y", "changed": False, "reason": reason}
    assert view("retry", "x") == {"task_id": "x", "changed": True, "reason": ""}
    assert view("delete", "x") == {"task_id": "x", "changed": True, "reason": ""}
    assert view("purge", "failed", "--yes") == {"state": "failed", "changed": 0}
    assert view("pause") == {"changed": True} and view("pause") == {"changed": False}
    assert view("resume") == {"changed": True}
    assert view("weight", "acme", "2") == {"changed": True}
    assert view("limit", "openai", "--concurrency", "2") == {"changed": True}
    assert view("limit", "openai", "--remove") == {"changed": True}
    assert view("check") == {"ok": True, "reason": "", "workers_here": 0}
    assert view("quiet", "gpu-7", code=1) == {"workers": [], "quiet": True}


def test_chinese_is_shown_as_it_is(run: Run) -> None:
    assert run("create", json.dumps({"prompt": CAT}), "--id", CAT) == (0, f"{CAT}\n", "")
    for words in (("get", CAT), ("get", CAT, "--json"), ("list", "--json"), ("list",)):
        out = run(*words)[1]
        assert CAT in out and "\\u" not in out


def test_json_for_a_terminal_has_no_character_that_it_obeys() -> None:
    hostile = {"text": f"\x1b[2J\x9b\u202e{CAT}\U000e0001"}
    text = json_text(hostile, indent=2)
    assert json.loads(text) == hostile
    assert all(char.isprintable() or char == "\n" for char in text) and CAT in text


UNITS = re.compile(r"_(mib|mb|ms|bytes|minutes)$")


def test_json_has_one_unit_for_each_quantity(run: Run, server: Server) -> None:
    """GPU memory is in GiB, in fields that end with _gb; times are ISO 8601 with a zone."""
    enter_worker(server, "gpu-7-1-abc")
    run("create", "{}", "--id", "x")
    for words in (("stats",), ("workers",), ("list",), ("get", "x"), ("history",), ("queues",), ("top", "--once")):
        code, out, _ = run(*words, "--json")
        assert code == 0, words
        names = set(fields(json.loads(out)))
        assert not any(map(UNITS.search, names)), words
    (worker,) = json.loads(run("workers", "--json")[1])
    (gpu,) = worker["gpus"]
    assert (gpu["total_gb"], gpu["free_gb"], gpu["health"]) == (24.0, 8.0, "ok")
    (task,) = json.loads(run("list", "--json")[1])["tasks"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", task["created_at"])


def enter_worker(server: Server, name: str) -> None:
    """Enter a worker with a GPU into the registry."""
    entry = json.dumps({"host": "h", "slots": 4, "running": 1, "gpus": [GPU]})
    server.client.zadd("maas:{test}:workers", {name: (time.time() + 60) * 1000})
    server.client.set(f"maas:{{test}}:w:{name}", entry, ex=60)


GPU = {
    "uuid": "GPU-a",
    "index": 0,
    "name": "H200",
    "total": 24 * 1024,
    "free": 8 * 1024,
    "room": 8 * 1024,
    "most": 24 * 1024,
    "utilization": 10,
    "temperature": 50,
    "health": "ok",
    "age": 1,
}


def fields(value: object) -> list[str]:
    """Return the names of all fields in JSON."""
    if isinstance(value, dict):
        return [name for key, one in value.items() for name in (str(key), *fields(one))]
    return [name for one in value for name in fields(one)] if isinstance(value, list) else []


def run_tasks(config: TaskBackoffConfig, number: int) -> None:
    async def work() -> None:
        scheduler = TaskBackoffScheduler(config)

        @scheduler.set_custom_task_handler
        async def handle(_: TaskEntity) -> None: ...

        async with scheduler:
            for n in range(number):
                await scheduler.wait_task(await scheduler.create_task({"n": n}), 20)

    anyio.run(work)


def test_the_history_of_hours_and_days(run: Run, config: TaskBackoffConfig) -> None:
    run_tasks(config, 3)
    for words, step, steps in (((), 60, 60), (("--hours", "24"), 600, 144), (("--days", "7"), 3600, 168)):
        history = json.loads(run("history", *words, "--json")[1])
        assert (history["step"], len(history["steps"])) == (step, steps)
        assert history["recent"]["completed"] == history["total"]["completed"] == 3
        assert sum(one["completed"] for one in history["steps"]) == 3
        assert {"count", "p50", "p95", "p99"} == history["recent"]["runs"].keys()
        assert re.search(r"^all +3 ", run("history", *words)[1], re.MULTILINE)
    assert run("history", "--hours", "25")[0] == run("history", "--days", "0")[0] == 2
    assert run("history", "--hours", "2", "--days", "1")[0] == 2


def test_one_frame_of_the_live_view(run: Run, config: TaskBackoffConfig, server: Server) -> None:
    run_tasks(config, 2)
    enter_worker(server, "gpu-7-1-abc")
    code, out, _ = run("top", "--once")
    assert code == 0
    for text in ("queue test", "completed", "A minute, in the last", "ran: ", "gpu-7-1-abc", "24.0"):
        assert text in out
    view = json.loads(run("top", "--json")[1])
    assert view["stats"]["completed_count"] == 2 and view["workers"][0]["name"] == "gpu-7-1-abc"
    assert run("top")[0] == 1, "stdout is no terminal"


class Live:
    """A command at a terminal of 80 columns and 24 lines."""

    def __init__(self, server: Server, *command: str) -> None:
        self.mine, its = pty.openpty()
        env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "MAAS_BACKOFF_BIZ_PREFIX": "test"}
        env["MAAS_BACKOFF_URL"] = f"redis://127.0.0.1:{server.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "maas_backoff", *command], env=env, stdin=its, stdout=its
        )
        os.close(its)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the command has ended
            while part := os.read(self.mine, 65_536):
                self.text += part.decode(errors="replace")

    def ended(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self._reader.join(20)
            os.close(self.mine)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["q", pytest.param("\x03", marks=pytest.mark.rare)])
async def test_the_live_view_draws_in_place_and_ends_with_a_key(server: Server, key: str) -> None:
    live = Live(server, "top", "--interval", "0.2")
    await eventually(lambda: live.text.count("maas-backoff top") >= 3, "it is drawn again and again", 20)
    os.write(live.mine, key.encode())
    assert live.ended() == 0
    assert live.text.startswith("\x1b[?1049h") and live.text.rstrip().endswith("\x1b[?1049l")
    frames = live.text.split("\x1b[H")[1:]
    assert all(len(frame.splitlines()) <= 24 for frame in frames)


@pytest.mark.long
def test_a_list_fits_80_columns(run: Run, server: Server) -> None:
    for number in range(2):
        run("create", "{}", "--id", f"img-acme-00000{number}")
    live = Live(server, "list")
    assert live.ended() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", live.text).splitlines()
    rule = next(number for number, line in enumerate(lines) if "───" in line)
    assert len(lines) - rule - 1 <= 6 and max(map(len, lines)) <= 80
    assert all(f"img-acme-00000{number}" in live.text for number in range(2))


COMPLETED = {
    "maas-backoff can": {"cancel"},
    "maas-backoff worker --log-format ": {"plain", "json"},
    "maas-backoff purge fa": {"failed"},
    "maas-backoff history --h": {"--help", "--hours"},
    "maas-backoff cancel --runn": {"--running"},
}


@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes(line: str, tmp_path: Path, run: Run) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    script = tmp_path / "completion"
    script.write_text(run("completion", "bash")[1])
    words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
    ask = f"source {script}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; "
    ask += '_maas_backoff; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True, timeout=20)
    assert set(done.stdout.split()) == COMPLETED[line]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(shell: str, tmp_path: Path, run: Run) -> None:
    """Those that are installed; each script names each command."""
    code, text, _ = run("completion", shell)
    assert code == 0 and all(name in text for name in CATALOGUE)
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    script = tmp_path / "completion"
    script.write_text(text)
    subprocess.run([shell, "-n", str(script)], check=True, timeout=20)


@pytest.mark.parametrize("line", COMPLETED)
def test_fish_completes(line: str, tmp_path: Path, run: Run) -> None:
    if shutil.which("fish") is None:
        pytest.skip("there is no fish")
    script = tmp_path / "completion"
    script.write_text(run("completion", "fish")[1])
    ask = f"source {script}; complete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "-N", "-c", ask], capture_output=True, text=True, check=True, timeout=20)
    assert COMPLETED[line] <= {one.split("\t")[0] for one in done.stdout.splitlines()}
