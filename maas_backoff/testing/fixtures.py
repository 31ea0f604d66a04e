"""A fixture for pytest: `pytest_plugins = ["maas_backoff.testing.fixtures"]` in your tests' topmost conftest.py.

It does not register itself, because then every run of pytest would load the whole library. Needs the extra `embedded`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

import pytest

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.testing.gpu import FakeGpu
from maas_backoff.testing.simulated import Simulate, SimulatedScheduler


async def simulating() -> AsyncGenerator[Simulate, None]:
    """Yield a Simulate, and stop its schedulers after the test.

    This is the fixture `simulate` for the plugin of anyio, and for the auto mode of pytest-asyncio. For the strict mode
    of pytest-asyncio, write `simulate = pytest_asyncio.fixture(simulating)` in a conftest.py instead.
    """
    async with AsyncExitStack() as made:

        def simulate(
            config: TaskBackoffConfig | None = None,
            *,
            gpus: Sequence[FakeGpu] = (),
            kinds_of: TaskBackoffScheduler | None = None,
        ) -> SimulatedScheduler:
            scheduler = SimulatedScheduler(config, gpus=gpus, kinds_of=kinds_of)
            made.push_async_callback(scheduler.shutdown)
            return scheduler

        yield simulate


simulate: object = pytest.fixture(simulating, name="simulate")  # pytest has no public name for its type
