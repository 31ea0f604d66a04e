"""Faults that are put into the library on purpose: a simulation that does not find them proves nothing."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import attrs

from maas_backoff.common.orphans import Origin
from maas_backoff.domain.kind import Kinds
from maas_backoff.errors import StorageUnavailableError
from maas_backoff.store import scripts
from maas_backoff.store.batch import Settle
from maas_backoff.store.writer import Writer
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.outbox import Outbox


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
    enqueue = Writer.enqueue

    async def lying(self: Writer, tasks: Any) -> Any:
        try:
            return await enqueue(self, tasks)
        except StorageUnavailableError:
            return ["created"] * len(tasks)

    with mock.patch.object(Writer, "enqueue", lying):
        yield


@contextmanager
def _late_start() -> Iterator[None]:
    """Neither the claim nor the worker looks at the deadline."""
    by_lease = property(lambda attempt: attempt.lease.start_before)
    with _script("SETTLE", "claimed_at = now\n", ""), mock.patch.object(Attempt, "start_before", by_lease):
        yield


def _forgotten_kind() -> AbstractContextManager[object]:
    """A worker claims no tasks of its third kind."""
    text = property(lambda kinds: " ".join(name or "-" for name in kinds.names[:2]))
    return mock.patch.object(Kinds, "text", text)


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
        "SETTLE", "elseif task[3] == given .. ':' .. settle_id then answer = 'already'", "elseif false then"
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
        "SETTLE", "math.floor(cost * UNIT / weights[tenant])\nif lane", "cost * UNIT\nif lane"
    ),
    "a cost that nobody pays": lambda: _script(
        "SETTLE", "starts[tenant] = starts[tenant] + math.floor(cost * UNIT / weights[tenant])\n", ""
    ),
    "a rate that no start uses": lambda: _script(
        "SETTLE", "one.at = math.max(one.at, now) + one.interval", "one.at = one.at"
    ),
    "a turn of a paused tenant": lambda: _script("ENQUEUE", "if not one.is_paused then", "do"),
}
