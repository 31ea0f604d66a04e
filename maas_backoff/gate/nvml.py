"""The probe: one thread that asks NVML for the devices of this machine."""

import threading
import time
from collections.abc import Callable

from maas_backoff.common.guard import Log, log_for
from maas_backoff.gate import listing
from maas_backoff.gate.library import Library
from maas_backoff.gate.sample import GpuSample
from maas_backoff.gate.sampling import Sampling

log: Log = log_for("gpu")

PERIOD = 1.0
"""Seconds between the starts of two rounds."""

DEADLINE = 10.0
"""Seconds that one call of NVML may take; the driver can hang, and nothing can stop the call then."""

_QUIETEST = 0.05


class NvmlProbe:
    """Reads all devices every second, in a thread of its own, for as long as the worker lives.

    NVML is initialised in that thread, which also keeps the GPUs initialised. A call that hangs leaves the last
    samples to grow too old: nothing is admitted then, and nothing else waits for it.
    """

    def __init__(self) -> None:
        self._sampling: Sampling | None = None
        self._death = ""
        self._has_answered = False
        self._round = PERIOD
        self._stop = threading.Event()
        self._poked = threading.Event()
        self._changed: Callable[[], None] = _nothing

    def start(self, changed: Callable[[], None]) -> None:
        """Start the thread; it ends with the process, or after `stop`."""
        self._changed = changed
        threading.Thread(target=self._run, name="maas-backoff-nvml", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end: it may hang in the driver, so `stop` does not wait for it."""
        self._stop.set()
        self._poked.set()

    def poke(self) -> None:
        """Take samples soon."""
        self._poked.set()

    def samples(self) -> list[GpuSample]:
        """Return the newest sample of each device, in NVML's order."""
        sampling = self._sampling
        return [] if sampling is None or self._death else list(sampling.samples.values())

    @property
    def patience(self) -> float:
        """Three rounds: three seconds, unless NVML itself is slow."""
        return min(3 * self._round, 3 * DEADLINE)

    @property
    def trouble(self) -> str:
        """Why there are no samples, or no new ones."""
        sampling = self._sampling
        if self._death or sampling is None:
            return self._death or "it has not answered yet"
        since = sampling.driver.library.calling_since
        if since is not None and time.monotonic() - since > DEADLINE:
            return f"NVML has not answered for {time.monotonic() - since:.0f} s"
        return sampling.trouble

    @property
    def has_answered(self) -> bool:
        """Whether the probe knows the devices, also if there are none."""
        return self._has_answered

    # In the thread

    def _run(self) -> None:
        try:
            sampling = self._sampling = Sampling(Library())
            try:
                if self._is_started(sampling):
                    self._sample_for_ever(sampling)
            finally:
                sampling.driver.stop()
        except Exception as error:
            self._death = f"the probe has died: {error}"
            self._answered()
            log.exception("the probe of the GPUs has died; no task that needs one will start")

    def _is_started(self, sampling: Sampling) -> bool:
        """Wait until NVML is started. Return False if it never will be."""
        while not self._stop.is_set() and not sampling.driver.start():
            self._answered()
            if sampling.driver.is_missing:
                return False
            self._stop.wait(listing.LISTED_FOR)
        return not self._stop.is_set()

    def _sample_for_ever(self, sampling: Sampling) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            sampling.take_round()
            self._round = max(PERIOD, time.monotonic() - begin)
            self._has_answered = True
            self._changed()
            self._poked.wait(max(_QUIETEST, begin + PERIOD - time.monotonic()))
            self._poked.clear()
            if time.monotonic() - begin < _QUIETEST:
                self._stop.wait(_QUIETEST)

    def _answered(self) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._changed()


def _nothing() -> None:
    pass
