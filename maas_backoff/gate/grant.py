"""A reservation on a device, for one attempt and for the child process that outlives it."""

from collections.abc import Callable
from typing import Literal

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import Reservation

State = Literal["running", "idle", "ending"]


@attrs.define
class ChildUse:
    """The child process that uses a grant's memory, and how much; amounts are MiB."""

    owner: str = "-"
    """The name under which NVML's list has the process; "-" where there is none."""
    evict: Callable[[], None] | None = None
    """Ends the child while it is idle. None once the child is ending."""
    ended: bool = False
    seen: int = 0
    """How much the process was last seen to use, for the ledger."""
    reported: bool = True
    """Whether the ledger has that number."""
    peak: int = 0
    """The most that the process was seen to use in this attempt."""
    kept: int = 0
    """The most that the process was given, and may keep."""

    def shown(self, sample: GpuSample, *, in_attempt: bool) -> None:
        """Note how much memory a GPU sample shows in use by the process."""
        if self.owner == "-" or self.ended:
            return
        self.seen = sample.used.get(self.owner, 0)
        self.reported = False
        if in_attempt:
            self.peak = max(self.peak, self.seen)


class Grant:
    """A reservation in a device's ledger, as its holder has it; amounts are MiB. Other modules only call and read.

    A grant is running while an attempt has it. Then it is idle: the memory of a warm child, or kept until the next task
    of this worker takes it. It is ending once its process has ended, until NVML shows the memory free.
    """

    def __init__(self, name: str, context: GateContext, sample: GpuSample, index: int, demand: Demand) -> None:
        """Make a grant on the device of a GPU sample. `index` is CUDA's number of the device for the handler."""
        self.id = name
        self.uuid: str = sample.uuid
        self.index = index
        self.cuda_name: str = sample.cuda_name
        self.demand: Demand = demand
        self.mib: int = demand.memory
        self.task_id: str = ""
        self.child: ChildUse = ChildUse()
        self.state: State = "running"
        self.since: float = context.clock()
        """When its state began."""
        self.changed: bool = False
        """Whether the ledger says something else."""
        self._context = context

    @property
    def owner(self) -> str:
        """The owner's name of the child process that uses the memory; "-" where there is none."""
        return self.child.owner

    @property
    def is_warm(self) -> bool:
        """Whether an idle child keeps the memory, which `end_child` would end."""
        return self.state == "idle" and self.child.evict is not None

    @property
    def assignment(self) -> GpuAssignment:
        """The device and the memory, as a task sees them."""
        return GpuAssignment.of(self.uuid, self.index, self.mib)

    @property
    def reservation(self) -> Reservation:
        """The grant as the device's ledger should have it."""
        context, task_id = self._context, self.task_id or "-"
        return Reservation(
            *(self.id, self.mib, self.state, self.owner, context.worker, context.queue, task_id), seen=self.child.seen
        )

    # The attempt

    def take_for(self, demand: Demand, mib: int) -> None:
        """Note that the next task of a warm child has the grant, with more memory than before, or less."""
        self.demand = demand
        self.resize(mib)
        self.child.kept = max(self.child.kept, mib)
        self._become("running")
        self.child.peak = 0

    def claimed(self, task_id: str, demand: Demand | None) -> None:
        """Note which task was claimed for the grant; the task may need less than the others of its set."""
        self.task_id = task_id
        self.changed = True
        if demand is not None:
            self.demand = demand
            if self.child.evict is None:
                self.mib = min(self.mib, demand.memory)

    def attempt_ended(self) -> None:
        """Note that the attempt has ended. A child that is still there keeps its memory."""
        if self.state == "running":
            self.task_id = ""
            self._become("ending" if self.child.ended else "idle")

    # The child process

    def used_by(self, pid: int, evict: Callable[[], None]) -> None:
        """Note which child process uses the memory from now on; `evict` ends the child when it is idle."""
        self.child = ChildUse(owner_of(pid), evict, peak=self.child.peak, kept=self.mib)
        self.changed = True

    def process_ended(self, pid: int) -> None:
        """Note that a child has ended, or is about to: its memory comes back. Another may have its place by now."""
        if self.owner != owner_of(pid):
            return
        self.child.evict = None
        self.child.ended = True
        # Before others see its memory free, the ledger says that it uses none.
        self.changed = self.changed or self.child.seen > 0
        self.child.seen = 0
        if self.state == "idle":
            self._become("ending")

    def end_child(self) -> None:
        """End the warm child; no other child takes its place here."""
        evict, self.child.evict = self.child.evict, None
        self._become("ending")
        if evict is not None:
            evict()

    # The ledger

    def resize(self, mib: int) -> None:
        """Reserve more memory, or less."""
        self.mib = mib
        self.changed = True

    def written(self) -> None:
        """Note that the ledger says the same from now on."""
        self.changed = False
        self.child.reported = True

    def write_again(self) -> None:
        """Have the grant written into the ledger again."""
        self.changed = True

    def _become(self, state: State) -> None:
        if self.state != state:
            self.state = state
            self.since = self._context.clock()
            self.changed = True
