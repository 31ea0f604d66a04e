"""`maas-backoff doctor`: what is wrong here, and what to do about it."""

import json
import statistics
import time
from collections.abc import Sequence

import anyio
import attrs

from maas_backoff.commands.gpus import probed
from maas_backoff.errors import StorageDeniedError, StorageUnfitError
from maas_backoff.gate.sample import NO_DEVICE, NO_DRIVER
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.store.orphans import MOST_KEYS, find_orphans
from maas_backoff.store.queue_store import QueueStore

PINGS = 20
LARGEST_SKEW = 1.0
"""Seconds between the clock here and the server's that are worth a word."""


@attrs.frozen
class Word:
    """One line: `ok`, `warning` or `wrong`, and what about."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind:8} {self.text}"


def as_json(words: Sequence[Word]) -> str:
    """Return the lines as JSON."""
    return json.dumps([attrs.asdict(word) for word in words], indent=2)


async def examine(
    scheduler: TaskBackoffScheduler, store: QueueStore, *, repair: bool = False, keys: int = MOST_KEYS
) -> list[Word]:
    """Return all there is to say. Raises StorageError when the server cannot be reached.

    Tasks that are in no index are looked for among `keys` keys of the server, and put back if `repair`.
    """
    words = [*await _server(store), *await _clock(store)]
    stats = await scheduler.get_queue_stats()
    fleet = await scheduler.workers()
    words.append(Word("ok" if fleet else "warning", f"workers: {len(fleet)} alive"))
    versions = {worker.version for worker in fleet}
    if len(versions) > 1:
        words.append(Word("warning", f"workers: of several releases ({', '.join(sorted(versions))}); upgrade them all"))
    words.extend(
        Word("warning", f"worker {worker.name}: its event loop kept a call waiting for {worker.lag:.1f} s")
        for worker in fleet
        if worker.lag > 1
    )
    words.extend(
        Word("warning", f"worker {worker.name}: not ready: {worker.trouble}") for worker in fleet if not worker.ready
    )
    words.append(
        Word("warning" if stats.paused or stats.suspect_count else "ok", f"queue: {await scheduler.explain()}")
    )
    if stats.unfit_count:
        too_much = "ask for more GPU memory than any worker's device has"
        words.append(Word("wrong", f"queue: {stats.unfit_count} tasks {too_much}"))
    words += await _orphans(store, repair=repair, keys=keys)
    return [*words, *await anyio.to_thread.run_sync(_gpus)]


async def _server(store: QueueStore) -> list[Word]:
    try:
        found = await store.check(worker=True)
    except StorageUnfitError as error:
        return [Word("wrong", f"server: {problem}") for problem in error.findings]
    return [Word("warning", f"server: {one.text}") for one in found] or [Word("ok", "server: fit, with all rights")]


async def _orphans(store: QueueStore, *, repair: bool, keys: int) -> list[Word]:
    try:
        found = await find_orphans(store.connection, repair=repair, keys=keys)
    except StorageDeniedError:
        return [Word("warning", "queue: tasks in no index were not looked for: grant ACL SETUSER <user> +scan")]
    words: list[Word] = []
    if found.orphans and repair:
        words.append(Word("ok", f"queue: {found.orphans} tasks that were in no index were put back"))
    elif found.orphans:
        wrong = "tasks are in no index, and nobody finds them"
        words.append(Word("wrong", f"queue: {found.orphans} {wrong}: run maas-backoff doctor --repair"))
    if not found.complete:
        words.append(
            Word("warning", f"queue: only {found.tasks} tasks were looked at; --keys {10 * keys} looks at more")
        )
    return words


async def _clock(store: QueueStore) -> list[Word]:
    trips: list[float] = []
    skew = 0.0
    for _ in range(PINGS):
        begun = time.monotonic()
        seconds, micros = await store.connection.server.execute("TIME")
        trips.append(time.monotonic() - begun)
        skew = int(seconds) + int(micros) / 1e6 - (time.time() - trips[-1] / 2)
    latency = f"server: answers in {statistics.median(trips) * 1000:.2f} ms (median of {PINGS})"
    words = [Word("ok", latency)]
    if abs(skew) > LARGEST_SKEW:
        harmless = "only run_at is taken by the caller's clock; set both by NTP"
        words.append(Word("warning", f"clock: here and on the server it differs by {skew:+.1f} s; {harmless}"))
    else:
        words.append(Word("ok", f"clock: within {abs(skew) * 1000:.0f} ms of the server's"))
    ahead = int(await store.connection.server.execute("HGET", store.connection.keys("meta"), "ahead") or 0) / 1000
    if ahead:
        what = "by so much the server's was set back; times are shown by the server's"
        words.append(Word("ok", f"clock: the queue's is {ahead:.1f} s ahead of the server's: {what}"))
    return words


def _gpus() -> list[Word]:
    try:
        readings = probed()
    except LookupError as error:
        why = str(error)
        usual = why.startswith(NO_DRIVER) or why == NO_DEVICE
        return [Word("ok", f"gpus: none here ({why})") if usual else Word("wrong", f"gpus: {why}")]
    return [
        Word("wrong", f"gpu {one.index}: {one.trouble}")
        if one.trouble
        else Word("ok", f"gpu {one.index}: {one.name}, {one.free / 1024:.1f} of {one.total / 1024:.1f} GiB free")
        for one in readings
    ]
