"""The loop that sends progress: how many notes one call has."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from maas_backoff.worker.loops import progress
from maas_backoff.worker.notes import Note

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("number", "calls"), [(0, []), (1, [1]), (500, [500]), (1201, [500, 500, 201])])
async def test_no_call_has_more_notes_than_the_server_should_take_at_once(number: int, calls: list[int]) -> None:
    sent: list[int] = []
    waiting, paused = asyncio.Event(), asyncio.Event()
    waiting.set()

    def newest() -> list[Note]:
        waiting.clear()
        asyncio.get_running_loop().call_soon(paused.set)  # the calls below never wait
        return [(f"{n}", n, 50.0, None) for n in range(number)]

    async def report_progress(notes: list[Note]) -> None:
        sent.append(len(notes))

    notes: Any = SimpleNamespace(waiting=waiting, newest=newest)
    server = SimpleNamespace(outage=None)
    store: Any = SimpleNamespace(
        connection=SimpleNamespace(server=server), writer=SimpleNamespace(report_progress=report_progress)
    )
    loop = asyncio.create_task(progress.run(notes, store))
    await paused.wait()
    loop.cancel()
    await asyncio.wait([loop])
    assert sent == calls
