"""Producers, workers and servers are killed, stopped and cut off: no task is lost, stuck or settled twice."""

import random
from pathlib import Path

import pytest
from chaos.driver import Driver
from chaos.durable import DurableServer
from chaos.releases import LAST_RELEASE, ReleaseMissingError, unpack
from support import SERVERS, USUAL, server_binary

SECONDS = 11.0
MIXED_SECONDS = 20.0


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


@pytest.mark.long
@pytest.mark.timeout(180)
def test_workers_of_the_last_release_and_of_this_one_share_a_queue(tmp_path: Path) -> None:
    """A rolling deploy, forth and back, under the faults of a chaos run. Producers of both releases create tasks."""
    try:
        old = unpack(LAST_RELEASE, tmp_path / "release")
    except ReleaseMissingError as error:
        pytest.skip(str(error))
    summary = Driver(DurableServer(USUAL, tmp_path), tmp_path, random.randrange(10**6), old).run(MIXED_SECONDS)
    print(summary.line(USUAL))
    assert summary.violations == []
    assert summary.statuses["completed"] > 50
    assert summary.faults["kills"] and summary.faults.total() >= 6
    assert summary.mixture is not None and summary.mixture.in_both
