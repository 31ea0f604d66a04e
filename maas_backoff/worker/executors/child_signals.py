"""The signals of a child process: its parent decides when the child ends."""

import os
import signal
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def leave_stopping_to_the_parent() -> None:
    """Let SIGINT and SIGTERM do nothing here: systemd sends them to every process, while the parent still drains.

    They are not ignored: programs that a handler starts would inherit that, and could not be terminated. A forked
    process, such as a data loader's worker, gets the default handlers; the signals are blocked during the fork.
    """
    for number in _STOPPING:
        signal.signal(number, _do_nothing)
        signal.siginterrupt(number, False)
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_restore_signals)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _restore_signals() -> None:
    for number in _STOPPING:
        signal.signal(number, signal.SIG_DFL)
    _release_signals()
