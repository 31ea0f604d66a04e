"""Fixtures of the check on a real GPU, and the one skip where there is none."""

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from real_gpu.device import VARIABLE
from real_gpu.pretend import PretendDevice
from real_gpu.rig import GIB, Rig, Watch, environment
from support import Server

LONGEST = 360.0
"""Seconds that the whole check may take. A test that may take longer than what is left is skipped."""

NEEDED = 24 * GIB
"""MiB that must be free."""


def _missing() -> str:
    """Return why the check cannot run here, from file names alone; "" if it can."""
    if os.environ.get(VARIABLE) or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists():
        return ""
    return "no NVIDIA GPU on this machine: there is no /dev/nvidia0"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, keep one of these tests, which is skipped and tells the reason."""
    mine = [item for item in items if item.path.parent == Path(__file__).parent]
    if mine and (reason := _missing()):
        mine[0].add_marker(pytest.mark.skip(reason=reason))
        config.hook.pytest_deselected(items=mine[1:])
        items[:] = [item for item in items if item not in mine[1:]]


@pytest.fixture(scope="session")
def deadline() -> float:
    return time.monotonic() + LONGEST


@pytest.fixture(autouse=True)
def in_time(deadline: float, request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("timeout")
    left = deadline - time.monotonic()
    if left < marker.args[0]:
        pytest.skip(f"{left:.0f} of {LONGEST:.0f} s are left, and this test may take {marker.args[0]}")


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of all processes of the check."""
    how = os.environ.get(VARIABLE)
    if how == "pretend":
        device = PretendDevice(tmp_path_factory.mktemp("pretend"))
        yield environment(device.env)
        device.stop()
    else:
        yield environment({VARIABLE: how or ("torch" if _torch_works() else "libcuda")})


def _torch_works() -> bool:
    code = "import torch; torch.empty(1, device='cuda')"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    return tried.returncode == 0


@pytest.fixture(scope="session")
def watch(env: dict[str, str]) -> Iterator[Watch]:
    """The reader of the device; the check is skipped where it finds none, or not enough free memory."""
    watch = Watch(env)
    try:
        sample = watch.sample()
    except LookupError as error:
        watch.stop()
        pytest.skip(f"no GPU can be read: {error}")
    if sample.free < NEEDED:
        watch.stop()
        pytest.skip(f"{sample.name} has {sample.free} MiB free, and the check needs {NEEDED}")
    yield watch
    watch.stop()


@pytest.fixture
async def rig(server: Server, env: dict[str, str], watch: Watch, tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig.opened(server, env, watch, tmp_path) as rig:
        yield rig


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line at once, whatever pytest captures: what a run has measured is not lost when it is stopped."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name.removeprefix('test_')}: {text}", flush=True)

    return line
