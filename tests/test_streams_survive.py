"""Workers are killed and the server dies: what each reader has at the end is the final text, byte for byte."""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import redis
from streaming import TASKS, config_of, words_of
from support import USUAL, Server, started_processes

from maas_backoff import StorageError, TaskBackoffScheduler
from maas_backoff.store.keys import Keys

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(300)]

KEYS = Keys("test")
READERS = 3
"""Readers of each task."""

WORKER = """
import asyncio, sys
from maas_backoff import StorageConfig, TaskBackoffScheduler
from streaming import config_of, emit

scheduler = TaskBackoffScheduler(config_of(StorageConfig(host="127.0.0.1", port=int(sys.argv[1])), sys.argv[2]))
scheduler.set_custom_task_handler(emit)
asyncio.run(scheduler.run_until_stopped())
"""


class Reader:
    """Reads a stream, goes away after some parts, and comes back after the last one."""

    def __init__(self, scheduler: TaskBackoffScheduler, task_id: str, seed: int) -> None:
        self.text = ""
        self.visits = self.restarts = 0
        self._scheduler = scheduler
        self._task_id = task_id
        self._dice = random.Random(seed)

    async def read(self) -> None:
        last: str | None = None
        while True:
            self.visits += 1
            leaves_after = self._dice.randint(1, 40)
            with contextlib.suppress(StorageError):
                async with contextlib.aclosing(self._scheduler.stream(self._task_id, after=last)) as parts:
                    async for part in parts:
                        last = part.id
                        if part.restarted:
                            self.text, self.restarts = "", self.restarts + 1
                        else:
                            self.text += part.data
                        leaves_after -= 1
                        if not leaves_after:
                            break
                    else:
                        return


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the test's own, which is stopped at the end."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        started.append(Server(USUAL, tmp_path, *options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("mode", "kills"), [("coroutine", 25), ("process", 8)])
async def test_readers_have_the_final_text_after_kills(server: Server, mode: str, kills: int, keeps: bool) -> None:
    """A worker with child processes starts eight of them, which takes seconds on a busy machine."""
    await check(server, mode, keeps=keeps, kills=kills, server_kills=0)


@pytest.mark.parametrize("keeps", [True, False])
async def test_readers_have_the_final_text_after_kills_of_the_server(own: Callable[..., Server], keeps: bool) -> None:
    server = own("--appendonly", "yes", "--appendfsync", "always")
    await check(server, "coroutine", keeps=keeps, kills=8, server_kills=6)


async def test_readers_have_the_final_text_after_a_server_has_lost_its_newest_data(own: Callable[..., Server]) -> None:
    """Each kill throws it back to a snapshot: claims, parts and ends of tasks that were acknowledged are gone."""
    await check(own(), "coroutine", keeps=True, kills=8, server_kills=10, snapshots=True)


async def check(
    server: Server, mode: str, *, keeps: bool, kills: int, server_kills: int, snapshots: bool = False
) -> None:
    dice = random.Random(f"{mode} {keeps}")
    scheduler = TaskBackoffScheduler(config_of(server.storage, mode))
    ids = [f"t{n}" for n in range(TASKS)]
    with started_processes() as workers:

        def start() -> None:
            command = [sys.executable, "-c", WORKER, f"{server.port}", mode]
            workers.append(subprocess.Popen(command, cwd=Path(__file__).parent))

        async def kill() -> None:
            for _ in range(kills):
                await anyio.sleep(dice.uniform(0.3, 1.2))
                victim = await running()
                if victim is None:
                    return
                workers.remove(victim)
                victim.kill()
                victim.wait()
                start()
            while await running() is not None:
                await anyio.sleep(0.1)

        async def running() -> "subprocess.Popen[bytes] | None":
            """Return a worker that runs a task; None when all tasks are finished.

            A worker whose server is away at its start has ended: start another one, as a supervisor does.
            """
            while True:
                for one in [one for one in workers if one.poll() is not None]:
                    workers.remove(one)
                    start()
                with contextlib.suppress(redis.ConnectionError):
                    rows = [server.client.hmget(KEYS.task(task_id), "s", "y") for task_id in ids]
                    holders = b" ".join(holder for state, holder in rows if state == b"processing")
                    found = [one for one in workers if f"-{one.pid}-".encode() in holders]
                    if found:
                        return dice.choice(found)
                    if all(state == b"completed" for state, _ in rows):
                        return None
                await anyio.sleep(0.02)

        async def kill_server() -> None:
            for _ in range(server_kills):
                await anyio.sleep(dice.uniform(0.1, 0.5))
                if snapshots:
                    await anyio.to_thread.run_sync(server.client.save)
                await anyio.sleep(dice.uniform(0.1, 0.8))
                await anyio.to_thread.run_sync(server.kill)
                await anyio.sleep(0.2)
                await anyio.to_thread.run_sync(server.start)

        for task_id in ids:
            await scheduler.create_task({"keeps": keeps}, task_id)
        readers = [Reader(scheduler, task_id, seed) for task_id in ids for seed in range(READERS)]
        start()
        start()
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(reader.read)
            group.start_soon(kill)
            group.start_soon(kill_server)
        took = time.monotonic() - began
        # A server that has lost the end of a task has it run again.
        tasks = {task_id: await scheduler.wait_task(task_id, 60) for task_id in ids}
    for reader in readers:
        task = tasks[reader._task_id]
        assert task.status == "completed"
        words = "".join(words_of(task.task_id))
        assert task.result == (words if keeps else f"attempt {task.attempt} {words}")
        assert reader.text == task.result, f"{task.task_id}, read in {reader.visits} visits"
        late = [part.data async for part in scheduler.stream(task.task_id)]
        assert "".join(late) == task.result
    attempts = [task.attempt for task in tasks.values()]
    print(json.dumps({"attempts": attempts, "restarts": sum(r.restarts for r in readers), "s": round(took, 1)}))
    assert sum(attempts) > TASKS
    await scheduler.shutdown()
