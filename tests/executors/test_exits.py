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
