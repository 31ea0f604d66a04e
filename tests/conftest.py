"""Servers for the tests, and what must hold after every one of them."""

import concurrent.futures
import gc
import multiprocessing
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from support import EACH_SERVER, USUAL, Server, quick_config

import maas_backoff.worker.handlers  # noqa: F401 - the first scheduler with a handler imports it, mostly in an event loop
from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    """Give a server by its name; each is started once a session."""
    running: dict[str, Server] = {}
    with tempfile.TemporaryDirectory() as folder:

        def get(name: str) -> Server:
            if name not in running:
                running[name] = Server(name, Path(folder))
            return running[name]

        yield get
        for server in running.values():
            server.stop()


@pytest.fixture
def server(servers: Callable[[str], Server]) -> Iterator[Server]:
    """The server most tests run on, empty; a key that is left without an end fails the test."""
    yield from _clean(servers(USUAL))


@pytest.fixture(params=EACH_SERVER)
def any_server(servers: Callable[[str], Server], request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server in turn; most of them only where the long tests run."""
    yield from _clean(servers(request.param))


# One of each per queue, and bounded: indexes of live tasks, counters, policies.
_LASTING = {
    b"ready",
    b"suspects",
    b"demands",
    b"scheduled",
    b"leases",
    b"external",
    b"marker",
    b"gpu_marker",
    b"kinds",
    b"policies",
    b"meta",
    b"totals",
    b"errors",
    b"deadlines",
    b"workers",
    *(b"lanes", b"laned", b"waiting", b"virtual", b"tenants", b"paused_tenants", b"paused_by"),
    *(b"limits", b"use", b"held", b"arrivals", b"closed", b"opens"),
}
_OF_LANES = re.compile(rb"^(?:ready|gpu:.+)(?:\||:turns$|:limited\|)|^shut(?:_lanes)?:")
"""The keys of lanes: none is left when the last lane is gone."""
_OF_A_KIND = re.compile(rb"^k:[^:]+:")
_TRIMMED = {b"completed", b"failed", b"cancelled"}


def _clean(server: Server) -> Iterator[Server]:
    server.client.flushall()
    yield server
    leaks = [key for key in server.client.scan_iter(count=1000) if _leaks(server.client, key)]
    assert not leaks, f"keys without a time to live or a bound: {leaks}"


def _leaks(client: Any, key: bytes) -> bool:
    name = _OF_A_KIND.sub(b"", key.partition(b"}:")[2])
    if not key.startswith((b"maas:{", b"maas:gpu:{")):
        return False
    if _OF_LANES.search(name):
        prefix = key.partition(b"}:")[0] + b"}:"
        # Suspects wait for limits without a lane.
        return not client.exists(prefix + b"lanes", *([prefix + b"opens"] if name.startswith(b"shut") else []))
    if name.startswith((b"parts:", b"log:")):
        return _outlives_its_task(client, key)
    if name in _LASTING or name in _TRIMMED or name.startswith(b"gpu:") or client.ttl(key) != -1:  # -2: it is gone
        return False
    # A live task stays until it is finished.
    return not (name.startswith(b"t:") and client.hget(key, "s") in {None, b"pending", b"processing", b"external"})


def _outlives_its_task(client: Any, key: bytes) -> bool:
    """Whether a stream or a log has no time to live, or a longer one than its finished task, or no task at all."""
    head, _, name = key.partition(b"}:")
    task = head + b"}:t:" + name.partition(b":")[2]
    its_ttl, ttl = client.pttl(task), client.pttl(key)
    if ttl == -2:
        return False
    return ttl == -1 or its_ttl == -2 or (its_ttl != -1 and ttl > its_ttl + 1000)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fail a test in which something blocks the event loop, unless blocking is what it is about."""
    if request.node.get_closest_marker("blocks"):
        yield None
        return
    with blockbuster_ctx("maas_backoff") as blocker:
        # Popen waits for its exec, on the loop's thread: the child is to die with the thread that started it.
        blocker.functions["os.read"].can_block_in("executors/parent.py", "spawn")
        yield blocker


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of one process. Nothing is left of it: freed on the loop of a later test, its semaphores block it."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        yield pool
    gc.collect()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def config(server: Server) -> TaskBackoffConfig:
    """A quick configuration on the usual server."""
    return quick_config(server.storage)


@pytest.fixture
async def scheduler(config: TaskBackoffConfig) -> AsyncIterator[TaskBackoffScheduler]:
    """A scheduler that is not started; stopped at the end."""
    scheduler = TaskBackoffScheduler(config)
    yield scheduler
    await scheduler.shutdown()


def pytest_configure(config: pytest.Config) -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        # Private embedded servers of one user share a directory there; tests look at all that is in it.
        folder = Path(tempfile.gettempdir(), f"maas-backoff-tests-{worker}")
        folder.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.environ.pop("MAAS_BACKOFF_URL", None)
    os.environ["LC_ALL"] = "C.UTF-8"  # commands speak English, whoever runs the tests
