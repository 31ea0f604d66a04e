"""A device as users see it: what was read of it, and what its ledger says."""

from maas_backoff.domain.demand import MIB_PER_GIB
from maas_backoff.domain.gpu import GpuStatus, GpuTask
from maas_backoff.domain.worker import Device
from maas_backoff.store.ledger import DeviceLedger, holder


def status(device: Device, host: str, ledger: DeviceLedger) -> GpuStatus:
    """Return the status of a device that a worker on `host` has described."""
    reservations = ledger.reservations.values()
    tasks = [
        GpuTask(one.task_id, one.queue, one.worker, one.mib / MIB_PER_GIB)
        for one in reservations
        if one.state == "running" and one.task_id != "-"
    ]
    health = device.health
    if ledger.quarantine and device.healthy:
        health = f"quarantine: {ledger.quarantine}"
    elif ledger.quarantine and "quarantine: " not in health and health not in ledger.quarantine:
        # A fault begins a quarantine with its own text.
        health = f"{health}; quarantine: {ledger.quarantine}"
    elif ledger.held_for and device.healthy:
        health = f"ok, held for {holder(ledger.held_for)}"
    other = device.other_processes
    if other is None:
        other = max(0, device.total - device.most)
    return GpuStatus(
        uuid=device.uuid,
        index=device.index,
        name=device.name,
        host=host,
        total_gb=device.total / MIB_PER_GIB,
        free_gb=device.free / MIB_PER_GIB,
        reserved_gb=sum(one.mib for one in reservations) / MIB_PER_GIB,
        other_processes_gb=other / MIB_PER_GIB,
        utilization=device.utilization,
        temperature=device.temperature,
        health=health,
        age=device.age,
        tasks=tuple(tasks),
        quarantine_age=ledger.quarantine_age,
        room_gb=device.room / MIB_PER_GIB if device.healthy else 0,
    )
