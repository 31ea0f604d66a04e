"""Faults that are put into the library on purpose: a simulation that does not find them proves nothing."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import attrs

from maas_backoff.common.orphans import Origin
from maas_backoff.domain import settlement
from maas_backoff.domain.kind import Kinds
from maas_backoff.domain.settlement import Settlement
from maas_backoff.errors import StorageUnavailableError
from maas_backoff.store import scripts
from maas_backoff.store.batch import Settle
from maas_backoff.store.writer import Writer
from maas_backoff.worker import outcomes
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.emissions import Emissions
from maas_backoff.worker.executors.inline import InlineExecutor
from maas_backoff.worker.loops.batches import BatchLoop
from maas_backoff.worker.outbox import Outbox
from maas_backoff.worker.wake_ups import WakeUps


@contextmanager
def _script(name: str, before: str, after: str) -> Iterator[None]:
    script = getattr(scripts, name)
    assert script.text.count(before) == 1, (name, before)
    text = script.text.replace(before, after)
    digest = hashlib.sha1(text.encode()).hexdigest()
    with mock.patch.object(scripts, name, attrs.evolve(script, text=text, digest=digest)):
        yield


@contextmanager
def _forgetful_outbox() -> Iterator[None]:
    put, count = Outbox.put, 0

    def forget(self: Outbox, settle: Settle, attempt: Attempt) -> None:
        nonlocal count
        count += 1
        if count % 25:
            put(self, settle, attempt)

    with mock.patch.object(Outbox, "put", forget):
        yield


@contextmanager
def _lie() -> Iterator[None]:
    """A create that was not answered is acknowledged."""
    enqueue = Writer._enqueue

    async def lying(self: Writer, tasks: Any, *args: Any, **options: Any) -> Any:
        try:
            return await enqueue(self, tasks, *args, **options)
        except StorageUnavailableError:
            return ["created"] * len(tasks), None

    with mock.patch.object(Writer, "_enqueue", lying):
        yield


@contextmanager
def _late_start() -> Iterator[None]:
    """Neither the claim nor the worker looks at the deadline."""
    by_lease = property(lambda attempt: attempt.lease.start_before)
    with _script("SETTLE", "claimed_at = now\n", ""), mock.patch.object(Attempt, "start_before", by_lease):
        yield


def _forgotten_kind() -> AbstractContextManager[object]:
    """A worker claims no tasks of its third kind."""
    text = property(lambda kinds: " ".join(name or "-" for name in kinds.names[:2] if name not in kinds.batches))
    return mock.patch.object(Kinds, "alone", text)


@contextmanager
def _retrying_halves() -> Iterator[None]:
    """A task of a failed batch uses up a retry."""
    halve = Settlement.halve

    def retried(counts: Any, policy: Any) -> Settlement:
        return halve(attrs.evolve(counts, retry=counts.retry + 1), policy)

    with mock.patch.object(Settlement, "halve", retried):
        yield


@contextmanager
def _turned_outcomes() -> Iterator[None]:
    """Each task of a batch gets the outcome of its neighbour."""
    run = InlineExecutor.run_batch

    async def turned(self: InlineExecutor, call: Any) -> Any:
        found = await run(self, call)
        return [*found[1:], found[0]] if isinstance(found, list) else found

    with mock.patch.object(InlineExecutor, "run_batch", turned):
        yield


@contextmanager
def _deaf_look() -> Iterator[None]:
    """A wake-up while a look for a batch is on its way is forgotten."""
    look = BatchLoop._look

    async def deaf(self: BatchLoop, kind: Any) -> bool:
        before = kind.look_at
        found = await look(self, kind)
        if kind.look_at != before:  # it has found no batch
            self._wake_ups.unseen.discard(kind.name)
        return found

    with mock.patch.object(BatchLoop, "_look", deaf):
        yield


MUTANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no token fence": lambda: _script("SETTLE", "local same = token == given", "local same = true"),
    "a settlement of the reaper without a look at the lease": lambda: _script(
        "SETTLE", "answer = held and expiry <= now and 'ok' or 'lost'", "answer = held and 'ok' or 'lost'"
    ),
    "a reaper that ignores a pause": lambda: _script("REAP", "now - last > gap_ms or back > 1000", "back > 1000"),
    "an outbox that forgets": _forgetful_outbox,
    "a start after a deadline": _late_start,
    "a repeated request that claims anew": lambda: _script("SETTLE", "if last[1] == request_id then", "if false then"),
    "a start after the lease": lambda: mock.patch.object(Attempt, "start_before", float("inf")),
    "an answer that lies": _lie,
    "a live neighbour that is taken for dead": lambda: mock.patch.object(Origin, "has_ended", return_value=True),
    "a settlement that is not repeated": lambda: _script(
        "SETTLE",
        "elseif fields_of(key, 'd')[1] == given .. ':' .. settle_id then",
        "elseif false then",
    ),
    "a claim of any kind of tasks": lambda: _script(
        "SETTLE", "if kinds == '-' then return { prefix }, {} end", "do return bases_of_all(prefix), {} end"
    ),
    "a due task that forgets its kind": lambda: _script(
        "SETTLE",
        "rank(tonumber(due[d + 1]), head_start), base_of(prefix, kind)",
        "rank(due[d + 1], head_start), prefix",
    ),
    "a task that comes back without its kind": lambda: _script(
        "SETTLE", "local base = base_of(prefix, kind)", "local base = prefix"
    ),
    "a worker that forgets one of its kinds": _forgotten_kind,
    "a lost lease that keeps its places in limits": lambda: _script(
        "SETTLE",
        "item.accepted and item.was == 'processing' or",
        "item.accepted and item.kind ~= 'expired' and item.was == 'processing' or",
    ),
    "a lane that is forgotten when its limit has room": lambda: _script(
        "SETTLE", "redis.call('ZADD', limited_key(index, tenant), head, lane)\n", ""
    ),
    "a lane that is forgotten when it was just emptied": lambda: _script(
        "SETTLE", "one.is_new = not one.first or lanes.emptied[key]", "one.is_new = not one.first"
    ),
    "shares without weights": lambda: _script(
        "SETTLE", "line, step = lane.line, math.floor(cost * UNIT / weight)", "line, step = lane.line, cost * UNIT"
    ),
    "a cost that nobody pays": lambda: _script(
        "SETTLE", "taken, start, cost_sum = taken + 1, start + step,", "taken, start, cost_sum = taken + 1, start,"
    ),
    "a rate that no start uses": lambda: _script(
        "SETTLE", "one.at = math.max(one.at, now) + one.interval", "one.at = one.at"
    ),
    "a half that uses up a retry": _retrying_halves,
    "an outcome of another task of the batch": _turned_outcomes,
    "a batch that is not halved": lambda: mock.patch.object(
        outcomes, "half_of", lambda origin, place, number: (f"~{origin}", number)
    ),
    "a task that has failed alone and comes back in company": lambda: mock.patch.object(
        settlement, "_kept_alone", lambda settlement, _: settlement
    ),
    "a marker that starts no look for a batch": lambda: mock.patch.object(
        WakeUps, "look_for_batches", lambda wake_ups, kinds: wake_ups.unseen.update(kinds)
    ),
    "a batch that waits for nobody": lambda: _script("SETTLE", "math.max(0, oldest + wait_ms - now)", "0"),
    "a batch without a bound of costs": lambda: _script(
        "SETTLE", "is_full = is_full or count > 0 and cost + cost_of(claim) > most\n", ""
    ),
    "a look for a batch that forgets a wake-up": _deaf_look,
    "a trial that wakes nobody": lambda: _script("SETTLE", "if trial then limits.take_roused(trial) end", ""),
    "a batch of a paused kind": lambda: _script("SETTLE", "if bases[1] then\nclaims = batch", "do\nclaims = batch"),
    "an end that waits for no parts": lambda: mock.patch.object(Emissions, "hold", return_value=False),
    "an attempt that leaves the parts of earlier ones": lambda: _script(
        "EMIT", "if item.is_anew then redis.call('UNLINK', key) end", ""
    ),
    "a turn of a paused tenant": lambda: _script("ENQUEUE", "if not one.is_paused then", "do"),
}
