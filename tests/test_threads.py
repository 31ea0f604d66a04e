"""Calls that block, in a thread; at the end of the interpreter, which starts no thread, on the event loop."""

import threading

import pytest

from maas_backoff.common.threads import in_thread_or_here

pytestmark = pytest.mark.anyio


async def test_a_call_runs_in_a_thread_while_threads_can_be_started() -> None:
    assert await in_thread_or_here(threading.current_thread) is not threading.current_thread()


async def test_a_call_runs_here_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert await in_thread_or_here(threading.current_thread) is threading.current_thread()


async def test_an_error_of_the_call_is_raised_and_the_call_not_repeated() -> None:
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await in_thread_or_here(fails)
    assert calls == [1]
