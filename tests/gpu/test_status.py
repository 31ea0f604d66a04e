"""A device as users see it."""

import attrs
import pytest

from maas_backoff.domain.worker import Device
from maas_backoff.gate.status import status
from maas_backoff.store.ledger import DeviceLedger

WELL = Device("GPU-a", 0, "Fake", 16384, 8192, 4096, 16384, None, None, "ok", 0.1)


@pytest.mark.parametrize(
    ("told", "ledger", "health", "healthy"),
    [
        ("ok", DeviceLedger(), "ok", True),
        ("ok", DeviceLedger(quarantine="Xid 79", held_for="q 8192:0"), "quarantine: Xid 79", False),
        ("ok", DeviceLedger(held_for="q 8192:0"), "ok, held for tasks of q that need 8 GiB free", True),
        ("ok", DeviceLedger(held_for="q render/8192:0"), "ok, held for tasks of q that need 8 GiB free", True),
        ("ok", DeviceLedger(held_for="q render/~8192:0"), "ok, held for tasks of q that need 8 GiB free", True),
        ("Xid 79", DeviceLedger(quarantine="Xid 79"), "Xid 79", False),
        ("quarantine: Xid 79", DeviceLedger(quarantine="Xid 79"), "quarantine: Xid 79", False),
        ("GPU is lost", DeviceLedger(quarantine="by ada"), "GPU is lost; quarantine: by ada", False),
    ],
)
def test_the_ledger_tells_what_keeps_tasks_from_a_device_that_is_well(
    told: str, ledger: DeviceLedger, health: str, healthy: bool
) -> None:
    """The worker that has described the device may not have read the ledger yet."""
    found = status(attrs.evolve(WELL, health=told), "a host", ledger)
    assert (found.health, found.healthy, found.room_gb) == (health, healthy, 4 if told == "ok" else 0)
