"""Commands of maas-backoff that run in the process of a test."""

import gc
from collections.abc import Callable

import pytest
from support import Server

from maas_backoff.__main__ import main

Run = Callable[..., tuple[object, str, str]]
"""Runs a command; returns its exit code, its output, and its errors."""


def commands_on(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs commands on the queue `test` of a server."""
    monkeypatch.setenv("MAAS_BACKOFF_URL", f"redis://127.0.0.1:{server.port}")
    monkeypatch.setenv("MAAS_BACKOFF_BIZ_PREFIX", "test")
    # It would end this process.
    monkeypatch.setattr("maas_backoff.__main__.end_without", lambda *_: None)

    def run(*arguments: str) -> tuple[object, str, str]:
        try:
            with pytest.raises(SystemExit) as ended:
                main(arguments)
        finally:
            gc.unfreeze()  # a command freezes all objects of its process, which is that of other tests, too
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return run
