"""A terminal that ends a coroutine when a person presses q or Ctrl-C."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import anyio

_QUIT = b"qQ\x03\x1b"
"""q, Ctrl-C, Esc."""


async def until_quit(run: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine until it ends, or a person presses q, Esc or Ctrl-C.

    If stdin is no terminal, only the signal of Ctrl-C ends the coroutine.
    """
    if not sys.stdin.isatty():
        await run()
        return
    descriptor = sys.stdin.fileno()
    with _single_keys(descriptor), anyio.CancelScope() as scope:

        def read() -> None:
            if not (keys := os.read(descriptor, 64)) or any(key in _QUIT for key in keys[:1]):
                scope.cancel()

        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, read)
        try:
            await run()
        finally:
            loop.remove_reader(descriptor)


@contextmanager
def _single_keys(descriptor: int) -> Generator[None]:
    """Let the terminal hand on each key at once, unseen, and Ctrl-C as a key; undo it at the end."""
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[3] &= ~termios.ISIG
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
