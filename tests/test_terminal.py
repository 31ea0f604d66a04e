"""A terminal shows more where rich is installed; a pipe gets the same text as without it."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest
from support import Server, eventually, quick_config

from maas_backoff import TaskBackoffScheduler, TaskEntity
from maas_backoff.commands.text import cell

HOSTILE = "\x1b[2J\x07 [bold red]x[/] [link=http://evil]:smile: \u202e\n"

PLAIN = "retry  delay s  after first failure\n1      5        5 s                  ####################\n"
PLAIN += "2      10       15 s                 ########################################\n"
PREVIEW = ("preview", "--backoff-interval", "5", "--max-retry-count", "2")

HIDDEN = "import sys; sys.modules['rich'] = None; from maas_backoff.__main__ import main; main(sys.argv[1:])"
COMMAND = ("-m", "maas_backoff")
WITHOUT_RICH = ("-c", HIDDEN)

STYLES = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[(\?25[lh]|2K|1A)|\r")


class Terminal:
    """A command at a terminal of 100 columns; `text` grows as it prints."""

    def __init__(self, *command: str, url: str = "redis://127.0.0.1:1") -> None:
        mine, its = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        env |= {"NO_COLOR": "", "MAAS_BACKOFF_URL": url, "MAAS_BACKOFF_BIZ_PREFIX": "test"}
        self._process = subprocess.Popen([sys.executable, *command], env=env, stdin=its, stdout=its, stderr=its)
        os.close(its)
        self._seen = b""
        self._reader = threading.Thread(target=self._read, args=(mine,))
        self._reader.start()

    def _read(self, mine: int) -> None:
        # Linux says by an error that nobody writes any more.
        with contextlib.suppress(OSError):
            while seen := os.read(mine, 4096):
                self._seen += seen
        os.close(mine)

    @property
    def text(self) -> str:
        return self._seen.decode(errors="ignore").replace("\r\n", "\n")

    def ended(self) -> int:
        try:
            return self._process.wait(20)
        finally:
            self._process.kill()
            self._reader.join(20)


@pytest.mark.parametrize("command", [COMMAND, WITHOUT_RICH])
def test_through_a_pipe_it_is_what_it_was(command: tuple[str, ...]) -> None:
    """Byte for byte, with rich and without, whatever the environment says of colours."""
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    run = subprocess.run([sys.executable, *command, *PREVIEW], env=env, capture_output=True, check=True)
    assert run.stdout == PLAIN.encode()


def test_at_a_terminal_without_rich_it_is_what_it_was() -> None:
    terminal = Terminal(*WITHOUT_RICH, *PREVIEW)
    assert terminal.ended() == 0 and terminal.text == PLAIN


def test_at_a_terminal_tables_are_drawn() -> None:
    terminal = Terminal(*COMMAND, *PREVIEW)
    assert terminal.ended() == 0
    lines = STYLES.sub("", terminal.text).splitlines()
    assert lines[0].split() == ["retry", "delay", "s", "after", "first", "failure"] and set(lines[1]) == {"─"}
    assert [line.count("#") for line in lines[2:]] == [20, 40]
    assert f"\x1b[36m{40 * '#'}\x1b[0m" in terminal.text


def test_a_task_is_followed_by_a_bar_and_its_text_is_shown_and_not_obeyed(server: Server) -> None:
    """A line for each state, a bar for the progress, and of all escapes only those of the bar."""
    config, url = quick_config(server.storage), f"redis://127.0.0.1:{server.port}"

    async def run() -> Terminal:
        scheduler = TaskBackoffScheduler(config)
        watching: Terminal | None = None

        @scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> None:
            assert watching is not None
            task.update_progress(50, HOSTILE)
            await eventually(lambda: f"attempt {task.attempt}, 50 %" in watching.text, "it is drawn")
            raise ValueError(HOSTILE)

        await scheduler.create_task({}, "x", delay=3600, max_retry_count=1)
        watching = Terminal(*COMMAND, "watch", "x", url=url)
        await eventually(lambda: "pending    attempt 0" in watching.text, "somebody watches")
        await scheduler.update_task("x", delay=0)
        async with scheduler:
            await scheduler.wait_task("x", 20)
        return watching

    watching = anyio.run(run)
    assert watching.ended() == 1
    assert "━" in watching.text and watching.text.endswith("\x1b[2K"), "the bar is gone at the end"
    assert f"failed     attempt 2, 50 %  {cell(f'ValueError: {HOSTILE}')}\n" in watching.text
    listing = Terminal(*COMMAND, "list", "--state", "failed", url=url)
    assert listing.ended() == 0
    for text in (watching.text, listing.text):
        assert "[bold" in text and "red]x[/]" in text and "\\x1b[2J" in text
        assert all(char.isprintable() or char == "\n" for char in MOVES.sub("", STYLES.sub("", text)))


MAPPED = """
import os, time
from maas_backoff import *

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_env())

@scheduler.set_custom_task_handler
def handle(task):
    while not os.path.exists(task.task_params["text"]):
        time.sleep(0.01)
"""


def test_a_run_over_a_file_is_followed_by_a_bar(server: Server, tmp_path: Path) -> None:
    """It is written over, and gone at the end."""
    (tmp_path / "mine_of_terminal.py").write_text(MAPPED)
    (tmp_path / "in.txt").write_text(f"{tmp_path / 'in.txt'}\n{tmp_path / 'go'}\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from maas_backoff.__main__ import main; main()"
    words = ("map", "mine_of_terminal:scheduler", str(tmp_path / "in.txt"), str(tmp_path / "out"), "--text")

    async def run() -> Terminal:
        running = Terminal("-c", script, *words, url=f"redis://127.0.0.1:{server.port}")
        await eventually(lambda: "[##########..........] 1 of 2 lines, 0 failed, " in running.text, "one is done")
        (tmp_path / "go").touch()
        return running

    running = anyio.run(run)
    assert running.ended() == 0
    bars, _, summary = running.text.rpartition("\r\x1b[K")
    assert "\n" not in bars[bars.index(" s [") :]
    assert summary.startswith("maas-backoff map: 2 lines (2 completed) in ")
