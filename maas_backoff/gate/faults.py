"""Evidence for and against devices. It goes to their ledgers, so that all workers know it."""

from collections.abc import Iterable

from maas_backoff.common.guard import log_for
from maas_backoff.config import GpuConfig
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import Ledgers

log = log_for("gpu")


class Faults:
    """Evidence of one worker about its devices that the ledgers do not have yet."""

    def __init__(self, ledgers: Ledgers, config: GpuConfig) -> None:
        self._ledgers = ledgers
        self._config = config
        self._faults: list[tuple[str, str, str]] = []
        self._proven: set[str] = set()
        self._troubled: set[str] = set()

    def failed(self, uuid: str, task_id: str, why: str) -> None:
        """Note that a task failed as on a broken device."""
        self._faults.append((uuid, task_id, why))

    def succeeded(self, uuid: str) -> None:
        """Note that a task succeeded on a device that was doubted: the device works."""
        self._proven.add(uuid)

    async def tell(self, devices: Iterable[GpuSample]) -> set[str]:
        """Tell the ledgers; the UUIDs of those that say something else now."""
        told: set[str] = set()
        while self._faults:
            uuid, task_id, why = self._faults[0]
            limit, seconds = self._config.max_gpu_faults, self._config.gpu_quarantine
            if await self._ledgers.doubt(uuid, task_id, why, limit=limit, seconds=seconds):
                log.error("GPU %s is in quarantine: %s", uuid, why)
            self._faults.pop(0)
            told.add(uuid)
        while self._proven:
            uuid = next(iter(self._proven))
            await self._ledgers.trust(uuid)
            self._proven.discard(uuid)
            told.add(uuid)
        for one in devices:
            if one.trouble and one.uuid not in self._troubled:
                # When it answers again, one task tries it; an Xid is taken more seriously than a lost answer.
                seconds = self._config.gpu_quarantine if one.trouble.startswith("Xid") else 0
                await self._ledgers.doubt(one.uuid, "", one.trouble, limit=1, seconds=seconds)
                self._troubled.add(one.uuid)
                log.error("GPU %s is not used: %s", one.uuid, one.trouble)
            elif not one.trouble:
                self._troubled.discard(one.uuid)
        return told
