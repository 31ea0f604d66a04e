"""How a child has ended, in words, and whether it has."""

import os
import subprocess
import sys

import pytest

from maas_backoff.worker.executors.exits import description, has_ended


def test_a_process_has_ended_before_and_after_it_is_reaped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert not has_ended(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(process) and process.returncode is None, "a look does not reap it"
    process.communicate()
    assert has_ended(process)
    process.returncode = None  # somebody else has reaped it
    assert has_ended(process)
    process.returncode = -9


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "child process exited with code 3"),
        (-9, "child process was killed by SIGKILL, probably by the out-of-memory killer"),
        (-15, "child process was killed by SIGTERM"),
        (-40, "child process was killed by signal 40"),
    ],
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert description(code) == words


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no signal reports the end of the parent")
@pytest.mark.parametrize(("parent", "printed"), [("os.getppid()", "goes on"), ("os.getpid()", "")])
def test_a_child_whose_parent_has_ended_before_it_asked_for_the_signal_ends(parent: str, printed: str) -> None:
    """The kernel reports no end that came before. Another process has the child by then."""
    code = (
        f"import os; from maas_backoff.worker.executors.child import _die_with; _die_with({parent}); print('goes on')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == printed
