"""The fixture for users' tests, as they use it: a file of their own, run by a pytest of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

A_DAY = '''
import threading
from datetime import timedelta

import pytest

from maas_backoff import TaskBackoffConfig, TaskConfig, TaskEntity
from maas_backoff.testing import FakeGpu


{mark}
async def test_a_day(simulate):
    """12 retries, on a config and a GPU of the test's own."""
    config = TaskBackoffConfig(task=TaskConfig(max_retry_count=12, max_backoff_interval=7200, min_gpu_memory_gb=4))
    scheduler = simulate(config, gpus=[FakeGpu("GPU-a", total_gb=8)])
    attempts = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        attempts.append((task.attempt, task.gpu.uuid))
        raise ConnectionError

    await scheduler.start()
    await scheduler.create_task({{}}, "x")
    await scheduler.advance(timedelta(days=1))
    assert attempts == [(n + 1, "GPU-a") for n in range(13)]
    assert (await scheduler.get_task("x")).status == "failed"


{mark}
async def test_that_fails(simulate):
    """With two schedulers left running."""
    for scheduler in (simulate(), simulate()):
        scheduler.set_custom_task_handler(lambda task: None)
        await scheduler.start()
    assert beating() == 2
    raise AssertionError("on purpose")


def test_nothing_was_left():
    assert beating() == 0


def beating():
    return sum(thread.name == "maas-backoff-heartbeat" for thread in threading.enumerate())
'''

PLUGIN = 'pytest_plugins = ["maas_backoff.testing.fixtures"]\n'
STRICT = """
import pytest_asyncio

from maas_backoff.testing.fixtures import simulating

simulate = pytest_asyncio.fixture(simulating)
"""
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # what pytest-asyncio itself asks for


@pytest.mark.long
@pytest.mark.parametrize(
    ("mark", "conftest", "options"),
    [
        pytest.param("@pytest.mark.anyio", PLUGIN, ("-p", "no:asyncio"), id="anyio"),
        pytest.param("", PLUGIN, (*SCOPE, "-o", "asyncio_mode=auto"), id="pytest-asyncio, auto"),
        pytest.param("@pytest.mark.asyncio", STRICT, SCOPE, id="pytest-asyncio, strict"),
    ],
)
def test_a_user_s_tests_run(mark: str, conftest: str, options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_day.py").write_text(A_DAY.format(mark=mark), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    last = run.stdout.splitlines()[-1]
    print(f"a day of 12 retries, and a test that fails: {last}")
    assert last.startswith("1 failed, 2 passed"), run.stdout + run.stderr
    assert "AssertionError: on purpose" in run.stdout


def test_the_library_does_not_load_pytest() -> None:
    code = "import sys, maas_backoff.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
