"""The README and the documents are true: every Python block in them runs, and does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import Server

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "maas_backoff/docs"


def _read(page: str) -> str:
    return (ROOT / page if page == "README.md" else DOCS / page).read_text(encoding="utf-8")


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", _read(page), re.MULTILINE | re.DOTALL)


SERVICE = _blocks("web-services.md")[0]

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

# Additions to that service import it, and are asked as Prometheus, or a browser, would.
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

SHORT_CLIENT = """
from starlette.testclient import TestClient

with TestClient(app) as client:
    task_id = client.post("/images", json={"prompt": "a cat"}).json()["task_id"]
    parts = client.get(f"/images/{task_id}/stream").text
    assert client.get("/images/nobody/stream").status_code == 404
    assert client.get(f"/images/{task_id}/stream", headers={"Last-Event-ID": "nonsense"}).status_code == 422
assert "event: part" in parts and "a sketch" in parts, parts
print("served")
"""

DJANGO = """
import subprocess
import sys
from pathlib import Path

import django
from django.conf import settings
from django.test import Client
from django.urls import path

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], SECRET_KEY="x", DATABASES={}, USE_TZ=True, LOGGING_CONFIG=None
)
django.setup()
urlpatterns = [path("images", create), path("images/<task_id>", read)]

if __name__ == "__main__":
    client = Client()
    task_id = client.post("/images", {"prompt": "cat"}).json()["task_id"]
    command = [sys.executable, "-m", "maas_backoff", "worker", "--burst", "readme:scheduler"]
    subprocess.run(command, cwd=Path(__file__).parent, timeout=40, check=True)
    print(client.get(f"/images/{task_id}").json()["result"], client.get("/images/none").status_code)
"""

FLASK = """
client = app.test_client()
key = {"Idempotency-Key": "one"}
created = [client.post("/images", data={"prompt": prompt}, headers=key) for prompt in ("cat", "cat", "dog")]
print([(answer.status_code, *answer.json) for answer in created])
"""

CHAT_CLIENT = """
import json
from starlette.testclient import TestClient

with TestClient(app) as client:
    task_id = client.post("/chat", json={"prompt": "a cat"}).json()["task_id"]
    told = client.get(f"/chat/{task_id}/stream").text
    assert "event: part" in told and told.rstrip().endswith("data: completed"), told
    assert "data: completed" in client.post("/chat/now", json={"prompt": "a dog"}).text
    assert client.get("/chat/none/stream").status_code == 404
print("served")
"""

CLIENTS = {"web-services.md": CLIENT, "streams.md": CHAT_CLIENT}

EXPECTED = {
    "README.md": [
        "completed {'answer': 'A CAT IN A HAT'} 2 retries",
        "/images/cat-30.png",
        "[[2.5], [7.0]]",
        "served",
        "{'by': 'a model on GPU-of-the-readme'}",
    ],
    "web-services.md": ["served"],
    "kinds.md": [
        "/photo/cat-30.png (512, 512) completed\n/sketch/dog-20.png [2, 5]\ncancelled",
        "1 passed",
    ],
    "batches.md": ["[0.0, 1.0, 2.0, 3.0]\ncat"],
    "sharing.md": ["A LONG PROMPT a long tex\n['acme', 'beta', 'cora'] at most 4 at once"],
    "api.md": [
        "unique_task_id completed 0 None {'echo': 'value'}\n0 0 2 0",
        "worker: none is running",
        "SelectionProgress(read=20, matched=10, changed=10)",
    ],
    "dashboard.md": ['data-access="read"'],
    "metrics.md": ['maas_backoff_workers{queue="readme"} 1.0', '"name": "process readme"'],
    "gpus.md": ["{'batch': 8, 'on': 'GPU-of-the-readme'}"],
    "handlers.md": [
        "pending failed: too many requests\nfailed failed: the prompt is too long give_up_on",
        "['a cat', 'a cat', 'a cat'] 1 refused",
        "attempt 1: ConnectionError('the model is still loading')\nrender, attempt 2: done in less than 1 s\nA CAT",
    ],
    "sync.md": [
        "cancelled 1",
        "{'image': '/images/cat-30.png'} 404",
        "[(202, 'task_id'), (202, 'task_id'), (409, 'detail')]",
    ],
    "streams.md": [
        "a model says one word after the other \nattempt 1 begins with word 0\nattempt 2 begins with word 4",
        "served",
    ],
    "testing.md": ["1 passed"],
}
QUICK = {"README.md", "handlers.md", "streams.md", "web-services.md"}
"""The pages whose blocks run among the quick tests."""
CASES = [
    pytest.param(page, number, marks=[] if page in QUICK else pytest.mark.long)
    for page, expected in EXPECTED.items()
    for number in range(len(expected))
]


def test_each_block_is_known() -> None:
    pages = ["README.md", *(path.name for path in DOCS.glob("*.md") if path.name != "operations.md")]
    found = {page: len(_blocks(page)) for page in pages if _blocks(page)}
    assert found == {page: len(expected) for page, expected in EXPECTED.items()}


def test_the_chinese_readme_has_the_same_blocks_and_links() -> None:
    chinese = (ROOT / ".readme/README.zh-CN.md").read_text(encoding="utf-8")
    english = _read("README.md")
    fence = re.compile(r"^```\w*\n.*?^```$", re.MULTILINE | re.DOTALL)
    assert fence.findall(chinese) == fence.findall(english)
    assert len(re.findall(r"^#+ ", fence.sub("", chinese), re.MULTILINE)) == len(
        re.findall(r"^#+ ", fence.sub("", english), re.MULTILINE)
    )
    links = re.compile(r"\]\((?:\.\./)?([^)]+)\)")
    own = {"README.md", ".readme/README.zh-CN.md"}
    assert {*links.findall(chinese)} - own == {*links.findall(english)} - own
    numbers = re.compile(r"\d[\d.,-]*\d")
    assert {*numbers.findall(fence.sub("", chinese))} == {*numbers.findall(fence.sub("", english))}


def test_the_web_service_is_the_one_that_is_tested() -> None:
    """tests/web_service.py, which runs under uvicorn in test_web_service.py, without its first line."""
    text = (Path(__file__).parent / "web_service.py").read_text(encoding="utf-8")
    assert text.partition('"""\n\n')[2] == SERVICE


def test_the_readme_is_short() -> None:
    assert len(_read("README.md").splitlines()) <= 250


@pytest.mark.parametrize(("page", "number"), CASES)
def test_a_block_of_the_documents_runs(page: str, number: int, server: Server, tmp_path: Path) -> None:
    block = _blocks(page)[number].replace('host="localhost", port=6379', f'host="127.0.0.1", port={server.port}')
    script = tmp_path / "readme.py"
    if "images:scheduler" in _read(page).partition(_blocks(page)[number])[0][-200:]:
        (tmp_path / "images.py").write_text(block, encoding="utf-8")
        block = WORKER
    if "from web_service import" in block:
        (tmp_path / "web_service.py").write_text(SERVICE, encoding="utf-8")
        block += MOUNTED
    if "OpenTelemetry(" in block:
        block += TRACED
    for framework, more in {"django": DJANGO, "flask": FLASK}.items():
        if f"from {framework}" in block:
            pytest.importorskip(framework)
            block += more
    if "FastAPI" in block:
        block += CLIENTS.get(page, SHORT_CLIENT)
    script.write_text(block, encoding="utf-8")
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
    assert EXPECTED[page][number] in run.stdout
    assert "Traceback" not in run.stderr
