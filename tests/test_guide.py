"""docs/operations.md is true: its blocks run or parse; its messages, names and numbers are those of the code."""

import ast
import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import yaml
from support import Server

from maas_backoff import QueueFullError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.__main__ import parser
from maas_backoff.domain.scale import Scale
from maas_backoff.prometheus.scale import _checked
from maas_backoff.worker.drain import SETTLE_GRACE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "maas_backoff"
GUIDE = (PACKAGE / "docs/operations.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
TEXT = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.MULTILINE | re.DOTALL)
ROWS = [row.split(" | ") for row in TEXT.partition("| symptom |")[2].splitlines()[2:] if row.startswith("|")]


def _templates() -> list[str]:
    """All texts of the package that are no docstrings, with "…" for what is filled in."""
    found: list[str] = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n\n" not in node.value:
                found.append(re.sub(r"%[.\d]*[a-z]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
    return found


def _is_command(words: list[str]) -> None:
    """Parse a command of maas-backoff: the parser would exit."""
    assert Path(words[0]).name == "maas-backoff", words
    parser(words[1:2]).parse_args(words[1:])


def test_each_link_leads_somewhere() -> None:
    """Also to a heading of another page."""
    readmes = ROOT / "README.md", *(ROOT / ".readme").glob("*.md")
    for page in (*readmes, *(PACKAGE / "docs").rglob("*.md"), *(ROOT / ".github").glob("*.md")):
        for target, _, heading in re.findall(r"\]\(([^)#:]+)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
            path = page.parent / target
            assert path.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in {title.lower().replace(" ", "-") for title in titles}, f"{page.name}: #{heading}"


def test_each_message_is_one_of_the_code() -> None:
    """Those of the table, and those that the text quotes."""
    templates = _templates()
    quoted = [span for row in ROWS for span in re.findall(r"`([^`]+)`", row[1])]
    quoted += ["no task handler is set for …", "this queue was written by … (schema …", "workers: of several releases"]
    assert len(quoted) > 60 and all(one in " ".join(TEXT.split()) for one in quoted)
    for message in quoted:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(pattern.search(template) for template in templates), message


def test_each_name_exists() -> None:
    """Options, environment variables, calls, and commands."""
    options = {
        field.name
        for section in attrs.astuple(TaskBackoffConfig(), recurse=False)
        for field in attrs.fields(type(section))
    }
    known = {*options, *dir(TaskBackoffScheduler), *dir(TaskEntity), *attrs.fields_dict(TaskEntity), *_templates()}
    known |= vars(QueueFullError(1, 1, 1)).keys()
    spans = [span for span in re.findall(r"`([^`]+)`", TEXT) if re.fullmatch(r"[a-z]+(_[a-z]+)+", span)]
    assert len(spans) > 20
    assert not set(spans) - known
    assert not set(re.findall(r"`([a-z_]+)=", TEXT)) - options
    for name in re.findall(r"MAAS_BACKOFF_([A-Z_]+)", GUIDE):
        assert name.lower() in options, name
    for command in re.findall(r"`(maas-backoff [^`]+)`", TEXT):
        _is_command(shlex.split(command.replace("…", "redis://localhost")))


def test_each_number_was_measured() -> None:
    told = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("maas_backoff/docs/performance.md", "benchmarks/README.md", "benchmarks/RESULTS.md")
    )
    section = TEXT.partition("## How large")[2].partition("\n## ")[0]
    numbers = re.findall(r"\d[\d.,]*\d", section)
    assert len(numbers) > 12
    assert not [number for number in numbers if not re.search(rf"(?<![\d.,]){re.escape(number)}", told)]


def test_the_units_and_the_environment_are_accepted() -> None:
    grace = 3 * SETTLE_GRACE
    assert grace == 15
    lines = dict(line.split("=", 1) for line in BLOCKS["env"].splitlines())
    config = TaskBackoffConfig.from_env(environ=lines)
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment] - keeps the case of names, as configparser documents
    unit.read_string(BLOCKS["ini"])
    _is_command(shlex.split(unit["Service"]["ExecStart"]))
    assert float(unit["Service"]["TimeoutStopSec"]) >= config.scheduler.shutdown_grace + grace

    spec: dict[str, Any] = yaml.safe_load(BLOCKS["yaml"])["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    _is_command(container["command"])
    _is_command(container["readinessProbe"]["exec"]["command"])
    env = {one["name"]: one.get("value", "redis://localhost") for one in container["env"]}
    config = TaskBackoffConfig.from_env(environ=env)
    assert spec["terminationGracePeriodSeconds"] >= config.scheduler.shutdown_grace + grace
    assert container["readinessProbe"]["timeoutSeconds"] > config.storage.timeout


def test_the_autoscaler_asks_what_is_served() -> None:
    spec = yaml.safe_load(BLOCKS["yml"])["spec"]
    (trigger,) = spec["triggers"]
    address = urlsplit(trigger["metadata"]["url"])
    assert address.port == parser().parse_args(["metrics"]).port and address.path == "/scale"
    assert _checked(address.query, 1) == {"within": 120, "slots": 4}
    assert trigger["metadata"]["valueLocation"] in attrs.fields_dict(Scale)
    workers = yaml.safe_load(BLOCKS["yaml"])["metadata"]["name"]
    assert spec["scaleTargetRef"]["name"] == workers


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    """A server of the guide's configuration."""
    options = [word for line in BLOCKS["conf"].splitlines() for word in f"--{line}".split()]
    server = Server("valkey-9.1", tmp_path, *options)
    yield server
    server.stop()


@pytest.mark.long
def test_the_worker_and_the_server_go_together(configured: Server, tmp_path: Path) -> None:
    """The module's worker by the command, on that server; the doctor says what the guide says it does."""
    (tmp_path / "images_queue.py").write_text(BLOCKS["python"], encoding="utf-8")
    export, uvicorn, command = BLOCKS["sh"].splitlines()
    exported = dict(word.split("=", 1) for word in shlex.split(export)[1:])
    own = dict([shlex.split(command)[0].split("=", 1)])
    env = {**os.environ, **exported, **own, "MAAS_BACKOFF_URL": f"redis://127.0.0.1:{configured.port}"}

    def run(*words: str, module: str = "maas_backoff") -> str:
        arguments = [sys.executable, "-m", module, *words]
        return subprocess.run(
            arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=50, check=True
        ).stdout

    usage = run("--help", module="uvicorn")
    assert all(word in usage for word in shlex.split(uvicorn) if word.startswith("--"))
    words = shlex.split(command)[1:]
    _is_command(words)
    worker = subprocess.Popen([sys.executable, "-m", "maas_backoff", *words[1:]], cwd=tmp_path, env=env)
    try:
        task_id = run("create", '{"prompt": "a cat"}').strip()
        assert run("watch", task_id).splitlines()[-1].startswith("completed")
        assert f"/images/{task_id}.png" in run("get", task_id)
        assert "on this host: 1" in run("check", "--ready")
        said = re.sub(r"[\d.]+", "0", run("doctor"))
        for line in BLOCKS["text"].splitlines()[1:-1]:  # but for the GPUs of this machine
            assert re.sub(r"[\d.]+", "0", line) in said
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
