"""Help for tests of programs that use maas_backoff: a clock that the test moves, and fake GPUs."""

from maas_backoff.testing.gpu import FakeGpu, FakeGpuProbe
from maas_backoff.testing.simulated import Simulate, SimulatedScheduler

__all__ = ["FakeGpu", "FakeGpuProbe", "Simulate", "SimulatedScheduler"]
