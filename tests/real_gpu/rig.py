"""Starts what the tests need on the device, and ends it by process id: workers, other processes, a reader of NVML."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
from real_gpu.device import Seen
from real_gpu.handlers import LEASE, config
from real_gpu.pretend import is_running
from support import Server, eventually

from maas_backoff import TaskBackoffScheduler, TaskEntity
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import DeviceLedger, Ledgers, Reservation

GIB = 1024
"""MiB."""

CONTEXT = 1500
"""MiB that a process may use beside what it allocates: the CUDA context, the libraries' kernels."""

TESTS = Path(__file__).parents[1]


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process of the check."""
    path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **extra}


def python(*arguments: object, env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", *map(str, arguments)]
    return subprocess.Popen(command, env=env, text=True, start_new_session=True, **options)


def end(process: subprocess.Popen[str]) -> None:
    """End a process: by its stdin if it reads one, else by SIGTERM, else by SIGKILL."""
    if process.stdin is not None:
        process.stdin.close()
    elif process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Watch:
    """The product's own view of the device, made by a process of its own (watch.py)."""

    def __init__(self, env: dict[str, str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = python("-m", "real_gpu.watch", env=env, **pipes)

    def _ask(self, request: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def sample(self) -> GpuSample:
        """Return a GPU sample that was taken after this call. Raises LookupError where there is no device."""
        reply = self._ask("sample")
        if "missing" in reply:
            raise LookupError(reply["missing"])
        return GpuSample(**reply)

    def used_by(self, pid: int) -> int:
        """Return the MiB that a child process and all that it has started use now."""
        return self.sample().used.get(owner_of(pid), 0)

    def costs(self) -> list[float]:
        """Return the milliseconds that each of some rounds of samples took."""
        return sorted(self._ask("costs"))

    def stop(self) -> None:
        end(self._process)


@attrs.define
class Rig:
    """A producer, the device, and the workers and other processes of one test."""

    server: Server
    env: dict[str, str]
    watch: Watch
    folder: Path
    uuid: str
    producer: TaskBackoffScheduler
    workers: list[subprocess.Popen[str]] = attrs.field(factory=list)

    @classmethod
    @asynccontextmanager
    async def opened(cls, server: Server, env: dict[str, str], watch: Watch, folder: Path) -> AsyncIterator["Rig"]:
        """Yield a rig; afterwards, end all its processes and wait until their memory is free."""
        before = watch.sample()
        extra = {"GPU_TEST_PORT": str(server.port), "GPU_TEST_UUID": before.uuid, "GPU_TEST_LOG": str(folder / "notes")}
        producer = TaskBackoffScheduler(config(server.storage))
        rig = cls(server, {**env, **extra}, watch, folder, before.uuid, producer)
        try:
            yield rig
        finally:
            for worker in rig.workers:
                end(worker)
            await producer.shutdown()
        started = [int(pid) for pid, *_ in [*rig.notes("loaded"), *rig.notes("started")]]
        await eventually(lambda: not any(map(is_running, started)), "no process is left", 10)
        await eventually(lambda: watch.sample().free > before.free - 256, "the memory is free again", 10)

    # Processes

    async def start(self, *, workers: int = 1, slots: int = 1) -> None:
        """Start workers, and wait until each knows its device and has its first child."""
        for _ in range(workers):
            with (self.folder / "workers.log").open("a") as log:
                env = {**self.env, "GPU_TEST_SLOTS": str(slots)}
                command = ["-m", "maas_backoff", "worker", "real_gpu.handlers:scheduler"]
                self.workers.append(python(*command, env=env, stdout=log, stderr=log))
        await eventually(self._are_ready, "the workers are ready", 60)

    async def _are_ready(self) -> bool:
        ended = [worker for worker in self.workers if worker.poll() is not None]
        assert not ended, (self.folder / "workers.log").read_text()[-2000:]
        known = [worker for worker in await self.producer.workers() if worker.devices]
        return len(known) == len(self.workers) == len(self.notes("loaded"))

    @contextmanager
    def other(self, mib: int, *, busy: bool = False) -> Iterator[Seen]:
        """Have another process take memory, and compute if `busy`; yield what CUDA shows to that process."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        env = {**self.env, "CUDA_VISIBLE_DEVICES": self.uuid}
        process = python("-m", "real_gpu.other", mib, *["busy"] * busy, env=env, **pipes)
        try:
            assert process.stdout is not None
            yield Seen(**json.loads(process.stdout.readline()))
        finally:
            end(process)

    # Tasks

    async def create(self, *steps: Any, keeps: bool = False, **options: Any) -> str:
        return await self.producer.create_task({"steps": steps, "keeps": keeps}, **options)

    async def ended(self, task_id: str, seconds: float = 60) -> TaskEntity:
        return await self.producer.wait_task(task_id, seconds)

    async def status(self, task_id: str) -> tuple[str, str]:
        """Return a task's status, and the reason why it waits."""
        task = await self.producer.get_task(task_id)
        assert task is not None
        return str(task.status.value), task.waiting_for or ""

    async def begun(self, task_id: str) -> int:
        """Wait for a task's first attempt, and return its process id."""
        await eventually(lambda: self.attempts(task_id), f"{task_id} begins", 40)
        return self.attempts(task_id)[0][0]

    def attempts(self, task_id: str) -> list[tuple[int, float]]:
        """Return the process id of each attempt, and the GiB that were reserved for it."""
        return [(int(pid), float(gib)) for name, pid, gib in self.notes("begin") if name == task_id]

    async def did(self, task_id: str, step: str, times: int = 1) -> None:
        """Wait until an attempt has taken a step."""
        await eventually(lambda: self.notes("did").count([task_id, step]) >= times, f"{task_id}: {step}", 40)

    def notes(self, kind: str) -> list[list[str]]:
        """Return what handlers have noted, without the time."""
        file = self.folder / "notes"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [words for _, of, *words in lines if of == kind]

    # The ledger

    async def ledger(self) -> DeviceLedger:
        server = self.producer._client.store.connection.server
        return await Ledgers(self.producer.config.storage, server, lease=LEASE).read(self.uuid)

    async def reservations(self, pid: int) -> Sequence[Reservation]:
        """Return what the ledger has reserved for a child process."""
        return [one for one in (await self.ledger()).reservations.values() if one.owner == owner_of(pid)]


async def seconds_until(holds: Callable[[], Any], what: str, limit: float) -> float:
    """Wait until something holds; return the seconds that it took."""
    begun = time.monotonic()
    await eventually(holds, what, limit)
    return time.monotonic() - begun
