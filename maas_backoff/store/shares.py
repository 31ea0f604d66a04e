"""The tenants and the limits of a queue: whose tasks are taken next, and how many may start."""

from collections.abc import AsyncIterator
from typing import Any

from maas_backoff.domain.shares import LimitList, LimitState, LimitStats, TenantStats
from maas_backoff.domain.waiting import at
from maas_backoff.store import scripts
from maas_backoff.store.codec import now_and_ahead
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.replies import LimitRow, SharesReply, TenantRow
from maas_backoff.store.writer import answer_ms, new_call

TENANTS_AT_ONCE = 500
LIMITS_AT_ONCE = 100
MOST_NAMES = 1000
"""Shut names of classes of limits, such as `user:*`, that `limits` returns."""
OWNERS_AT_ONCE = 50
LANES_AT_ONCE = 1000
"""Entries of one call of shares.lua: less than 1 ms of the server's time."""

MOST_SHUT = 100
"""Limits among which those are looked for that are shut, to explain why tasks wait."""


class Shares:
    """The tenants and the limits of one queue."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def set_tenant(
        self, tenant: str, *, weight: float | None = None, paused: bool | None = None, by: str = ""
    ) -> bool:
        """Set the weight of a tenant, or pause or resume its tasks. Return False if nothing changed."""
        queue = self._queue
        on = "" if paused is None else int(paused)
        args = [
            queue.clock,
            queue.keys.prefix,
            tenant,
            "" if weight is None else f"{weight:.12g}",
            on,
            answer_ms(queue),
            by,
        ]
        return bool(await queue.run(scripts.TENANT, args, call=queue.keys.call(new_call())))

    async def set_limit(self, name: str, setting: str) -> bool:
        """Set a limit, as `Limit.setting` writes it; an empty `setting` removes it. Return False if nothing changed."""
        queue = self._queue
        args = [queue.clock, queue.keys.prefix, name, setting, answer_ms(queue)]
        return bool(await queue.run(scripts.LIMIT, args, call=queue.keys.call(new_call())))

    async def tenants(self) -> list[TenantStats]:
        """Return the tenants that have waiting tasks, a weight or a pause; those with most waiting tasks first."""
        found = dict[str, TenantStats]()
        for part in ("waiting", "tenants"):
            async for page in self._pages(part, TENANTS_AT_ONCE):
                _, ahead_ms = now_and_ahead(page.now)
                found |= {one.name: one for one in (_tenant(row, ahead_ms) for row in page.rows)}
        return sorted(found.values(), key=lambda one: (-one.waiting, one.name))

    async def limits(self, most: int = MOST_NAMES) -> LimitList:
        """Return the limits that are set, and up to `most` further names that are shut or closed."""
        found = dict[str, LimitStats]()
        async for page in self._pages("limits", LIMITS_AT_ONCE):
            found |= {one.name: one for one in await self._limits(page)}
        names, more = dict[str, LimitStats](), 0
        for part in ("opens", "closed"):
            cursor, looked = "0", 0
            while cursor:
                page = await self._page(part, cursor, LIMITS_AT_ONCE)
                cursor, looked = _next(page), looked + len(page.rows)
                names |= {one.name: one for one in await self._limits(page) if one.shut and one.name not in found}
                if cursor and len(names) >= most:
                    more += max(0, page.size - looked)
                    break
        shut = sorted(names.values(), key=lambda one: (-one.waiting_tasks, one.name))
        return LimitList(
            [*sorted(found.values(), key=lambda one: one.name), *shut[:most]], more + max(0, len(shut) - most)
        )

    async def shut_limits(self) -> list[LimitStats]:
        """Return limits for which tasks wait, at most MOST_SHUT; those with most waiting tasks first."""
        page = await self._page("opens", "0", MOST_SHUT)
        shut = [one for one in await self._limits(page) if one.shut and one.waiting_tasks]
        return sorted(shut, key=lambda one: (-one.waiting_tasks, one.name))

    async def _limits(self, page: SharesReply) -> list[LimitStats]:
        now_ms, ahead_ms = now_and_ahead(page.now)
        found = list[LimitStats]()
        for *row, lanes, tasks in page.rows:
            state = limit_state(row)
            counts = (lanes, tasks) if lanes >= 0 else await self._count(state.name)
            found.append(state.stats(now_ms, ahead_ms, *counts))
        return found

    async def _count(self, limit: str) -> tuple[int, int]:
        """Return how many lanes wait for a limit, and how many tasks in them."""
        lanes = tasks = 0
        async for page in self._pages(f"shut:{limit}", OWNERS_AT_ONCE):
            for tenant, own_lanes, own_tasks in page.rows:
                lanes += own_lanes
                tasks += own_tasks if own_tasks >= 0 else await self._count_tasks(f"{limit}|{tenant.decode()}")
        return lanes, tasks

    async def _count_tasks(self, lanes: str) -> int:
        return sum([page.rows[0] async for page in self._pages(f"shut_lanes:{lanes}", LANES_AT_ONCE)])

    async def _pages(self, part: str, limit: int) -> AsyncIterator[SharesReply]:
        """Yield all pages of a part: each is a call, so that no call takes long."""
        cursor = "0"
        while cursor:
            page = await self._page(part, cursor, limit)
            yield page
            cursor = _next(page)

    async def _page(self, part: str, cursor: str, limit: int) -> SharesReply:
        queue = self._queue
        return await queue.run(scripts.SHARES, [queue.clock, queue.keys.prefix, part, cursor, limit])


def _next(page: SharesReply) -> str:
    """Return the cursor of the next page; empty: this is the last one."""
    cursor = page.cursor.decode()
    return "" if cursor == "0" else cursor


def limit_state(row: list[Any]) -> LimitState:
    """Return the state of a limit in a reply."""
    return LimitState.of(**{name: text.decode() for name, text in LimitRow._make(row)._asdict().items()})


def _tenant(row: list[Any], ahead_ms: float) -> TenantStats:
    name, waiting, settings, by = (text.decode() for text in TenantRow._make(row))
    weight, _, since = settings.partition(" ")
    paused_since = at(float(since) - ahead_ms) if since else None
    return TenantStats(name, int(waiting or 0), float(weight or 1), paused_since, by)
