"""The end of a process that handlers keep alive: threads that never return, coroutines that swallow each cancel."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

LINGER = 1.0
"""Seconds that threads have to end after the work of a command has ended."""

CLEAN_UP = 5.0
"""Seconds that coroutines which outlive the worker have to end after their cancel."""


def end_without(left: Callable[[], Sequence[str]], what: str, code: int, after: float = LINGER) -> None:
    """End this process with an exit code after some seconds, if `left()` then names something that keeps it alive.

    This happens in a daemon thread, beside the usual end: the interpreter joins threads and calls atexit hooks. `what`
    says for the log what `left()` returns.
    """
    threading.Thread(target=_end_without, args=(left, what, code, after), daemon=True).start()


def end_loop_without_handlers(code: int) -> None:
    """Let no handler keep the event loop of this process. Called when the worker has ended.

    asyncio cancels all tasks, and waits for them without end: the process ends after CLEAN_UP seconds. Then asyncio
    would join the threads of `asyncio.to_thread`, which are left to `end_without` here.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # in place of the one with the threads
    others = asyncio.all_tasks() - {asyncio.current_task()}
    end_without(lambda: sorted(one.get_name() for one in others if not one.done()), "coroutines", code, CLEAN_UP)


def _end_without(left: Callable[[], Sequence[str]], what: str, code: int, after: float) -> None:
    time.sleep(after)
    if names := left():
        import logging

        from maas_backoff.common.guard import log_for

        log_for("command").warning("left behind, as they do not end: %s %s", what, ", ".join(names))
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def running_threads() -> list[str]:
    """Return the names of the threads that keep this process alive, without the main thread."""
    main = threading.main_thread()
    return [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not main]
