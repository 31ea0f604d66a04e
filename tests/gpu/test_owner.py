"""The owner of the GPU memory of a process."""

import subprocess
import sys

from maas_backoff.gate.owner import owner_of

WORKER = """
import os, subprocess, sys
from maas_backoff.gate.owner import owner_using
apart = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
print(os.getpid(), apart.pid, flush=True)
sibling, its = map(int, input().split())
print(*(owner_using(pid) for pid in (os.getpid(), apart.pid, sibling, its)), flush=True)
input()
apart.kill()
"""

SERVER = f"""
import subprocess, sys
start = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
workers = [subprocess.Popen([sys.executable, "-c", {WORKER!r}], **start) for _ in range(2)]
pids = [one.stdout.readline() for one in workers]
for one, others in zip(workers, pids[::-1]):
    one.stdin.write(others)
    one.stdin.flush()
found = [one.stdout.readline() for one in workers]
print(*pids, *found, sep="", end="")
for one in workers:
    one.communicate("\\n")
"""


def test_two_workers_of_one_server_use_memory_of_their_own() -> None:
    """They share a session (uvicorn --workers 2). What a worker starts counts as its own, in any session."""
    command = [sys.executable, "-c", SERVER]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, start_new_session=True)
    first, second, *found = (line.split() for line in said.stdout.splitlines())
    for (worker, _), (me, mine, sibling, its) in zip((first, second), found, strict=True):
        assert me == mine == owner_of(int(worker))
        assert me not in {sibling, its}
