"""The README is true: every Python block in it runs, and does what it says."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from support import Server

from maas_backoff import GpuConfig, SchedulerConfig, StorageConfig, TaskConfig, ThreadPoolConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# A web service's block is exercised as its reader would, over HTTP.
CLIENT = """
from time import sleep
from starlette.testclient import TestClient

with TestClient(app) as client:
    assert client.get("/readyz").json() == {"ready": True}
    created = client.post("/images", json={"prompt": "a cat"}, headers={"Idempotency-Key": "one"})
    assert (created.status_code, created.json()) == (202, {"task_id": "one"})
    assert client.post("/images", json={"prompt": "a dog"}, headers={"Idempotency-Key": "one"}).status_code == 409
    for _ in range(500):
        task = client.get("/images/one").json()
        if task["status"] == "completed":
            break
        sleep(0.02)
    assert task["result"] == {"image": "/images/one.png"}, task
    assert client.get("/images/two").status_code == 404
assert not scheduler.health().ready
print("served")
"""

# What is added to that service imports it, and is asked as Prometheus, or a browser, would.
MOUNTED = """
from starlette.testclient import TestClient

with TestClient(app) as client:
    print(client.get("/metrics").text, client.get("/tasks/").text, client.get("/tasks/api/snapshot").text)
"""

# A traced scheduler runs a task; its spans are printed when the process ends.
TRACED = """
import anyio

@scheduler.set_custom_task_handler
async def handle(task):
    pass

async def main():
    async with scheduler:
        await scheduler.wait_task(await scheduler.create_task({}), 30)

anyio.run(main)
"""

# A worker's block is a module; its GPU is not there.
WORKER = """
import anyio
import images
from maas_backoff.testing import FakeGpu, FakeGpuProbe

async def main():
    images.scheduler._probe = FakeGpuProbe([FakeGpu("GPU-of-the-readme")])
    async with images.scheduler as scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), 30)
        print(task.result)

if __name__ == "__main__":
    anyio.run(main)
"""

EXPECTED = [
    "completed {'answer': 'A CAT IN A HAT'} 2 retries",
    "served",
    "unique_task_id completed 0 None {'echo': 'value'}\n0 0 2 0",
    "worker: none is running",
    'data-access="read"',
    'maas_backoff_workers{queue="readme"} 1.0',
    '"name": "process readme"',
    "{'batch': 8, 'on': 'GPU-of-the-readme'}",
    "1 passed",
]


def test_each_block_is_known() -> None:
    assert len(BLOCKS) == len(EXPECTED)


def test_the_web_service_is_the_one_that_is_tested() -> None:
    """tests/web_service.py, which runs under uvicorn in test_web_service.py, without its first line."""
    text = (Path(__file__).parent / "web_service.py").read_text(encoding="utf-8")
    assert BLOCKS[1] == text.partition('"""\n\n')[2]


def test_the_tables_of_options_are_those_of_the_code() -> None:
    """Every option is in the table of its class, with its default, and nothing else is."""
    for section in (StorageConfig, TaskConfig, ThreadPoolConfig, SchedulerConfig, GpuConfig):
        rows = re.search(rf"^\| `{section.__name__}` \| default \|.*?(?=\n\n)", README, re.MULTILINE | re.DOTALL)
        assert rows is not None, section
        told: dict[str, str] = {}
        for row in rows[0].splitlines()[2:]:
            names, defaults = (re.findall(r"`([^`]+)`", part) for part in row.split(" | ")[:2])
            # "`None` …": the last default is that of the rest.
            told |= dict(zip(names, defaults + defaults[-1:] * (len(names) - len(defaults)) or [""] * 9, strict=False))
        fields = {field.name: field.default for field in attrs.fields(section) if field.init}
        fields.pop("min_gpu_utilization", None)  # the alias
        assert told.keys() == fields.keys(), section
        for name, default in fields.items():
            if told[name]:
                assert ast.literal_eval(told[name]) == default, f"{section.__name__}.{name}"


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_a_block_of_the_readme_runs(number: int, server: Server, tmp_path: Path) -> None:
    block = BLOCKS[number].replace('host="localhost", port=6379', f'host="127.0.0.1", port={server.port}')
    script = tmp_path / "readme.py"
    if "images:scheduler" in README.partition(BLOCKS[number])[0][-200:]:
        (tmp_path / "images.py").write_text(block, encoding="utf-8")
        block = WORKER
    if "from web_service import" in block:
        (tmp_path / "web_service.py").write_text(BLOCKS[1], encoding="utf-8")
        block += MOUNTED
    if "OpenTelemetry(" in block:
        block += TRACED
    script.write_text(block + (CLIENT if "FastAPI" in block else ""), encoding="utf-8")
    environ = {
        **os.environ,
        "MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}",
        "MAAS_BACKOFF_BIZ_PREFIX": "readme",
    }
    # The plugin of anyio 4.10 runs a test with trio as well, also where trio is not installed.
    options = ["-p", "no:asyncio", "-p", "no:cacheprovider", "-k", "not trio"]
    module = ["-m", "pytest", *options] if "pytest" in block else []
    run = subprocess.run(
        [sys.executable, *module, str(script)], env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert run.returncode == 0, run.stderr
    assert EXPECTED[number] in run.stdout
    assert "Traceback" not in run.stderr
