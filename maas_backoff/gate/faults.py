"""Evidence for and against devices. It goes to their ledgers, so that all workers know it."""

from collections.abc import Iterable

from maas_backoff.common.guard import Log, log_for
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import Ledgers

log: Log = log_for("gpu")


class Faults:
    """Evidence of one worker about its devices that the ledgers do not have yet."""

    def __init__(self, ledgers: Ledgers, known: KnownLedgers, context: GateContext) -> None:
        self._ledgers = ledgers
        self._known = known
        self._config = context.config
        self._changed = context.changed
        self._faults: list[tuple[str, str, str]] = []
        self._proven: set[str] = set()
        self._troubled: set[str] = set()

    def failed(self, uuid: str, task_id: str, why: str) -> None:
        """Note that a task failed as on a broken device."""
        self._faults.append((uuid, task_id, why))
        self._changed.set()

    def succeeded(self, uuid: str) -> None:
        """Note that a task succeeded: if the device was doubted, it works."""
        ledger = self._known[uuid]
        if ledger.quarantine or ledger.doubted:
            self._proven.add(uuid)
            self._changed.set()

    async def write(self, devices: Iterable[GpuSample]) -> None:
        """Write the evidence into the ledgers, and read those that tasks have changed."""
        changed: set[str] = set()
        while self._faults:
            uuid, task_id, why = self._faults[0]
            await self._write_fault(uuid, task_id, why)
            self._faults.pop(0)
            changed.add(uuid)
        while self._proven:
            uuid = next(iter(self._proven))
            await self._ledgers.trust(uuid)
            self._proven.discard(uuid)
            changed.add(uuid)
        for one in devices:
            await self._write_trouble(one)
        for uuid in changed:
            await self._known.read(uuid)

    async def _write_fault(self, uuid: str, task_id: str, why: str) -> None:
        limit, seconds = self._config.max_gpu_faults, self._config.gpu_quarantine
        if await self._ledgers.doubt(uuid, task_id, why, limit=limit, seconds=seconds):
            log.error("GPU %s is in quarantine: %s", uuid, why)

    async def _write_trouble(self, one: GpuSample) -> None:
        """Write once that a device cannot be used."""
        if not one.trouble:
            self._troubled.discard(one.uuid)
        elif one.uuid not in self._troubled:
            # When it answers again, one task tries it; an Xid is taken more seriously than a lost answer.
            seconds = self._config.gpu_quarantine if one.trouble.startswith("Xid") else 0
            await self._ledgers.doubt(one.uuid, "", one.trouble, limit=1, seconds=seconds)
            self._troubled.add(one.uuid)
            log.error("GPU %s is not used: %s", one.uuid, one.trouble)
