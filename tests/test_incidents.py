"""The incidents of docs/incidents.md, each played on a queue with two workers, with the commands of the page.

`-s` shows each command, and how long it took.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import attrs
import pytest
from support import Server, eventually, quick_config, started_processes

import maas_backoff
from maas_backoff import Selection, TaskBackoffScheduler, TaskStatus

pytestmark = [pytest.mark.anyio, pytest.mark.long]

PAGE = (Path(maas_backoff.__file__).parent / "docs" / "incidents.md").read_text(encoding="utf-8")

FLEET = '''
"""A worker with a GPU that is not there. Files in the folder say what goes wrong."""

import os
from pathlib import Path

import anyio

from maas_backoff import SchedulerConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.testing import FakeGpu, FakeGpuProbe

config = TaskBackoffConfig.from_env()
config.scheduler.lease, config.scheduler.interval, config.scheduler.shutdown_grace = 10, 1, 20
config.threadpool.concurrency = 2
config.gpu.gpu_settle_time = 0
config.gpu.tasks_per_gpu = 2
scheduler = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([FakeGpu(os.environ["GPU"], total_gb=24)]))


@scheduler.task(max_retry_count=0, min_gpu_memory_gb=8)
async def render(task: TaskEntity) -> str:
    await anyio.sleep(0.05)
    if Path("down").exists():
        raise ConnectionError("503 Service Unavailable")
    if Path("sick").exists() and task.gpu.uuid == Path("sick").read_text():
        raise ValueError("NaN in the image")
    return task.gpu.uuid


@scheduler.task(max_retry_count=0)
async def report() -> None:
    while not Path("reports-end").exists():
        await anyio.sleep(0.05)
'''


def commands_of(heading: str) -> list[list[str]]:
    """Return the commands of a section of the page."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [shlex.split(line)[2:] for line in re.findall(r"^\$ .*", section, re.MULTILINE)]


HEADINGS = re.findall(r"^## (.*)", PAGE, re.MULTILINE)
PLAYED: list[str] = []


@attrs.define
class Incident:
    """A queue with two workers, the commands of a section, and the processes."""

    folder: Path
    env: dict[str, str]
    scheduler: TaskBackoffScheduler
    started: list[subprocess.Popen[str]]
    left: list[list[str]] = attrs.field(factory=list[list[str]])
    took: list[tuple[float, str]] = attrs.field(factory=list[tuple[float, str]])

    def begin(self, heading: str) -> None:
        self.left = commands_of(heading)
        assert self.left

    def worker(self, host: str, gpu: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "maas_backoff", "worker", "fleet:scheduler", "--name", host]
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.env | {"GPU": gpu}, stderr=subprocess.DEVNULL, text=True
        )
        self.started.append(process)
        return process

    async def next(self, *start: str, code: int = 0) -> str:
        """Run the next command of the section, which begins with these words, and return its output."""
        words = self.left.pop(0)
        assert tuple(words[: len(start)]) == start
        return await self.run(*words, code=code)

    async def run(self, *words: str, code: int = 0) -> str:
        begun = time.monotonic()
        done = await anyio.run_process(
            [sys.executable, "-m", "maas_backoff", *words], cwd=self.folder, env=self.env, check=False
        )
        self.took.append((time.monotonic() - begun, shlex.join(words)))
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout.decode()

    async def create(self, kind: str, number: int, prefix: str) -> list[str]:
        """Create tasks of a kind, and return their ids."""
        found = self.scheduler.kind(kind)
        return [(await found.options(task_id=f"{prefix}-{n}").create()).task_id for n in range(number)]

    async def count(self, status: TaskStatus, kind: str = "") -> int:
        selection = Selection(status=status, kind=kind) if kind else Selection(status=status)
        return await self.scheduler.count_tasks(selection)

    async def busy(self) -> None:
        """Wait until the heartbeats of both workers tell that their slots are taken."""

        async def holds() -> bool:
            return sum(worker.running for worker in await self.scheduler.workers()) == 4

        await eventually(holds, "all slots are taken", 40)

    async def until(self, status: TaskStatus, number: int, kind: str = "") -> None:
        async def holds() -> bool:
            return await self.count(status, kind) == number

        await eventually(holds, f"{number} tasks {kind} are {status}", 40)

    def report(self, heading: str) -> None:
        """Print the commands with their times."""
        print(f"\n{heading}")
        for seconds, words in self.took:
            print(f"  {seconds:5.2f} s  maas-backoff {words}")


def declare(scheduler: TaskBackoffScheduler) -> None:
    """Declare the kinds as a producer sees them."""

    @scheduler.task(max_retry_count=0, min_gpu_memory_gb=8)
    async def render() -> str: ...

    @scheduler.task(max_retry_count=0)
    async def report() -> None: ...

    @scheduler.task(max_retry_count=0)
    async def strange() -> None: ...


@pytest.fixture
async def incident(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Incident]:
    (tmp_path / "fleet.py").write_text(FLEET, encoding="utf-8")
    env = {
        **os.environ,
        "MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}",
        "MAAS_BACKOFF_BIZ_PREFIX": "test",
        "COLUMNS": "200",
    }
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    declare(scheduler)
    heading = request.param
    with started_processes() as started:
        one = Incident(tmp_path, env, scheduler, started)
        one.begin(heading)
        one.worker("gpu-7", "GPU-a")
        one.worker("gpu-8", "GPU-b")

        async def ready() -> bool:
            fleet = await scheduler.workers()
            return len(fleet) == 2 and all(worker.ready and worker.devices for worker in fleet)

        await eventually(ready, "both workers are ready", 40)
        yield one
        one.report(heading)
    await scheduler.shutdown()


def of(heading: str) -> pytest.MarkDecorator:
    PLAYED.append(heading)
    return pytest.mark.parametrize("incident", [heading], indirect=True)


@of("Tasks are late")
async def test_tasks_are_late(incident: Incident) -> None:
    await incident.create("report", 6, "rep")
    await incident.until(TaskStatus.PROCESSING, 4)
    await incident.busy()
    await incident.create("render", 5, "img")
    assert "all 4 slots of 2 workers are busy" in await incident.next("stats")
    top = await incident.next("top", "--once")
    assert "2/2" in top and "rep-" in top
    hogs = await incident.next("list", "--state", "processing")
    assert hogs.count("rep-") == 4 and "gpu-7" in hogs and "gpu-8" in hogs
    assert "paused" in await incident.next("pause")
    assert await incident.next("cancel") == "4 tasks are cancelled\n"
    await incident.until(TaskStatus.COMPLETED, 5, "render")
    assert await incident.next("resume") == "goes on\n"
    (incident.folder / "reports-end").touch()
    assert "pending again" in await incident.next("retry")
    await incident.until(TaskStatus.COMPLETED, 6, "report")
    assert not incident.left


@of("One error floods")
async def test_one_error_floods(incident: Incident) -> None:
    (incident.folder / "down").touch()
    await incident.create("render", 8, "img")
    await incident.until(TaskStatus.FAILED, 8)
    assert re.search(r"ConnectionError +8", await incident.next("stats"))
    assert re.search(r"all +0 +8 ", await incident.next("history"))
    shown = await incident.next("list", "--state", "failed")
    assert shown.count("503 Service Unavailable") == 5
    await incident.next("pause")
    (incident.folder / "down").unlink()
    await incident.next("resume")
    assert await incident.next("retry") == "8 tasks match\n"
    assert await incident.next("retry") == "8 tasks are pending again\n"
    await incident.until(TaskStatus.COMPLETED, 8)
    assert not incident.left


@of("A sick GPU")
async def test_a_sick_gpu(incident: Incident) -> None:
    (incident.folder / "sick").write_text("GPU-a", encoding="utf-8")
    ids = await incident.create("render", 30, "img")

    async def ended() -> bool:
        return await incident.count(TaskStatus.COMPLETED) + await incident.count(TaskStatus.FAILED) == len(ids)

    await eventually(ended, "all tasks have ended", 40)
    failed = await incident.count(TaskStatus.FAILED)
    assert 0 < failed < len(ids)
    shown = (await incident.next("list")).splitlines()[1:]
    assert all("gpu-7" in line and "gpu 0" in line for line in shown if "NaN" in line)
    assert await incident.next("count") == f"{failed}\n"
    assert await incident.next("count") == "0\n"
    assert (await incident.next("quarantine")).startswith("GPU-a takes no new tasks")
    assert await incident.next("cancel") == "0 tasks match\n"
    assert "pending again" in await incident.next("retry")
    await incident.until(TaskStatus.COMPLETED, len(ids))
    told = await incident.next("doctor")
    assert re.search(r"quarantine: by hand: NaN in images, since .*; to undo it: maas-backoff release GPU-a", told)
    assert await incident.next("release") == "released\n"
    assert not incident.left


@of("Cancel all of a kind")
async def test_all_of_a_kind_are_cancelled(incident: Incident) -> None:
    await incident.create("report", 40, "rep")
    await incident.until(TaskStatus.PROCESSING, 4)
    await incident.busy()
    await incident.create("render", 5, "img")
    assert re.search(r"report +36 +2 ", await incident.next("kinds"))
    await incident.next("pause")
    assert await incident.next("cancel") == "40 tasks match\n"
    assert await incident.next("cancel") == "40 tasks are cancelled\n"
    await incident.until(TaskStatus.COMPLETED, 5, "render")
    await incident.until(TaskStatus.CANCELLED, 40)
    assert await incident.next("count") == "40\n"
    await incident.next("resume")
    assert not incident.left


@of("Why does this not run?")
async def test_why_a_task_does_not_run(incident: Incident) -> None:
    render, strange = incident.scheduler.kind("render"), incident.scheduler.kind("strange")
    await render.options(task_id="later-1", delay=3600).create()
    await render.options(task_id="large-1", min_gpu_memory_gb=200).create()
    await strange.options(task_id="strange-1").create()
    assert re.search(r"waits for +due at ", await incident.next("get"))
    assert await incident.next("update") == "changed\n"
    assert (await incident.next("watch")).splitlines()[-1].startswith("completed")
    assert "gpu: needs 200 GiB free, more than any device has (the largest: 24 GiB)" in await incident.next("get")
    assert "kind strange: no running worker has it" in await incident.next("get")
    assert re.search(r"strange +1 +no running worker has it", await incident.next("kinds"))
    told = await incident.next("doctor", code=1)
    assert "1 tasks ask for more GPU memory than any worker's device has" in told
    assert not incident.left


@of("Drain a machine before maintenance")
async def test_a_machine_is_drained(incident: Incident) -> None:
    await incident.create("report", 4, "rep")
    await incident.until(TaskStatus.PROCESSING, 4)
    await incident.busy()
    await incident.create("render", 8, "img")
    assert (await incident.next("workers")).count("2/2") == 2
    assert "claims nothing more after its next heartbeat" in await incident.next("quiet")
    (name,) = [worker.name for worker in await incident.scheduler.workers() if worker.is_named("gpu-7")]

    async def is_quiet() -> bool:
        return any(worker.quiet for worker in await incident.scheduler.workers())

    await eventually(is_quiet, "the worker knows it", 40)
    assert (await incident.next("list")).count("rep-") == 2
    told = await incident.next("doctor")
    assert re.search(
        rf"worker {name}: told to claim nothing since .*; to undo it: maas-backoff quiet {name} --off", told
    )
    (incident.folder / "reports-end").touch()
    await incident.until(TaskStatus.COMPLETED, 12)
    assert await incident.next("count") == "0\n"
    done = (await incident.scheduler.list_tasks(Selection(kind="render"), limit=20)).tasks
    assert {task.worker is not None and task.worker.startswith("gpu-8") for task in done} == {True}
    drained = incident.started[0]
    drained.send_signal(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(drained.wait, 40) == 0
    incident.worker("gpu-7", "GPU-a")

    async def is_back() -> bool:
        fleet = [worker for worker in await incident.scheduler.workers() if worker.is_named("gpu-7")]
        return [worker.ready and not worker.quiet for worker in fleet] == [True]

    await eventually(is_back, "the worker is back, and not quiet", 40)
    assert "quiet" not in await incident.next("workers")
    assert not incident.left


def test_each_incident_is_played() -> None:
    assert sorted(PLAYED) == sorted(HEADINGS)
