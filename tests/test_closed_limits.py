"""A handler that meets the limit of an upstream closes it for all workers, and reports what its attempt has used."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
from support import Server, eventually

from maas_backoff import RateLimited, Snooze, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec
from maas_backoff.errors import InvalidValueError

pytestmark = pytest.mark.anyio

MODES = ("coroutine", "thread", "process")
Handler = Callable[[TaskEntity], Any]


@asynccontextmanager
async def workers(config: TaskBackoffConfig, handler: Handler, number: int = 2) -> AsyncIterator[TaskBackoffScheduler]:
    """Run workers of one queue, and give the first one."""
    async with AsyncExitStack() as stack:
        schedulers = [TaskBackoffScheduler(config.copy()) for _ in range(number)]
        for scheduler in schedulers:
            scheduler.set_custom_task_handler(handler)
            await stack.enter_async_context(scheduler)
        yield schedulers[0]


@attrs.define
class Upstream:
    """Answers some calls in each second, and refuses the others as a service does, with the time to wait."""

    most: int
    calls: int = 0
    _began: float = 0
    _answered: int = 0

    async def call(self) -> dict[str, str] | None:
        """Return None, or the headers of an answer 429."""
        self.calls += 1
        await asyncio.sleep(0.01)
        now = asyncio.get_running_loop().time()
        if now - self._began >= 1:
            self._began, self._answered = now, 0
        self._answered += 1
        return {"Retry-After": "1"} if self._answered > self.most else None


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("rate", [(5, "1s"), None], ids=["known", "unknown"])
async def test_two_workers_share_an_upstream_of_five_calls_a_second(config: TaskBackoffConfig, rate: Any) -> None:
    """All tasks complete. If the queue knows the rate, hardly any call is refused; else RateLimited does the work."""
    upstream = Upstream(5)

    async def handler(task: TaskEntity) -> None:
        refused = await upstream.call()
        if refused is not None:
            raise RateLimited.from_headers(refused)

    async with workers(config, handler) as scheduler:
        if rate is not None:
            await scheduler.set_limit("upstream", rate=rate)
        ids = await scheduler.create_tasks([TaskSpec({}, limits={"upstream": 1}) for _ in range(60)])
        with anyio.fail_after(90):
            tasks = [await scheduler.wait_task(task_id) for task_id in ids]
    assert Counter(task.status for task in tasks) == {"completed": 60}
    assert {task.retry_count for task in tasks} == {0}
    assert upstream.calls == 60 + sum(task.snooze_count for task in tasks)
    # Without a rate, each second may end with a few calls that are refused.
    assert upstream.calls <= (75 if rate is not None else 150)


async def closed(server: Server, limit: str = "upstream") -> tuple[float, int]:
    """Wait until a limit is closed. Return until when, in ms by the server's clock, and the most tasks after it."""
    await eventually(lambda: server.client.hexists("maas:{test}:closed", limit), f"{limit} is closed")
    until_ms, trial, *_ = server.client.hget("maas:{test}:closed", limit).split()  # type: ignore[union-attr] # not async
    return float(until_ms), int(trial)


def key(name: str) -> str:
    return f"maas:{{test}}:{name}"


async def test_a_closed_limit_holds_for_all_workers_and_opens_for_one_task_at_first(
    server: Server, config: TaskBackoffConfig
) -> None:
    """Each task that completes lets one more run at once."""
    running, completed, starts, others = set[str](), 0, list[TaskEntity](), list[str]()
    too_many, may_end = list[str](), asyncio.Event()

    async def handler(task: TaskEntity) -> None:
        nonlocal completed
        if task.task_id == "refused" and task.attempt == 1:
            raise RateLimited(1, limit="upstream")
        if not task.limits:
            others.append(task.task_id)
            return
        too_many.extend([task.task_id] if len(running) > completed else [])
        running.add(task.task_id)
        starts.append(task)
        await may_end.wait()
        await asyncio.sleep(0)
        running.discard(task.task_id)
        completed += 1

    async with workers(config, handler) as scheduler:
        await scheduler.create_task({}, "refused", limits={"upstream": 1})
        until_ms, trial = await closed(server)
        assert trial == 1
        ids = [await scheduler.create_task({}, limits={"upstream": 1}) for _ in range(8)]
        await eventually(lambda: starts, "the limit opens")
        # Both workers have claimed again and again by now: all other tasks run, and only one of the limit.
        for _ in range(10):
            await scheduler.wait_task(await scheduler.create_task({}), 20)
        assert len(starts) == len(running) == 1 and len(others) == 10
        may_end.set()
        for task_id in ("refused", *ids):
            assert (await scheduler.wait_task(task_id, 30)).status == "completed"
    assert all(task.started_at is not None and task.started_at.timestamp() * 1000 >= until_ms for task in starts)
    assert {task.task_id for task in starts} == {"refused", *ids} and not too_many
    assert server.client.hgetall(key("use")) == {}


def handler_of(mode: str) -> Handler:
    import handlers_for_children

    return handlers_for_children.limited_in_a_coroutine if mode == "coroutine" else handlers_for_children.limited


@pytest.mark.parametrize("mode", MODES)
async def test_limits_are_closed_from_wherever_a_handler_runs(
    server: Server, config: TaskBackoffConfig, mode: str
) -> None:
    """All limits that the task names, or the one that is given, for up to a tenth longer than was asked for."""
    if mode == "process":
        config.threadpool.proc_mode = "process"
    async with workers(config, handler_of(mode), 1) as scheduler:
        await scheduler.create_task({"after": 600}, "a", limits={"one": 1, "two": 2})
        await scheduler.create_task({"after": 300, "limit": "other"}, "b", limits={"three": 1})
        await scheduler.create_task({"after": 300, "limit": "last"}, "c")
        await scheduler.create_task({"after": 300}, "d")
        until = {name: (await closed(server, name))[0] for name in ("one", "two", "other", "last")}
        await eventually(lambda: server.client.zcard(key("scheduled")) == 4, "all tasks come back")
        tasks = {task_id: await scheduler.get_task(task_id) for task_id in "abcd"}
    for task_id, names in {"a": ["one", "two"], "b": ["other"], "c": ["last"], "d": []}.items():
        task = tasks[task_id]
        assert task is not None and (task.retry_count, task.snooze_count, task.error) == (0, 1, None)
        assert task.next_execute_time is not None
        due_ms, after_ms = task.next_execute_time.timestamp() * 1000, task.task_params["after"] * 1000
        assert all(due_ms - 1 <= until[name] <= due_ms + after_ms / 10 + 1 for name in names)
    assert set(server.client.hkeys(key("closed"))) == {name.encode() for name in until}


async def test_a_task_that_has_snoozed_too_often_closes_its_limit_all_the_same(
    server: Server, config: TaskBackoffConfig
) -> None:
    async def handler(task: TaskEntity) -> None:
        raise RateLimited(0 if task.snooze_count == 0 else 600)

    async with workers(config, handler, 1) as scheduler:
        task_id = await scheduler.create_task({}, max_snoozes=1, limits={"upstream": 1})
        task = await scheduler.wait_task(task_id, 20)
        assert task.error is not None and task.error.type == "snoozed_too_often"
        until_ms, _ = await closed(server)
    assert task.finished_at is not None and until_ms >= task.finished_at.timestamp() * 1000 + 600_000


async def test_a_task_may_close_a_limit_before_any_task_names_it(server: Server, config: TaskBackoffConfig) -> None:
    """The limit stays closed for tasks that are created later, also without a setting; `remove_limit` opens it."""

    async def handler(task: TaskEntity) -> None:
        if task.task_id == "first" and task.attempt == 1:
            raise RateLimited(600, limit="upstream")

    async with workers(config, handler, 1) as scheduler:
        await scheduler.create_task({}, "first")
        until_ms, _ = await closed(server)
        later = await scheduler.create_task({}, limits={"upstream": 1})
        await eventually(lambda: server.client.zcard(key("shut:upstream")), "it waits for the limit")
        assert server.client.zscore(key("opens"), "upstream") == until_ms
        assert not await scheduler.remove_limit("upstream")
        assert (await scheduler.wait_task(later, 20)).status == "completed"


async def test_a_snooze_closes_nothing(server: Server, config: TaskBackoffConfig) -> None:
    async def handler(task: TaskEntity) -> None:
        raise Snooze(600)

    async with workers(config, handler, 1) as scheduler:
        await scheduler.create_task({}, limits={"upstream": 1})
        await eventually(lambda: server.client.zcard(key("scheduled")), "it has snoozed")
    assert not server.client.exists(key("closed"))


# The use of an attempt. A rate of 1000 units an hour: 980 in that time, and 20 at once.
TOKENS, UNIT_MS = (1000, "1h"), 3_600_000 / 980


def arrival(server: Server) -> float:
    """Return the moment in ms at which the limit would be unused again."""
    found = server.client.zscore(key("arrivals"), "u openai")
    assert isinstance(found, float)
    return found


def begun_ms(task: TaskEntity) -> float:
    assert task.started_at is not None
    return task.started_at.timestamp() * 1000


def used_in(mode: str) -> Handler:
    import handlers_for_children

    return handlers_for_children.uses_in_a_coroutine if mode == "coroutine" else handlers_for_children.uses


@pytest.mark.parametrize("mode", MODES)
async def test_an_attempt_is_charged_what_it_has_used(server: Server, config: TaskBackoffConfig, mode: str) -> None:
    """Its tenant and its limit get back what was charged too much: the next task starts, which it could not."""
    if mode == "process":
        config.threadpool.proc_mode = "process"
    async with workers(config, used_in(mode), 1) as scheduler:
        await scheduler.set_limit("openai", tokens=TOKENS)
        limits, reports = (
            {"openai": 100},
            [{"cost": 9}, {"cost": 3, "limits": {"openai": 7}}, {"limits": {"openai": 5}}],
        )
        first = await scheduler.create_task({"used": reports}, tenant="acme", cost=2, limits=limits)
        task = await scheduler.wait_task(first, 30)
        assert (task.cost, task.limits) == (2, {"openai": 100})
        assert server.client.zscore(key("virtual"), "acme") == 3_000_000
        assert arrival(server) == pytest.approx(begun_ms(task) + 5 * UNIT_MS, abs=2)
        second = await scheduler.create_task({"used": []}, tenant="acme", cost=2, limits=limits)
        again = await scheduler.wait_task(second, 30)
        assert arrival(server) == pytest.approx(begun_ms(task) + 105 * UNIT_MS, abs=2)
        assert again.result == [2, {"openai": 100}, "acme"]


async def test_an_attempt_that_has_used_more_lets_the_next_task_wait(server: Server, config: TaskBackoffConfig) -> None:
    async def handler(task: TaskEntity) -> None:
        task.used(limits={"openai": 500})

    async with workers(config, handler, 1) as scheduler:
        await scheduler.set_limit("openai", tokens=TOKENS)
        task = await scheduler.wait_task(await scheduler.create_task({}, limits={"openai": 1}), 20)
        next_one = await scheduler.create_task({}, limits={"openai": 1})
        await eventually(lambda: server.client.zcard(key("shut:openai")), "the next task waits for the limit")
        waiting = await scheduler.get_task(next_one)
        assert waiting is not None and waiting.status == "pending"
        assert arrival(server) == pytest.approx(begun_ms(task) + 500 * UNIT_MS, abs=2)
        # 20 units may be used at once.
        opens = server.client.zscore(key("opens"), "openai")
        assert opens == pytest.approx(arrival(server) - 20 * UNIT_MS, abs=2)
        await scheduler.remove_limit("openai")
        await scheduler.wait_task(next_one, 20)


async def test_units_that_are_given_back_after_their_time_open_the_limit_at_once(
    server: Server, config: TaskBackoffConfig
) -> None:
    """A task that runs for longer than it would block the limit with what it has used."""
    may_end = asyncio.Event()

    async def handler(task: TaskEntity) -> None:
        task.used(limits={"openai": 0})
        await may_end.wait()

    async with workers(config, handler, 1) as scheduler:
        await scheduler.set_limit("openai", tokens=TOKENS)
        first = await scheduler.create_task({}, limits={"openai": 100})
        second = await scheduler.create_task({}, limits={"openai": 100})
        await eventually(lambda: server.client.zcard(key("shut:openai")), "the second task waits for the limit")
        may_end.set()
        task, next_one = await scheduler.wait_task(first, 20), await scheduler.wait_task(second, 20)
    assert begun_ms(next_one) >= begun_ms(task)
    assert not server.client.exists(key("arrivals"))


async def keep_shares(scheduler: TaskBackoffScheduler) -> None:
    """Have the queue remember the shares of tenants: without a limit, it forgets them when no task is left."""
    await scheduler.set_limit("other", concurrency=1)


OUTCOMES = ["completes", "fails", "retries", "snoozes", "is cancelled", "times out"]


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_what_was_used_is_charged_whatever_the_outcome(
    server: Server, config: TaskBackoffConfig, outcome: str
) -> None:
    """Once for each attempt; a later attempt is charged again as at the creation."""
    begun = asyncio.Event()

    async def handler(task: TaskEntity) -> None:
        task.used(4)
        begun.set()
        match outcome:
            case "retries" if task.attempt == 1:
                raise ValueError(outcome)
            case "snoozes" if task.attempt == 1:
                raise Snooze(0)
            case "fails":
                raise ValueError(outcome)
            case "is cancelled" | "times out":
                await anyio.sleep_forever()
            case _:
                pass

    retries = 1 if outcome == "retries" else 0
    async with workers(config, handler, 1) as scheduler:
        await keep_shares(scheduler)
        options = {"exec_timeout": 0.1} if outcome == "times out" else {}
        task_id = await scheduler.create_task({}, tenant="acme", max_retry_count=retries, **options)  # type: ignore[arg-type] # options
        await begun.wait()
        if outcome == "is cancelled":
            await scheduler.cancel_task(task_id, running=True)
        task = await scheduler.wait_task(task_id, 20)
    assert task.status == {"is cancelled": "cancelled", "fails": "failed", "times out": "failed"}.get(
        outcome, "completed"
    )
    assert server.client.zscore(key("virtual"), "acme") == 4_000_000 * task.attempt


async def test_a_wrong_report_is_refused_and_charges_nothing(server: Server, config: TaskBackoffConfig) -> None:
    errors: list[str] = []

    async def handler(task: TaskEntity) -> None:
        wrong: list[Sequence[Any]] = [
            *[(-1,), ("1",), (True,), (float("nan"),), (float("inf"),), (1e10,)],
            *[(None, {"openai": -1}), (None, {"other": 1}), (None, {"openai": 2, "other": 1}), (None, ["openai"])],
        ]
        for arguments in wrong:
            try:
                task.used(*arguments)
            except InvalidValueError as error:
                errors.append(f"{error.option}: {error.expected}")

    async with workers(config, handler, 1) as scheduler:
        await keep_shares(scheduler)
        await scheduler.wait_task(await scheduler.create_task({}, tenant="acme", limits={"openai": 1}), 20)
    assert errors == [
        *["cost: a number from 0 to 1,000,000,000"] * 6,
        "limits['openai']: a number from 0 to 1,000,000,000",
        *["limits: limits that the task names (openai)"] * 2,
        "limits: a mapping of at most 4 names to units",
    ]
    assert server.client.zscore(key("virtual"), "acme") == 1_000_000


async def test_a_task_without_a_tenant_and_limits_reports_in_vain(server: Server, config: TaskBackoffConfig) -> None:
    """As does a task outside of its handler. Its cost and limits are those of its creation."""

    async def handler(task: TaskEntity) -> list[object]:
        task.used(5, {"openai": 3})
        return [task.cost, dict(task.limits), task.tenant]

    async with workers(config, handler, 1) as scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), 20)
        assert task.result == [1, {}, ""]
        lane = await scheduler.wait_task(await scheduler.create_task({}, limits={"openai": 7, "user:7": 1}), 20)
        lane.used(5, {"openai": 3})
        assert (lane.cost, lane.limits, lane.to_dict()["limits"]) == (1, {"openai": 7, "user:7": 1}, dict(lane.limits))
        page = await scheduler.list_tasks("completed")
        assert {one.task_id: one.limits for one in page.tasks} == {task.task_id: {}, lane.task_id: lane.limits}
        with pytest.raises(TypeError):
            lane.limits["openai"] = 1  # type: ignore[index] # read-only, since tasks share it
    assert not server.client.exists(key("virtual"), key("arrivals"))
