"""The command line says what is wrong in one sentence, and ends with a code for it."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from support import Server

from maas_backoff import __version__
from maas_backoff.commands.load import load_scheduler
from maas_backoff.commands.usage import UsageError

COMMAND = [sys.executable, "-m", "maas_backoff"]

MODULE = """
from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig

config = TaskBackoffConfig(storage=StorageConfig(port=1, timeout=0.3), task=TaskConfig(biz_prefix="lost"))
producer = TaskBackoffScheduler(config)
unnamed = TaskBackoffScheduler()
scheduler = TaskBackoffScheduler(config)

@unnamed.set_custom_task_handler
@scheduler.set_custom_task_handler
def handle(task):
    return None

class space:
    scheduler = scheduler

def factory():
    return scheduler

async def coroutine():
    return scheduler

def demanding(argument):
    return scheduler

something = 42

of_kinds = TaskBackoffScheduler(config)

@of_kinds.task
def render(text: str) -> str:
    return text

@of_kinds.batch
def embed(texts: list[str]) -> list[str]:
    return texts

prompt = render.options(priority=1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    return tmp_path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`folder` as the working directory of this process; nothing of it stays imported."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    for module in ("mine", "broken", "exits", "needy"):
        sys.modules.pop(module, None)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False)


def test_the_version_of_the_distribution_is_that_of_the_package() -> None:
    assert version("maas_backoff") == __version__


def test_the_version_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"maas-backoff {__version__}\n", "")


def test_the_console_script_is_the_same_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("maas-backoff")
    done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"maas-backoff {__version__}\n"


@pytest.mark.parametrize(
    ("setting", "redirection", "code", "said"),
    [
        pytest.param("", ">/dev/full", 1, "No space left on device\n", id="full"),
        pytest.param(
            "PYTHONUNBUFFERED=1", ">/dev/full", 1, "No space left on device\n", id="unbuffered", marks=pytest.mark.long
        ),
        pytest.param("", "| sh -c 'exec <&-'", 0, "", id="left"),
        pytest.param("LANG=zh_CN.UTF-8 LC_ALL=", ">&-", 0, "", id="no stdout"),
        pytest.param("", "<&- >&- 2>&-", 0, "", id="none", marks=pytest.mark.long),
    ],
)
def test_output_that_nobody_takes_is_no_crash(
    tmp_path: Path, server: Server, setting: str, redirection: str, code: int, said: str
) -> None:
    line = f"{setting} exec {shlex.join(COMMAND)} stats --queue test --url redis://127.0.0.1:{server.port}"
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirection}"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr[-len(said) :] if said else done.stderr) == (code, said)
    assert done.stderr.count("\n") == len(said.splitlines())


@pytest.mark.long
def test_what_stdout_has_no_characters_for_is_escaped(tmp_path: Path, server: Server) -> None:
    queue = ["--queue", "test", "--url", f"redis://127.0.0.1:{server.port}"]
    assert run(tmp_path, "create", '{"prompt": "é😀"}', "--id", "中", *queue).returncode == 0

    def told(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [*COMMAND, *arguments, *queue], cwd=tmp_path, env=environment, capture_output=True, timeout=30, check=True
        )
        return done.stdout.decode("ascii")

    assert "\\u4e2d" in told("list")
    assert '{"prompt": "\\u00e9\\ud83d\\ude00"}' in told("get", "中")
    assert json.loads(told("list", "--json"))["tasks"][0]["task_id"] == "中"
    assert json.loads(told("get", "中", "--json"))["task_params"] == {"prompt": "é😀"}


@pytest.mark.parametrize("arguments", [("--help",), ("stats", "--help")])
def test_help_that_nobody_takes_is_no_crash(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for redirection in (">/dev/full", ">&-"):
        line = f"exec {shlex.join([*COMMAND, *arguments])} {redirection}"
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("worker",), ("worker", "a:b", "c")])
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: maas-backoff")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("mine", "expected module:scheduler, like my_service.tasks:scheduler, got 'mine'"),
        (
            "./mine.py:scheduler",
            "expected module:scheduler, like my_service.tasks:scheduler, got './mine.py:scheduler'",
        ),
        (":scheduler", "expected module:scheduler, like my_service.tasks:scheduler, got ':scheduler'"),
        ("mine:", "expected module:scheduler, like my_service.tasks:scheduler, got 'mine:'"),
        ("nowhere:scheduler", "there is no module 'nowhere' here or among the installed ones"),
        ("mine.deeper:scheduler", "there is no module 'mine.deeper' here or among the installed ones"),
        ("mine:nothing", "the module 'mine' has no attribute 'nothing'"),
        ("mine:space.nothing", "the module 'mine' has no attribute 'space.nothing'"),
        (
            "exits:scheduler",
            (
                "the module 'exits' calls sys.exit while it is imported: put what starts the program under "
                '`if __name__ == "__main__":`'
            ),
        ),
        ("mine:something", "'mine:something': expected a TaskBackoffScheduler or a function giving it, got int"),
        ("mine:coroutine", "'mine:coroutine': expected a TaskBackoffScheduler or a function giving it, got coroutine"),
        *(
            (f"mine:{kind}", f"'mine:{kind}' is a kind of tasks: name the scheduler that declares it")
            for kind in ("render", "embed", "prompt")
        ),
        (
            "mine:producer",
            (
                "'mine:producer' has no handler, so it can run no tasks: call set_custom_task_handler in its module, "
                "or declare a kind with @scheduler.task"
            ),
        ),
    ],
)
def test_what_is_no_scheduler_is_refused_in_one_sentence(here: Path, reference: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_scheduler(reference)
    assert str(refused.value) == complaint


def test_a_kind_is_not_called_in_place_of_its_scheduler(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        load_scheduler("mine:render")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("reference", "where", "complaint"),
    [
        (
            "needy:x",
            "import no_such_package",
            "the module 'needy' cannot be imported: ModuleNotFoundError: No module named",
        ),
        ("mine:demanding", "return factory()", "'mine:demanding' cannot be called: TypeError: demanding() missing"),
    ],
)
def test_a_fault_inside_the_module_is_shown_where_it_is(
    here: Path, capsys: pytest.CaptureFixture[str], reference: str, where: str, complaint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load_scheduler(reference)
    assert str(refused.value).startswith(complaint)
    assert where in capsys.readouterr().err


@pytest.mark.parametrize("reference", ["mine:scheduler", "mine:space.scheduler", "mine:factory"])
def test_a_scheduler_or_a_function_giving_one_is_found(here: Path, reference: str) -> None:
    assert load_scheduler(reference).config.task.biz_prefix == "lost"


def test_a_refused_scheduler_is_exit_code_2(folder: Path) -> None:
    done = run(folder, "worker", "nowhere:scheduler")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "maas-backoff worker: there is no module 'nowhere' here or among the installed ones\n"


def test_a_module_that_fails_is_exit_code_2_after_its_traceback(folder: Path) -> None:
    done = run(folder, "worker", "broken:scheduler")
    assert (done.returncode, done.stdout) == (2, "")
    *trace, last = done.stderr.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert last == "maas-backoff worker: the module 'broken' cannot be imported: ZeroDivisionError: division by zero"


def test_a_wrong_configuration_is_exit_code_2(folder: Path) -> None:
    done = run(folder, "worker", "mine:unnamed")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("maas-backoff worker: task.biz_prefix: expected 1 to 64 of")
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_exit_code_3(folder: Path) -> None:
    done = run(folder, "worker", "mine:scheduler")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1].startswith("maas-backoff worker: the server does not answer")
    assert "Traceback" not in done.stderr
