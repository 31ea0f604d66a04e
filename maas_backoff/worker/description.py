"""The description of a worker for the registry of workers."""

import os
import socket
from collections.abc import Callable, Sequence

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.version import __version__
from maas_backoff.config import ThreadPoolConfig
from maas_backoff.domain import jsontext
from maas_backoff.domain.kind import Kinds

log: Log = log_for("worker")

LONGEST_TROUBLE = 1000
"""The most characters of the troubles of a worker in the registry."""


class Description:
    """Describes one worker. The heartbeat calls it from its own thread, too."""

    def __init__(
        self,
        config: ThreadPoolConfig,
        kinds: Kinds,
        troubles: Callable[[], Sequence[str]],
        gpus: Callable[[], Sequence[dict[str, object]]],
        quiet: Callable[[], bool],
    ) -> None:
        """`troubles` returns the reasons why the worker does not run tasks as it should; `gpus` describes its GPUs.

        `quiet` returns whether the worker was told to claim nothing.
        """
        self._fixed: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": config.concurrency,
            "in_children": config.proc_mode == "process",
            "version": __version__,
            "kinds": list(kinds.names),
        }
        if kinds.batches:
            self._fixed["batches"] = {name: [one.max_size, one.max_wait] for name, one in kinds.batches.items()}
        self._troubles = troubles
        self._gpus = gpus
        self._quiet = quiet
        self._is_without_gpus = False

    def text(self, running: int, lag: float, oldest: float = 0) -> str:
        """Return the description as JSON. `running` is a number of slots, `lag` is that of the event loop in s.

        `oldest` is the seconds since the claim of the oldest running attempt.
        """
        about = {**self._fixed, "running": running, "lag": lag, "oldest": round(oldest, 1)}
        about["trouble"] = "; ".join(self._troubles())[:LONGEST_TROUBLE]
        if self._quiet():
            about["quiet"] = True
        # The renewal of leases sends this text: a failure to describe a device must not stop the renewal.
        try:
            return jsontext.plain({**about, "gpus": self._gpus()})
        except Exception:
            known, self._is_without_gpus = self._is_without_gpus, True
            if not known:
                log.exception("the GPUs cannot be described; the registry lists no GPU of this worker")
            return jsontext.plain({**about, "gpus": []})
