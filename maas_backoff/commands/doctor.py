"""`maas-backoff doctor`: find what is wrong, and say what to do."""

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import anyio
import attrs

from maas_backoff.commands.gpus import probed
from maas_backoff.commands.text import moment
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.worker import Worker
from maas_backoff.errors import StorageDeniedError, StorageUnfitError
from maas_backoff.gate.sample import NO_DEVICE, NO_DRIVER
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.store.orphans import MOST_KEYS, find_orphans
from maas_backoff.store.queue_store import QueueStore

PINGS = 20
LARGEST_SKEW = 1.0
"""The difference in seconds between the local clock and the server's above which the doctor warns."""


@attrs.frozen
class Line:
    """One line of the result: `ok`, `warning` or `wrong`, and a text."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind:8} {self.text}"


def views(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Return the lines as values for JSON."""
    return [attrs.asdict(line) for line in lines]


async def examine(
    scheduler: TaskBackoffScheduler, store: QueueStore, *, repair: bool = False, keys: int = MOST_KEYS
) -> list[Line]:
    """Check the server, the clocks, the workers, the queue and the GPUs, and return the results.

    Searches `keys` keys of the server for tasks that are in no index, and puts them back if `repair`. Raises
    StorageError if the server cannot be reached.
    """
    lines = [*await _server(store), *await _clock(store)]
    stats = await scheduler.get_queue_stats()
    fleet = await scheduler.workers()
    lines.append(Line("ok" if fleet else "warning", f"workers: {len(fleet)} alive"))
    versions = {worker.version for worker in fleet}
    if len(versions) > 1:
        lines.append(Line("warning", f"workers: of several releases ({', '.join(sorted(versions))}); upgrade them all"))
    lines.extend(
        Line("warning", f"worker {worker.name}: its event loop kept a call waiting for {worker.lag:.1f} s")
        for worker in fleet
        if worker.lag > 1
    )
    lines.extend(
        Line("warning", f"worker {worker.name}: not ready: {worker.trouble}") for worker in fleet if not worker.ready
    )
    lines.extend(_quiet(fleet, await store.registry.quieted([worker.name for worker in fleet])))
    lines.append(
        Line(
            "warning" if stats.paused or stats.paused_kinds or stats.paused_tenants or stats.suspect_count else "ok",
            f"queue: {await scheduler.explain()}",
        )
    )
    if stats.unfit_count:
        too_much = "ask for more GPU memory than any worker's device has"
        lines.append(Line("wrong", f"queue: {stats.unfit_count} tasks {too_much}"))
    if any(worker.devices for worker in fleet):
        lines += _fleet_gpus(await scheduler.gpus())
    lines += await _orphans(store, repair=repair, keys=keys)
    return [*lines, *await anyio.to_thread.run_sync(_gpus)]


async def _server(store: QueueStore) -> list[Line]:
    try:
        found = await store.check(worker=True)
    except StorageUnfitError as error:
        return [Line("wrong", f"server: {problem}") for problem in error.findings]
    return [Line("warning", f"server: {one.text}") for one in found] or [Line("ok", "server: fit, with all rights")]


async def _orphans(store: QueueStore, *, repair: bool, keys: int) -> list[Line]:
    try:
        found = await find_orphans(store.connection, repair=repair, keys=keys)
    except StorageDeniedError:
        return [Line("warning", "queue: tasks in no index were not looked for: grant ACL SETUSER <user> +scan")]
    lines: list[Line] = []
    if found.orphans and repair:
        lines.append(Line("ok", f"queue: {found.orphans} tasks that were in no index were put back"))
    elif found.orphans:
        wrong = "tasks are in no index, so no worker finds them"
        lines.append(Line("wrong", f"queue: {found.orphans} {wrong}: run maas-backoff doctor --repair"))
    if not found.complete:
        lines.append(
            Line("warning", f"queue: only {found.tasks} tasks were looked at; --keys {10 * keys} looks at more")
        )
    return lines


async def _clock(store: QueueStore) -> list[Line]:
    trips: list[float] = []
    skew = 0.0
    for _ in range(PINGS):
        begun = time.monotonic()
        seconds, micros = await store.connection.server.execute("TIME")
        trips.append(time.monotonic() - begun)
        skew = int(seconds) + int(micros) / 1e6 - (time.time() - trips[-1] / 2)
    latency = f"server: answers in {statistics.median(trips) * 1000:.2f} ms (median of {PINGS})"
    lines = [Line("ok", latency)]
    if abs(skew) > LARGEST_SKEW:
        harmless = "only run_at is taken by the caller's clock; set both by NTP"
        lines.append(Line("warning", f"clock: here and on the server it differs by {skew:+.1f} s; {harmless}"))
    else:
        lines.append(Line("ok", f"clock: within {abs(skew) * 1000:.0f} ms of the server's"))
    ahead = int(await store.connection.server.execute("HGET", store.connection.keys("meta"), "ahead") or 0) / 1000
    if ahead:
        why = "the server's was set back by that; times are shown by the server's"
        lines.append(Line("ok", f"clock: the queue's is {ahead:.1f} s ahead of the server's: {why}"))
    return lines


def _quiet(fleet: Sequence[Worker], told: Mapping[str, float]) -> list[Line]:
    """Return a line for each worker that was told to claim nothing. `told` are the moments, in ms; 0: unknown."""
    lines: list[Line] = []
    for worker in fleet:
        if worker.name in told:
            since = f" since {moment(datetime.fromtimestamp(at / 1000, UTC))}" if (at := told[worker.name]) else ""
            undo = f"maas-backoff quiet {worker.name} --off"
            lines.append(Line("warning", f"worker {worker.name}: told to claim nothing{since}; to undo it: {undo}"))
    return lines


def _fleet_gpus(gpus: Sequence[GpuStatus]) -> list[Line]:
    """Return a line for each GPU of the queue's workers that takes no tasks, and one for all others."""
    lines: list[Line] = []
    for gpu in sorted(gpus, key=lambda gpu: (gpu.host, gpu.index)):
        where = f"gpu {gpu.index} of {gpu.host} ({gpu.name}, {gpu.uuid})"
        if not gpu.healthy:
            # A quarantine by a worker ends by itself, and one by a person is meant. Anything else needs a person.
            is_kept_off = gpu.health.startswith("quarantine")
            undo = _undo(gpu) if is_kept_off else ""
            lines.append(Line("warning" if is_kept_off else "wrong", f"{where}: {gpu.health}{undo}"))
    well = [gpu for gpu in gpus if gpu.healthy]
    room = sum(gpu.room_gb for gpu in well)
    return [*lines, Line("ok", f"gpus of the workers: {len(well)} of {len(gpus)} take tasks, {room:.1f} GiB are free")]


def _undo(gpu: GpuStatus) -> str:
    """Return in words since when a person keeps tasks off a GPU, and how that is undone; empty: no person does."""
    if gpu.quarantine_age is None:
        return ""
    since = moment(datetime.now(UTC) - timedelta(seconds=gpu.quarantine_age))
    return f", since {since}; to undo it: maas-backoff release {gpu.uuid}"


def _gpus() -> list[Line]:
    try:
        samples = probed()
    except LookupError as error:
        why = str(error)
        usual = why.startswith(NO_DRIVER) or why == NO_DEVICE
        return [Line("ok", f"gpus: none here ({why})") if usual else Line("wrong", f"gpus: {why}")]
    return [
        Line("wrong", f"gpu {one.index}: {one.trouble}")
        if one.trouble
        else Line("ok", f"gpu {one.index}: {one.name}, {one.free / 1024:.1f} of {one.total / 1024:.1f} GiB free")
        for one in samples
    ]
