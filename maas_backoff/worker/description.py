"""The description of a worker, for the registry."""

import os
import socket
from collections.abc import Callable, Sequence

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.version import __version__
from maas_backoff.config import ThreadPoolConfig
from maas_backoff.domain import jsontext

log: Log = log_for("worker")

LONGEST_TROUBLE = 1000
"""Characters that the registry keeps of the troubles of a worker."""


class Description:
    """Describes one worker. Called from the thread of the heartbeat, too."""

    def __init__(
        self,
        config: ThreadPoolConfig,
        troubles: Callable[[], Sequence[str]],
        gpus: Callable[[], Sequence[dict[str, object]]],
    ) -> None:
        """`troubles` tells what keeps the worker from running tasks; `gpus` describes its devices."""
        self._fixed: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": config.concurrency,
            "in_children": config.proc_mode == "process",
            "version": __version__,
        }
        self._troubles = troubles
        self._gpus = gpus
        self._is_without_gpus = False

    def text(self, running: int, lag: float) -> str:
        """Return the description as JSON: with so many attempts, and so many seconds of lag of the event loop."""
        about = {**self._fixed, "running": running, "lag": lag}
        about["trouble"] = "; ".join(self._troubles())[:LONGEST_TROUBLE]
        # Leases are renewed with this text: no failure to describe a device may keep them from being renewed.
        try:
            return jsontext.plain({**about, "gpus": self._gpus()})
        except Exception:
            if not self._is_without_gpus:
                log.exception("the GPUs cannot be described; the registry of workers lists none of this worker")
            self._is_without_gpus = True
            return jsontext.plain({**about, "gpus": []})
