"""A reservation on a device, for one attempt and for the child process that outlives it."""

import time
from collections.abc import Callable
from typing import Literal

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.sample import GpuSample

State = Literal["running", "idle", "ending"]


@attrs.define(eq=False)
class Grant:
    """A reservation in a device's ledger, as its holder has it; amounts are MiB.

    It is running while an attempt has it; then idle, as a warm child's memory, or until the next task of this worker
    takes it; and ending once its process has ended, until NVML shows the memory back.
    """

    id: str
    uuid: str
    index: int
    mib: int
    demand: Demand
    cuda_name: str
    task_id: str = ""
    owner: str = "-"
    """The owner's name of the child process that uses the memory; "-" where there is none."""
    state: State = "running"
    seen: int = 0
    """MiB that its process was last seen to use, for the ledger."""
    told: bool = True
    """Whether the ledger was told so."""
    peak: int = 0
    kept: int = attrs.field(init=False)
    """The most that its process was given, and may keep."""
    clock: Callable[[], float] = time.monotonic
    since: float = attrs.field(init=False)
    """When its state began."""
    evict: Callable[[], None] | None = None
    """Ends the warm child that keeps the memory."""
    dead: bool = False
    """Whether the child has ended."""
    changed: bool = False
    """Whether the ledger says something else."""

    def __attrs_post_init__(self) -> None:
        self.since = self.clock()
        self.kept = self.mib

    def resized(self, mib: int, demand: Demand) -> None:
        """Its next task is given more, or less."""
        self.mib, self.demand = mib, demand
        self.kept = max(self.kept, mib)
        self.changed = True

    def used_by(self, pid: int, evict: Callable[[], None]) -> None:
        """Note which child process uses the memory from now on; `evict` ends the child when it is idle."""
        self.owner = owner_of(pid)
        self.evict = evict
        self.kept = self.mib
        self.dead = False
        self.changed = True
        self.seen = 0

    def end_child(self) -> None:
        """End the warm child; nobody takes its place here."""
        evict, self.evict = self.evict, None
        self._become("ending")
        if evict is not None:
            evict()

    def process_ended(self, pid: int) -> None:
        """Note that a child has ended, or is about to: its memory comes back. Another may have its place by now."""
        if self.owner != owner_of(pid):
            return
        self.evict = None
        self.dead = True
        # Before others see its memory free, they are told that it uses none.
        self.changed = self.changed or self.seen > 0
        self.seen = 0
        if self.state == "idle":
            self._become("ending")

    def attempt_ended(self) -> None:
        """Note that the attempt has ended. A child that is still there keeps its memory."""
        if self.state == "running":
            self.task_id = ""
            self._become("ending" if self.dead else "idle")

    def claimed(self, task_id: str, demand: Demand | None) -> None:
        """Note which task was claimed for the grant; the task may need less than the others of its set."""
        self.task_id = task_id
        self.changed = True
        if demand is not None:
            self.demand = demand
            if not self.evict:
                self.mib = min(self.mib, demand.memory)

    def taken(self) -> None:
        """Note that the next attempt has the grant."""
        self._become("running")
        self.peak = 0

    def shown(self, sample: GpuSample) -> None:
        """Note how much memory a sample shows in use by the process."""
        if self.owner == "-" or self.dead:
            return
        self.seen = sample.used.get(self.owner, 0)
        self.told = False
        if self.state == "running":
            self.peak = max(self.peak, self.seen)

    def _become(self, state: State) -> None:
        if self.state != state:
            self.state = state
            self.since = self.clock()
            self.changed = True
