"""Producers, workers and servers are killed, stopped and cut off: no task is lost, stuck or settled twice."""

import random
from pathlib import Path

import pytest
from chaos.driver import Driver
from chaos.durable import DurableServer
from support import SERVERS, server_binary

SECONDS = 11.0


@pytest.mark.long
@pytest.mark.timeout(180)  # of which a drain that is stuck takes 60
@pytest.mark.parametrize("name", SERVERS)
def test_chaos_costs_no_task(name: str, tmp_path: Path) -> None:
    """A shorter run than `nox -s chaos` makes, from a new seed each time; the seed is printed when it fails."""
    if server_binary(name) is None:
        pytest.skip(f"no {name} server on this machine")
    summary = Driver(DurableServer(name, tmp_path), tmp_path, random.randrange(10**6)).run(SECONDS)
    print(summary.line(name))
    assert summary.violations == []
    # It was a run worth its name.
    assert summary.statuses["completed"] > 50
    assert summary.faults["kills"] and summary.faults.total() >= 6
