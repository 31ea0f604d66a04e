"""The operations on the workers of a queue, and on their GPUs."""

import re

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.worker import Device, Worker
from maas_backoff.errors import InvalidValueError
from maas_backoff.gate.status import status
from maas_backoff.store.ledger import BY_HAND, FOR_EVER, Ledgers
from maas_backoff.store.queue_store import QueueStore

log: Log = log_for("scheduler")

LONGEST_REASON = 100
"""The most characters of the reason of a quarantine."""

_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]{32,100}")


class FleetOperations:
    """The operations on workers and GPUs. Each call checks its arguments, and logs its change."""

    def __init__(self, store: QueueStore, ledgers: Ledgers) -> None:
        self._store = store
        self._ledgers = ledgers

    async def gpus(self) -> list[GpuStatus]:
        return [
            status(device, host, await self._ledgers.read(device.uuid))
            for device, host in (await self._devices()).values()
        ]

    async def _devices(self) -> dict[str, tuple[Device, str]]:
        """Return the devices of live workers by their UUID, each with its host."""
        found: dict[str, tuple[Device, str]] = {}
        for worker in await self._store.registry.fleet():
            for device in worker.devices:
                # Two workers may have the same device: the newer GPU sample counts.
                if device.uuid not in found or device.age < found[device.uuid][0].age:
                    found[device.uuid] = device, worker.host
        return found

    async def quiet(self, name: str, *, on: bool) -> list[Worker]:
        """Tell the live workers that a name means to claim nothing, or to claim again. Return these workers."""
        _checked_text("worker", name)
        meant = [worker for worker in await self._store.registry.fleet() if worker.is_named(name)]
        for worker in meant:
            if await self._store.registry.set_quiet(worker.name, on=on):
                event, words = ("quieted", "is to claim nothing") if on else ("unquieted", "may claim again")
                log.info("worker %s %s, by an operation", worker.name, words, extra={"event": event})
        return meant

    async def quarantine(self, gpu: str, reason: str) -> str:
        uuid = await self._uuid_of(gpu)
        if not isinstance(reason, str) or len(reason) > LONGEST_REASON or not reason.isprintable():
            raise InvalidValueError("reason", f"printable text of at most {LONGEST_REASON} characters", reason)
        words = f"{BY_HAND}: {reason}" if reason else BY_HAND
        await self._ledgers.doubt(uuid, "", words, limit=1, seconds=FOR_EVER)
        log.warning("GPU %s is in quarantine: %s", uuid, words, extra={"event": "gpu_quarantined"})
        return uuid

    async def release(self, gpu: str) -> bool:
        uuid = await self._uuid_of(gpu)
        done = await self._ledgers.open(uuid)
        if done:
            log.warning("GPU %s is released from quarantine, by an operation", uuid, extra={"event": "gpu_released"})
        return done

    async def _uuid_of(self, gpu: str) -> str:
        """Return the UUID that a text begins. A whole UUID needs no live worker."""
        _checked_text("gpu", gpu)
        known = await self._devices()
        found = [uuid for uuid in known if uuid.startswith(gpu)]
        if gpu in known or len(found) == 1:
            return gpu if gpu in known else found[0]
        if not found and _UUID.fullmatch(gpu):
            return gpu
        expected = "the UUID of a GPU of a live worker, or the beginning of one UUID alone"
        raise InvalidValueError("gpu", f"{expected} ({', '.join(sorted(found or known)) or 'there is none'})", gpu)


def _checked_text(option: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise InvalidValueError(option, "a name", text)
