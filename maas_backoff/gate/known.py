"""The ledgers of devices as one worker has read them last."""

from maas_backoff.store.ledger import DeviceLedger, Ledgers

_UNREAD = DeviceLedger()


class KnownLedgers:
    """The newest ledger of each device, by UUID."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._read: dict[str, DeviceLedger] = {}

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._read

    def __getitem__(self, uuid: str) -> DeviceLedger:
        """Return the ledger as it was read last; an empty one if it was not read yet."""
        return self._read.get(uuid, _UNREAD)

    async def read(self, uuid: str) -> DeviceLedger:
        """Read the ledger of a device now."""
        ledger = self._read[uuid] = await self._ledgers.read(uuid)
        return ledger
