"""`maas-backoff doctor`: find what is wrong, and say what to do."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from maas_backoff.commands.probed import probed
from maas_backoff.commands.text import moment
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker
from maas_backoff.errors import StorageDeniedError, StorageUnfitError
from maas_backoff.gate.sample import NO_DEVICE, NO_DRIVER, GpuSample
from maas_backoff.language import sentence, t
from maas_backoff.language.width import padded
from maas_backoff.store.orphans import MOST_KEYS, find_orphans
from maas_backoff.store.preflight.check import check_queue
from maas_backoff.store.queue_store import QueueStore

PINGS = 20
LARGEST_SKEW = 1.0
"""The difference in seconds between the local clock and the server's above which the doctor warns."""


class Line(NamedTuple):
    """One line of the result: `ok`, `warning` or `wrong`, and a text."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{padded(t(self.kind), 8)} {self.text}"


def views(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Return the lines as values for JSON."""
    return [line._asdict() for line in lines]


async def examine(store: QueueStore, *, repair: bool = False, keys: int = MOST_KEYS) -> list[Line]:
    """Check the server, the clocks, the workers, the queue and the GPUs, and return the results.

    Searches `keys` keys of the server for tasks that are in no index, and puts them back if `repair`. Raises
    StorageError if the server cannot be reached.
    """
    lines = [*await _server(store), *await _clock(store)]
    stats = await store.reader.stats()
    fleet = await store.registry.fleet()
    lines.append(Line("ok" if fleet else "warning", t("workers: {n} alive", n=len(fleet))))
    versions = {worker.version for worker in fleet}
    if len(versions) > 1:
        told = t("workers: of several releases ({releases}); upgrade them all", releases=", ".join(sorted(versions)))
        lines.append(Line("warning", told))
    lines.extend(
        Line(
            "warning",
            t(
                "worker {name}: its event loop kept a call waiting for {lag} s",
                name=worker.name,
                lag=f"{worker.lag:.1f}",
            ),
        )
        for worker in fleet
        if worker.lag > 1
    )
    lines.extend(
        Line("warning", t("worker {name}: not ready: {trouble}", name=worker.name, trouble=sentence(worker.trouble)))
        for worker in fleet
        if not worker.ready
    )
    lines.extend(_quiet(fleet, await store.registry.quieted([worker.name for worker in fleet])))
    lines.append(
        Line(
            "warning" if _needs_a_look(stats, fleet) else "ok",
            t("queue: {reason}", reason=sentence(await store.reader.explain())),
        )
    )
    if stats.unfit_count:
        told = t("queue: {n} tasks ask for more GPU memory than any worker's device has", n=stats.unfit_count)
        lines.append(Line("wrong", told))
    if any(worker.devices for worker in fleet):
        lines += _fleet_gpus(await _gpus_of(store), fleet)
    lines += await _orphans(store, repair=repair, keys=keys)
    return [*lines, *await asyncio.to_thread(_gpus)]


def _needs_a_look(stats: QueueStats, fleet: Sequence[Worker]) -> bool:
    """Return whether tasks wait, or may wait, for more than a slot."""
    is_alone = not fleet and stats.pending_count > stats.scheduled_count
    return bool(is_alone or stats.paused or stats.paused_kinds or stats.paused_tenants or stats.suspect_count)


async def _server(store: QueueStore) -> list[Line]:
    try:
        found = await check_queue(store.connection, worker=True, marks=False)
    except StorageUnfitError as error:
        return [Line("wrong", t("server: {finding}", finding=sentence(problem))) for problem in error.findings]
    warnings = [Line("warning", t("server: {finding}", finding=sentence(one.text))) for one in found]
    return warnings or [Line("ok", t("server: fit, with all rights"))]


async def _orphans(store: QueueStore, *, repair: bool, keys: int) -> list[Line]:
    try:
        found = await find_orphans(store.connection, repair=repair, keys=keys)
    except StorageDeniedError:
        remedy = "ACL SETUSER <user> +scan"
        return [Line("warning", t("queue: tasks in no index were not looked for: grant {right}", right=remedy))]
    lines: list[Line] = []
    if found.orphans and repair:
        lines.append(Line("ok", t("queue: {n} tasks that were in no index were put back", n=found.orphans)))
    elif found.orphans:
        told = "queue: {n} tasks are in no index, so no worker finds them: run maas-backoff doctor --repair"
        lines.append(Line("wrong", t(told, n=found.orphans)))
    if not found.complete:
        told = t("queue: only {n} tasks were looked at; --keys {keys} looks at more", n=found.tasks, keys=10 * keys)
        lines.append(Line("warning", told))
    return lines


async def _clock(store: QueueStore) -> list[Line]:
    trips: list[float] = []
    skew = 0.0
    for _ in range(PINGS):
        begun = time.monotonic()
        seconds, micros = await store.connection.server.execute("TIME")
        trips.append(time.monotonic() - begun)
        skew = int(seconds) + int(micros) / 1e6 - (time.time() - trips[-1] / 2)
    latency = f"{sorted(trips)[PINGS // 2] * 1000:.2f}"
    lines = [Line("ok", t("server: answers in {latency} ms (median of {n})", latency=latency, n=PINGS))]
    if abs(skew) > LARGEST_SKEW:
        told = (
            "clock: here and on the server it differs by {skew} s; only run_at is taken by the caller's clock; "
            "set both by NTP"
        )
        lines.append(Line("warning", t(told, skew=f"{skew:+.1f}")))
    else:
        lines.append(Line("ok", t("clock: within {skew} ms of the server's", skew=f"{abs(skew) * 1000:.0f}")))
    ahead = int(await store.connection.server.execute("HGET", store.connection.keys("meta"), "ahead") or 0) / 1000
    if ahead:
        told = (
            "clock: the queue's is {ahead} s ahead of the server's: the server's was set back by that; "
            "times are shown by the server's"
        )
        lines.append(Line("ok", t(told, ahead=f"{ahead:.1f}")))
    return lines


def _quiet(fleet: Sequence[Worker], told: Mapping[str, float]) -> list[Line]:
    """Return a line for each worker that was told to claim nothing. `told` are the moments, in ms; 0: unknown."""
    lines: list[Line] = []
    for worker in fleet:
        if worker.name in told:
            since = moment(datetime.fromtimestamp(at / 1000, UTC)) if (at := told[worker.name]) else "?"
            command = f"maas-backoff quiet {worker.name} --off"
            text = "worker {name}: told to claim nothing since {since}; to undo it: {command}"
            lines.append(Line("warning", t(text, name=worker.name, since=since, command=command)))
    return lines


async def _gpus_of(store: QueueStore) -> Sequence[GpuStatus]:
    """Return the GPUs of the queue's workers."""
    from maas_backoff.client.fleet import FleetOperations  # most queues have no GPU
    from maas_backoff.store.ledger import Ledgers

    config, server = store.connection.config, store.connection.server
    ledgers = Ledgers(config.storage, server, lease=config.scheduler.lease, queue=config.task.biz_prefix)
    try:
        return await FleetOperations(store, ledgers).gpus()
    finally:
        await ledgers.aclose()


def _fleet_gpus(gpus: Sequence[GpuStatus], fleet: Sequence[Worker]) -> list[Line]:
    """Return a line for each GPU of the queue's workers that takes no tasks, and one for all others."""
    devices = [device for worker in fleet for device in worker.devices]
    broken = {one.uuid for one in devices if not one.healthy and not one.health.startswith("quarantine")}
    lines: list[Line] = []
    for gpu in sorted(gpus, key=lambda gpu: (gpu.host, gpu.index)):
        where = t(
            "gpu {index} of {host} ({name}, {uuid})", index=gpu.index, host=gpu.host, name=gpu.name, uuid=gpu.uuid
        )
        if not gpu.healthy:
            # A quarantine by a worker ends by itself, and one by a person is meant. Anything else needs a person.
            told = t("{where}: {health}", where=where, health=sentence(gpu.health)) + _undo(gpu)
            lines.append(Line("wrong" if gpu.uuid in broken else "warning", told))
    well = [gpu for gpu in gpus if gpu.healthy]
    room = sum(gpu.room_gb for gpu in well)
    told = "gpus of the workers: {n} of {most} take tasks, {room} GiB are free"
    return [*lines, Line("ok", t(told, n=len(well), most=len(gpus), room=f"{room:.1f}"))]


def _undo(gpu: GpuStatus) -> str:
    """Return in words since when a person keeps tasks off a GPU, and how that is undone; empty: no person does."""
    if gpu.quarantine_age is None:
        return ""
    since = moment(datetime.now(UTC) - timedelta(seconds=gpu.quarantine_age))
    return t(", since {since}; to undo it: {command}", since=since, command=f"maas-backoff release {gpu.uuid}")


def _gpus() -> list[Line]:
    try:
        samples = probed()
    except LookupError as error:
        why = str(error)
        usual = why.startswith(NO_DRIVER) or why == NO_DEVICE
        return [
            Line("ok", t("gpus: none here ({why})", why=sentence(why)))
            if usual
            else Line("wrong", t("gpus: {why}", why=sentence(why)))
        ]
    return list(map(_own_gpu, samples))


def _own_gpu(one: GpuSample) -> Line:
    if one.trouble:
        return Line("wrong", t("gpu {index}: {trouble}", index=one.index, trouble=sentence(one.trouble)))
    free, total = f"{one.free / 1024:.1f}", f"{one.total / 1024:.1f}"
    told = "gpu {index}: {name}, {free} of {total} GiB free"
    return Line("ok", t(told, index=one.index, name=one.name, free=free, total=total))
