"""`maas-backoff gpus`: the GPUs of this machine, and the reservations of all queues on them."""

import time
from collections.abc import Sequence

from maas_backoff.commands.probed import probed
from maas_backoff.commands.text import table
from maas_backoff.config.storage import StorageConfig
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.worker import Device
from maas_backoff.gate.placement import most_of, room_of, used_by_other_processes
from maas_backoff.gate.sample import GpuSample
from maas_backoff.gate.status import status
from maas_backoff.language import sentence, t
from maas_backoff.store.keys import ledger as key_of
from maas_backoff.store.ledger import DeviceLedger, Ledgers
from maas_backoff.store.server import Server


async def gpus(storage: StorageConfig | None) -> list[GpuStatus]:
    """Return the GPUs of this machine, without their reservations if `storage` is None.

    Raises LookupError with the reason if there are none.
    """
    samples = probed()
    server = None if storage is None else Server(storage, key_of(samples[0].uuid))
    ledgers = None if server is None or storage is None else Ledgers(storage, server, lease=30)
    try:
        found: list[GpuStatus] = []
        for sample in samples:
            ledger = DeviceLedger() if ledgers is None else await ledgers.read(sample.uuid)
            found.append(status(_device(sample, ledger), "", ledger))
        return found
    finally:
        if ledgers is not None and server is not None:
            await ledgers.aclose()
            await server.aclose()


def _device(sample: GpuSample, ledger: DeviceLedger) -> Device:
    return Device(
        uuid=sample.uuid,
        index=sample.index,
        name=sample.name,
        total=sample.total,
        free=sample.free,
        room=max(0, room_of(ledger, sample)),
        most=most_of(ledger, sample),
        utilization=sample.utilization,
        temperature=sample.temperature,
        health=sample.trouble or "ok",
        age=time.monotonic() - sample.at,
        other_processes=used_by_other_processes(ledger, sample),
    )


def as_table(found: Sequence[GpuStatus], *, reservations: bool) -> str:
    """Return the GPUs as a table for people; amounts are in GiB."""
    head = ("gpu", "name", "total", "others", "reserved", "free", "room", "util", "temp", "tasks", "health", "uuid")
    lines = [table(head, (_row(device, reservations=reservations) for device in found))]
    for device in found:
        lines += [
            t(
                "gpu {index}: {task} of {queue}, {memory}, by {worker}",
                index=device.index,
                task=repr(task.task_id),
                queue=task.queue,
                memory=f"{task.memory_gb:.1f} GiB",
                worker=task.worker,
            )
            for task in device.tasks
        ]
    return "\n".join(lines)


def _row(device: GpuStatus, *, reservations: bool) -> tuple[str, ...]:
    amounts = (device.total_gb, device.other_processes_gb, device.reserved_gb, device.free_gb, device.room_gb)
    total, others, reserved, free, room = (f"{amount:.1f}" for amount in amounts)
    utilization = "-" if device.utilization is None else f"{device.utilization:.0f}%"
    temperature = "-" if device.temperature is None else f"{device.temperature:.0f}C"
    tasks = f"{len(device.tasks)}" if reservations else "?"
    if not reservations:
        reserved = room = "?"
    shown = (total, others, reserved, free, room, utilization, temperature, tasks)
    return f"{device.index}", device.name, *shown, sentence(device.health), device.uuid
