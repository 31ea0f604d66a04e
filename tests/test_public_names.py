"""Public names are imported when they are used: a process has what it needs, and starts sooner."""

import subprocess
import sys

import pytest

import maas_backoff


def test_each_public_name_is_there() -> None:
    assert {*maas_backoff._MODULES, "__version__"} == set(maas_backoff.__all__) == set(dir(maas_backoff))
    assert all(getattr(maas_backoff, name) is not None for name in maas_backoff.__all__)
    with pytest.raises(AttributeError, match="module 'maas_backoff' has no attribute 'Tasks'"):
        maas_backoff.Tasks  # noqa: B018 - the access is what is tested


def test_a_star_imports_all() -> None:
    names: dict[str, object] = {}
    exec("from maas_backoff import *", names)
    assert set(maas_backoff.__all__) <= set(names)


def test_a_child_needs_no_server() -> None:
    """What a child process and its handlers import of us is without redis-py, anyio and NVML."""
    script = (
        "import sys\n"
        "from maas_backoff.worker.executors import child\n"
        "from maas_backoff import Discard, Retry, Snooze, TaskEntity, current_task\n"
        "print(*sorted({'redis', 'anyio', 'pynvml', 'maas_backoff.client', 'maas_backoff.store'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == []
