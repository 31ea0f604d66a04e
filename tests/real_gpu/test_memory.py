"""Memory of a real device: reserved, used, kept by a warm child, given back, run out of, and taken by others."""

import os
import signal
import time
from collections.abc import Callable
from statistics import median

import anyio
import pytest
from real_gpu.rig import CONTEXT, GIB, Rig, seconds_until

from maas_backoff import TaskStatus

pytestmark = [pytest.mark.anyio, pytest.mark.alone, pytest.mark.long, pytest.mark.blocks, pytest.mark.timeout(60)]

Tell = Callable[[str], None]


async def test_a_reservation_counts_less_as_its_task_allocates(rig: Rig, tell: Tell) -> None:
    """20 GiB stay reserved while the unused part shrinks; the idle child reserves what it uses, and no more."""
    await rig.start()
    steps = [["allocate", 2 * GIB], ["sleep", 1]] * 4
    task = await rig.create(*steps, keeps=True, min_gpu_memory_gb=20)
    child = await rig.begun(task)
    reserved, unseen = set[int](), list[int]()
    while (await rig.status(task))[0] == "processing":
        used = rig.watch.used_by(child)
        for one in await rig.reservations(child):
            if one.state == "running":
                reserved.add(one.mib)
                unseen.append(one.mib - used)
        await anyio.sleep(0.2)

    async def is_small() -> bool:
        return [one.mib for one in await rig.reservations(child) if one.state == "idle"] == [rig.watch.used_by(child)]

    took = await seconds_until(is_small, "the idle child has reserved what it uses", 5)
    kept = rig.watch.used_by(child)
    steps_seen = list(dict.fromkeys(unseen))
    tell(f"reserved {reserved}, not used yet {steps_seen}; idle: {kept} MiB, {took:.1f} s after the task")
    assert reserved == {20 * GIB} and unseen == sorted(unseen, reverse=True) and len(steps_seen) >= 4
    assert unseen[-1] <= 12 * GIB and 8 * GIB <= kept <= 8 * GIB + CONTEXT


async def test_a_warm_child_takes_the_next_tasks(rig: Rig, tell: Tell) -> None:
    await rig.start()
    pids, delays = set[int](), list[float]()
    for _ in range(6):
        created = time.time()
        result = (await rig.ended(await rig.create())).result
        pids.add(result["pid"])
        delays.append((result["begun"] - created) * 1000)
    tell(f"{len(pids)} process; create_task to handler: {delays[0]:.1f} ms, then {median(delays[1:]):.1f}")
    assert len(pids) == len(rig.notes("loaded")) == 1 and median(delays[1:]) < 100


async def test_the_memory_of_a_killed_child_is_back_before_others_are_given_it(rig: Rig, tell: Tell) -> None:
    await rig.start(slots=2)
    size = min(20 * GIB, rig.watch.sample().free // 2)
    victim = await rig.create(["allocate", size - 2 * GIB], ["sleep", 60], min_gpu_memory_gb=size / GIB)
    await rig.did(victim, "allocate")
    child = await rig.begun(victim)
    waits = await rig.create(min_gpu_memory_gb=(rig.watch.sample().free + GIB) / GIB)
    await anyio.sleep(1.5)
    assert (await rig.status(waits))[0] == "pending"
    os.kill(child, signal.SIGKILL)
    killed = time.monotonic()

    async def is_back() -> bool:
        reserved = await rig.reservations(child)  # first: the reservation ends once NVML shows the memory free
        used = rig.watch.used_by(child)
        assert reserved or not used, f"{used} MiB are in use, and no longer reserved"
        return not used

    back = await seconds_until(is_back, "NVML shows the memory free", 10)
    await eventually_released(rig, child, 3)
    released = time.monotonic() - killed
    task = await rig.ended(waits, 30)
    tell(f"{size} MiB free {back:.2f} s after SIGKILL, released after {released:.2f}; {task.status.value}")
    assert back < 5 and released < back + 1.5 and task.status is TaskStatus.COMPLETED


async def eventually_released(rig: Rig, child: int, seconds: float) -> None:
    async def released() -> bool:
        return not await rig.reservations(child)

    await seconds_until(released, "nothing is reserved for the child", seconds)


@pytest.mark.parametrize("slots", [1, 2])
async def test_out_of_memory_comes_back_for_more_in_a_new_process(rig: Rig, tell: Tell, slots: int) -> None:
    """With no retry used; with two slots beside an idle child."""
    await rig.start(slots=slots)
    for name in [await rig.create(["allocate", GIB], ["sleep", 3]) for _ in range(slots)]:
        await rig.ended(name)
    task_id = await rig.create("exhaust", ["allocate", 512], min_gpu_memory_gb=4)
    task = await rig.ended(task_id)
    attempts = rig.attempts(task_id)
    tell(f"{task.status.value}; attempts (process, GiB): {attempts}; {[str(one.error)[:90] for one in task.attempts]}")
    assert (task.status, task.oom_count, task.retry_count) == (TaskStatus.COMPLETED, 1, 0)
    assert len({pid for pid, _ in attempts}) == 2 and [gib for _, gib in attempts] == [4, 6]


@pytest.mark.timeout(100)
async def test_tasks_are_packed_beside_another_process(rig: Rig, tell: Tell) -> None:
    """Five fit; each takes seven tenths of its part at once and the rest later; none runs out of memory."""
    held = rig.watch.sample().free // 5
    with rig.other(held):
        await rig.start(workers=2, slots=6)
        size = int(rig.watch.sample().free / 5.2)
        steps = ["allocate", int(size * 0.7) - GIB], ["sleep", 0.4], ["allocate", size // 7], ["sleep", 3]
        ids = [await rig.create(*steps, min_gpu_memory_gb=size / GIB) for _ in range(12)]
        most, least = 0, rig.watch.sample().free
        while (left := await rig.producer.get_queue_stats()).pending_count + left.processing_count:
            most, least = max(most, left.processing_count), min(least, rig.watch.sample().free)
            await anyio.sleep(0.05)
        tasks = [await rig.ended(name) for name in ids]
    failed = [str(one.error) for task in tasks for one in task.attempts]
    tell(f"12 tasks of {size} MiB beside {held}: {len(failed)} failed attempts, {most} at once, at least {least} free")
    assert all(task.status is TaskStatus.COMPLETED for task in tasks) and not failed and most in {4, 5}


async def test_a_task_waits_for_room_that_another_process_takes(rig: Rig, tell: Tell) -> None:
    """The reason names the free memory; the task starts in the warm child soon after both processes end."""
    await rig.start()
    with rig.other(rig.watch.sample().free - 10 * GIB):
        await anyio.sleep(1.5)  # a worker reads the device once a second
        task = await rig.create(min_gpu_memory_gb=12)
        await seconds_until(lambda: _reason(rig, task), "the reason is told", 5)
        first = await _reason(rig, task)
        with rig.other(6 * GIB):

            async def has_changed() -> bool:
                return await _reason(rig, task) not in {"", first}

            took = await seconds_until(has_changed, "the reason follows", 5)
            second = await _reason(rig, task)
    ended = time.monotonic()
    await rig.ended(task, 30)
    waited = time.monotonic() - ended
    tell(f"{first!r}, then, {took:.1f} s after another one: {second!r}; completed {waited:.1f} s after the end of both")
    assert waited < 4


async def _reason(rig: Rig, task: str) -> str:
    status, reason = await rig.status(task)
    assert status == "pending"
    return reason if "best device has" in reason else ""


async def test_a_reservation_that_another_process_uses_is_not_given_to_the_next_task(rig: Rig, tell: Tell) -> None:
    """A task reserves nearly all and uses nothing; another process takes the memory; then a second task may start."""
    await rig.start()
    first = await rig.create(["sleep", 5], min_gpu_memory_gb=rig.watch.sample().free // GIB - 8)
    await rig.begun(first)
    task = await rig.create(min_gpu_memory_gb=12)
    with rig.other(rig.watch.sample().free - 6 * GIB):
        await rig.ended(first)
        await anyio.sleep(2)
        tell(f"{await rig.status(task)} with {rig.watch.sample().free} MiB free; attempts {rig.attempts(task)}")
        assert await _reason(rig, task)
