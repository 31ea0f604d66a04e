"""The knowledge of a worker about the batches of a kind: how many tasks fit into memory, and whether to wait pays."""

import math

import attrs

from maas_backoff.domain.batching import Batching

_TRIES, _MOST_TRIES = 8, 512
"""Full batches that must succeed before a larger one is tried: at first, and at most after several failures."""

_MEMORY = 2.0
"""Seconds after which a measurement of the arrival rate counts a third."""

_RUNS = 32
"""Runs after which a measured run counts a third."""

_BUSY = 0.5
"""A batch waits if its tasks would keep the slots busy for more than this share of the time, each run alone."""


class BatchSize:
    """The most tasks of a batch that fit into memory: halved when it ran out, and larger again after successes.

    If a larger batch that was tried runs out of memory, the last size that has fitted counts again.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit: int = most
        """The most tasks of the next batch."""
        self._successes = 0
        self._needed = _TRIES
        self._fitting = 0
        """The largest limit below the failed ones that has succeeded."""

    def ran_out(self, size: int) -> None:
        """Note that a batch of this size ran out of memory. Each failure makes the next try come later."""
        if size <= self._fitting:
            self._fitting = 0
        if size <= self.limit:
            self.limit = max(1, self._fitting or size // 2)
        self._successes = 0
        self._needed = min(2 * self._needed, _MOST_TRIES)

    def succeeded(self, size: int) -> None:
        """Note that a batch of this size did not run out of memory."""
        if self.limit == self._most or size < self.limit:
            return
        self._fitting = self.limit
        self._successes += 1
        if self._successes >= self._needed:
            self._successes = 0
            self.limit = min(self._most, self.limit + max(1, self.limit // 4))


@attrs.define
class _Line:
    """A straight line through measured runs: seconds by size. Older runs count less."""

    weight: float = 0
    size: float = 0
    seconds: float = 0
    squares: float = 0
    products: float = 0

    def add(self, size: int, seconds: float) -> None:
        keep = 1 - 1 / _RUNS
        for name, value in (
            ("weight", 1.0),
            ("size", size),
            ("seconds", seconds),
            ("squares", size * size),
            ("products", size * seconds),
        ):
            setattr(self, name, keep * getattr(self, name) + value)

    def at(self, size: int) -> float:
        """Return the seconds of a run of this size; 0 before the first run."""
        if not self.weight:
            return 0
        spread = self.weight * self.squares - self.size**2
        slope = 0.0
        if spread > 1e-9 * self.squares:
            slope = max(0.0, (self.weight * self.products - self.size * self.seconds) / spread)
        return max(0.0, (self.seconds + slope * (self.weight * size - self.size)) / self.weight)


class Window:
    """How long a batch waits for more tasks: not at all while the slots could run each task alone."""

    def __init__(self, batching: Batching, slots: int) -> None:
        self._batching = batching
        self._slots = slots
        self._line = _Line()
        self._rate = 0.0
        self._claimed_at = -math.inf

    def claimed(self, size: int, now: float) -> None:
        """Note the size of a claimed batch, at the time `now` in seconds."""
        elapsed = now - self._claimed_at
        if elapsed > 0:
            self._rate += (size / elapsed - self._rate) * (1 - math.exp(-elapsed / _MEMORY))
        self._claimed_at = now

    def ran(self, size: int, seconds: float) -> None:
        """Note how long a batch of this size ran."""
        self._line.add(size, seconds)

    def seconds_of(self, size: int) -> float:
        """Return how long a batch of this size runs; 0 before the first run."""
        return self._line.at(size)

    @property
    def wait(self) -> float:
        """The seconds that the oldest task of a batch waits for others."""
        if not self._batching.adaptive:
            return self._batching.max_wait
        is_busy = self._rate * self._line.at(1) > _BUSY * self._slots
        return self._batching.max_wait if is_busy else 0.0
