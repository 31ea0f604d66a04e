"""A fixture for pytest: `pytest_plugins = ["maas_backoff.testing.fixtures"]` in your tests' topmost conftest.py.

It does not register itself: every run of pytest beside it would load the whole library. Needs the extra `embedded`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

import pytest

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.testing.gpu import FakeGpu
from maas_backoff.testing.simulated import Simulate, SimulatedScheduler


async def simulating() -> AsyncGenerator[Simulate, None]:
    """Give a Simulate, and stop what it made when the test is over.

    This is the fixture `simulate` for anyio's plugin, and for pytest-asyncio's auto mode. For its strict mode:
    `simulate = pytest_asyncio.fixture(simulating)`, in a conftest.py, instead of `pytest_plugins`.
    """
    async with AsyncExitStack() as made:

        def simulate(config: TaskBackoffConfig | None = None, *, gpus: Sequence[FakeGpu] = ()) -> SimulatedScheduler:
            scheduler = SimulatedScheduler(config, gpus=gpus)
            made.push_async_callback(scheduler.shutdown)
            return scheduler

        yield simulate


simulate: object = pytest.fixture(simulating, name="simulate")  # pytest has no public name for its type
