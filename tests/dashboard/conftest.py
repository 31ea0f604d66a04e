"""The service of dashboard_service.py under uvicorn, and tasks for it."""

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from served import Served
from support import Server

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskSpec

if TYPE_CHECKING:  # the quick tests of this folder need no browser
    from playwright.sync_api import Browser

InThread = Callable[[Callable[[TaskBackoffScheduler], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One browser for all tests of a file."""
    from chromium import chromium

    with chromium() as one:
        yield one


@pytest.fixture
def served(tmp_path: Path, server: Server) -> Iterator[Served]:
    env = {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "MAAS_BACKOFF_LEASE": "3"}
    env["MAAS_BACKOFF_BACKOFF_INTERVAL"] = "0.05"
    service = Served("dashboard_service:app", env, tmp_path / "uvicorn.log")
    yield service.answering("/tasks/")
    service.end()


@pytest.fixture
def in_thread(config: TaskBackoffConfig) -> InThread:
    """Call a function with a producer, in a thread of its own: Playwright's loop runs in the test's."""

    def run(use: Callable[[TaskBackoffScheduler], Awaitable[None]]) -> None:
        async def main() -> None:
            async with TaskBackoffScheduler(config) as producer:
                await use(producer)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(anyio.run, main).result()

    return run


@pytest.fixture
def create(in_thread: InThread) -> Callable[..., None]:
    """Create tasks: `create(TaskSpec(…), …)`."""

    def run(*specs: TaskSpec) -> None:
        async def use(producer: TaskBackoffScheduler) -> None:
            await producer.create_tasks(specs)

        in_thread(use)

    return run
