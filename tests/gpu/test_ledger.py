"""The real scripts of a device's ledger beside a model of it, on a virtual clock, and their single promises.

`MAAS_BACKOFF_STEPS=10` makes the runs ten times as long. A failure prints the steps that lead to it.
"""

import asyncio
import os
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support import SERVERS, Server

from maas_backoff.store import server as servers
from maas_backoff.store.ledger import ONE_PROCESS, ONE_WORKER, SEEN_FOR, DeviceLedger, Ledgers, Reservation, holder

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
LEASE = 3.0
SETTLE = 2.0
TOTAL = 16
FACTOR = int(os.environ.get("MAAS_BACKOFF_STEPS", "1"))

ids = st.sampled_from(["one/1", "one/2", "two/1", "two/2"])
sizes = st.integers(0, TOTAL + 2)


@attrs.define
class Known:
    mib: int
    state: str
    expiry: float
    start_until: float
    used: int = 0


class Machine(RuleBasedStateMachine):
    """One device of 16 MiB, four ids of two workers; honest tasks, and another process."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.server.client.flushall()
        self.runner = asyncio.Runner()
        self.ledgers = _ledgers(self.server)
        self.model: dict[str, Known] = {}
        self.others = 0
        self.now = 0.0
        self.advance(0)

    def teardown(self) -> None:
        self.do(self.ledgers._server.aclose())
        self.runner.close()

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @property
    def used(self) -> dict[str, int]:
        return {_owner(name): known.used for name, known in self.model.items() if known.used}

    @property
    def free(self) -> int:
        return TOTAL - self.others - sum(self.used.values())

    def alive(self) -> dict[str, Known]:
        return {name: known for name, known in self.model.items() if known.expiry >= self.now}

    @rule(seconds=st.sampled_from([0, 0.1, SETTLE, LEASE / 2, LEASE + 0.1]))
    def advance(self, seconds: float) -> None:
        self.now += seconds * 1000
        self.ledgers.clock = f"{START + self.now:.0f}"
        # A process that has lost its reservation has died, with its memory.
        self.model = self.alive()

    @rule(name=ids, mib=sizes, limit=st.sampled_from([0, 0, 2]), start_grace=st.sampled_from([0, SETTLE]))
    def reserve(self, name: str, mib: int, limit: int, start_grace: float) -> None:
        others = {other: known for other, known in self.alive().items() if other != name}
        mine = self.model.get(name)
        unseen = sum(max(0, known.mib - known.used) for known in others.values())
        starting = any(
            self.now < known.start_until and (not known.mib or known.used < 0.5 * known.mib)
            for known in others.values()
        )
        running = sum(known.state == "running" for known in others.values())
        if limit and running >= limit:
            expected = "busy"
        elif start_grace and starting:
            expected = "starting"
        elif mib > self.free + (mine.used if mine else 0) - unseen and (mine is None or mib > mine.mib):
            expected = "room"
        else:
            expected = "ok"
        wanted = _reservation(name, mib)
        answer = self.do(
            self.ledgers.reserve(
                "GPU-m", wanted, free=self.free, used=self.used, limit=limit, start_grace=start_grace, holder="q 1:0"
            )
        )
        assert answer == expected
        if answer == "ok":
            until = self.now + start_grace * 1000 if start_grace else 0
            used = min(mine.used, mib) if mine else 0
            self.model[name] = Known(mib, "running", self.now + LEASE * 1000, until, used)

    @rule(name=ids, share=st.sampled_from([0, 0.5, 1]))
    def allocate(self, name: str, share: float) -> None:
        """A task uses a part of what it was promised."""
        if name in self.model:
            self.model[name].used = int(self.model[name].mib * share)

    @rule(mib=sizes)
    def let_another_process_have(self, mib: int) -> None:
        """It takes no more than is free and not promised: then nothing of ours is to blame for what happens."""
        unseen = sum(max(0, known.mib - known.used) for known in self.alive().values())
        self.others = max(0, min(mib, TOTAL - sum(self.used.values()) - unseen))

    @rule(name=ids, state=st.sampled_from(["running", "idle", "ending"]), again=st.booleans())
    def keep(self, name: str, state: str, again: bool) -> None:
        known = self.model.get(name)
        wanted = _reservation(name, known.mib if known else 1)._replace(state=state)
        if known is None and again:
            return  # only who uses the memory says so again
        self.do(self.ledgers.keep("GPU-m", [wanted], again=again))
        if known is not None:
            known.state, known.expiry = state, self.now + LEASE * 1000

    @rule(name=ids)
    def release(self, name: str) -> None:
        self.model.pop(name, None)
        self.do(self.ledgers.release("GPU-m", [name]))

    @invariant()
    def the_ledger_is_as_the_model_has_it(self) -> None:
        ledger = self.do(self.ledgers.read("GPU-m"))
        found = {one.id: (one.mib, one.state) for one in ledger.reservations.values()}
        assert found == {name: (known.mib, known.state) for name, known in self.alive().items()}

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        """Check the room for all promised memory, the use beyond it, and the memory of other processes."""
        promised = sum(max(known.mib, known.used) for known in self.alive().values())
        assert promised + self.others <= TOTAL


def _ledgers(server: Server, queue: str = "q", lease: float = LEASE) -> Ledgers:
    return Ledgers(server.storage, servers.Server(server.storage, "maas:gpu:{x}"), lease=lease, queue=queue)


def _owner(name: str) -> str:
    return f"ns:{name}"


def _reservation(name: str, mib: int) -> Reservation:
    return Reservation(name, mib, "running", _owner(name), name.split("/", maxsplit=1)[0], "q", "a task")


@pytest.mark.long
@pytest.mark.blocks
@pytest.mark.parametrize("name", SERVERS)
def test_the_scripts_agree_with_the_model(name: str, servers: Any) -> None:
    Machine.server = servers(name)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25 * FACTOR,
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    Machine.server.client.flushall()


async def test_fifty_at_once_never_promise_more_than_there_is(any_server: Server) -> None:
    """Fifty workers with the same sample want 1 MiB each of 16: sixteen get it."""
    ledgers = _ledgers(any_server)
    answers: list[str] = []
    async with asyncio.TaskGroup() as group:

        async def one(number: int) -> None:
            wanted = _reservation(f"w/{number}", 1)
            answers.append(
                await ledgers.reserve("GPU-f", wanted, free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0")
            )

        for number in range(50):
            group.create_task(one(number))
    assert sorted(answers) == ["ok"] * TOTAL + ["room"] * (50 - TOTAL)
    await ledgers._server.aclose()


async def test_a_hold_keeps_all_others_out_until_its_holder_starts_or_it_ends(server: Server) -> None:
    ledgers = _ledgers(server)

    async def try_for(holder: str) -> str:
        return await ledgers.reserve(
            "GPU-h", _reservation(holder[0], 1), free=TOTAL, used={}, limit=0, start_grace=0, holder=holder
        )

    ledgers.clock = f"{START}"
    assert await ledgers.hold("GPU-h", "a 14:0", 14, 5)
    assert not await ledgers.hold("GPU-h", "b 14:0", 14, 5), "it is somebody else's"
    assert await ledgers.hold("GPU-h", "a 14:0", 14, 5), "it is said again"
    assert (await try_for("b 1:0"), await try_for("a 14:0")) == ("held", "ok")
    assert await try_for("b 1:0") == "ok", "the holder has got its place"
    assert await ledgers.hold("GPU-h", "a 14:0", 14, 5)
    ledgers.clock = f"{START + 5001}"
    assert await try_for("c 1:0") == "ok", "nobody says it any more"
    await ledgers._server.aclose()


@pytest.mark.parametrize(
    ("limit", "same_worker", "other_worker"), [(ONE_PROCESS, "busy", "busy"), (ONE_WORKER, "ok", "busy")]
)
async def test_a_device_that_takes_one_process_at_a_time(
    server: Server, limit: int, same_worker: str, other_worker: str
) -> None:
    """A child, or one worker for all of its tasks. A reservation is made larger as before."""
    ledgers = _ledgers(server)

    async def reserve(name: str, mib: int = 1) -> str:
        return await ledgers.reserve(
            "GPU-e", _reservation(name, mib), free=TOTAL, used={}, limit=limit, start_grace=0, holder="q 1:0"
        )

    assert await reserve("w/1") == "ok"
    assert await reserve("w/1", 2) == "ok"
    assert (await reserve("w/2"), await reserve("v/1")) == (same_worker, other_worker)
    await ledgers.release("GPU-e", ["w/1", "w/2"])
    assert await reserve("v/1") == "ok"
    await ledgers._server.aclose()


async def test_three_different_tasks_make_a_quarantine_and_one_success_ends_it(server: Server) -> None:
    """The same task three times does not: it may be at fault itself. After the quarantine one task is let in."""
    ledgers = _ledgers(server)
    ledgers.clock = f"{START}"

    async def fail(task: str) -> bool:
        return await ledgers.doubt("GPU-q", task, "CUDA error", limit=3, seconds=60)

    async def try_it(name: str) -> str:
        return await ledgers.reserve(
            "GPU-q", _reservation(name, 1), free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0"
        )

    assert [await fail(task) for task in ("a", "a", "a", "b b", "b b")] == [False] * 5
    assert await fail("c")
    found = await ledgers.read("GPU-q")
    assert (found.quarantine, found.quarantine_for, found.doubted) == ("CUDA error", 60, True)
    assert await try_it("w/1") == "shut"
    ledgers.clock = f"{START + 60_001}"
    assert [await try_it("w/1"), await try_it("w/2")] == ["ok", "shut"]
    assert await try_it("w/1") == "ok", "a call whose reply was lost is repeated"
    assert await fail("d"), "it is broken still, whoever says so"
    await ledgers.release("GPU-q", ["w/1"])
    assert await try_it("w/3") == "shut"
    ledgers.clock = f"{START + 120_002}"
    assert await try_it("w/3") == "ok"
    await ledgers.trust("GPU-q")
    found = await ledgers.read("GPU-q")
    assert (found.quarantine, found.doubted) == ("", False)
    assert await try_it("w/4") == "ok"
    await ledgers._server.aclose()


async def test_a_device_that_stays_broken_keeps_few_names(server: Server) -> None:
    """Each trial that fails adds one; as many are kept as make a quarantine, the last ones."""
    ledgers = _ledgers(server)
    for number in range(10):
        await ledgers.doubt("GPU-b", f"task {number}", "CUDA error", limit=3, seconds=1)
    assert server.client.hget("maas:gpu:{GPU-b}", "faults:q") == b"task 7\ntask 8\ntask 9\n"
    await ledgers._server.aclose()


async def test_what_one_queue_s_tasks_say_of_a_device_is_that_queue_s_own(server: Server) -> None:
    """A bug of its handler takes the device from no other queue. What the device says itself counts for all."""
    mine, others, anybody = _ledgers(server), _ledgers(server, "other"), _ledgers(server, "")

    async def take(ledgers: Ledgers, name: str) -> str:
        queue = ledgers._queue
        wanted = _reservation(name, 1)._replace(queue=queue)
        return await ledgers.reserve(
            "GPU-o", wanted, free=TOTAL, used={}, limit=0, start_grace=0, holder=f"{queue} 1:0"
        )

    assert await mine.doubt("GPU-o", "a task", "CUDA error", limit=1, seconds=60)
    assert (await take(mine, "w/1"), await take(others, "v/1")) == ("shut", "ok")
    assert [(await one.read("GPU-o")).quarantine for one in (mine, others, anybody)] == [
        "CUDA error",
        "",
        "for queue q: CUDA error",
    ]
    await others.trust("GPU-o")
    assert (await mine.read("GPU-o")).quarantine
    assert await others.doubt("GPU-o", "", "Xid 79", limit=1, seconds=60)
    assert (await take(others, "v/2"), (await mine.read("GPU-o")).quarantine) == ("shut", "Xid 79")
    for one in (mine, others, anybody):
        await one._server.aclose()


async def test_a_device_that_is_shut_for_two_reasons_opens_when_both_are_over(server: Server) -> None:
    """The ledger tells a worker so before the script refuses its task: the task is tried on another device."""
    ledgers = _ledgers(server)
    ledgers.clock = f"{START}"
    assert await ledgers.doubt("GPU-2", "", "Xid 79", limit=1, seconds=10)
    assert await ledgers.doubt("GPU-2", "a task", "CUDA error", limit=1, seconds=60)

    async def look_and_take() -> tuple[str, float, str]:
        found, wanted = await ledgers.read("GPU-2"), _reservation("w/1", 1)
        taken = await ledgers.reserve("GPU-2", wanted, free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0")
        return found.quarantine, found.quarantine_for, taken

    assert await look_and_take() == ("Xid 79", 60, "shut")
    ledgers.clock = f"{START + 11_000}"
    assert await look_and_take() == ("Xid 79", 49, "shut")
    ledgers.clock = f"{START + 60_001}"
    assert await look_and_take() == ("Xid 79", 0, "ok")
    assert (await ledgers.read("GPU-2")).tried
    await ledgers._server.aclose()


async def test_a_warm_child_keeps_what_it_uses_if_others_were_promised_more_than_there_is(server: Server) -> None:
    """Its memory does not become free by a refusal. A new task finds no room."""
    ledgers = _ledgers(server)

    async def reserve(name: str, mib: int, used: int, free: int) -> str:
        return await ledgers.reserve(
            "GPU-k",
            _reservation(name, mib),
            free=free,
            used={_owner("w/1"): used},
            limit=0,
            start_grace=0,
            holder="q 1:0",
        )

    assert await reserve("w/1", 4, 0, TOTAL) == "ok"
    assert await reserve("v/1", 8, 4, TOTAL - 4) == "ok"
    # Another program takes 7, and the child uses 2 more than it was promised.
    assert [await reserve("w/1", mib, 6, 3) for mib in (7, 6)] == ["room", "ok"]
    assert await reserve("w/2", 0, 6, 3) == "room"
    await ledgers._server.aclose()


async def test_a_success_of_what_began_before_proves_nothing_and_a_lost_answer_shortens_nothing(server: Server) -> None:
    """Only when the quarantine is over may a task open the device again."""
    ledgers = _ledgers(server)
    ledgers.clock = f"{START}"
    assert await ledgers.doubt("GPU-s", "", "Xid 79", limit=1, seconds=300)
    await ledgers.trust("GPU-s")
    assert await ledgers.doubt("GPU-s", "", "GPU is lost", limit=1, seconds=0)
    found = await ledgers.read("GPU-s")
    assert (found.quarantine, found.quarantine_for) == ("GPU is lost", 300)
    await ledgers._server.aclose()


async def test_what_runs_already_does_not_keep_a_device_from_being_tried(server: Server) -> None:
    """A moment without an answer costs no more than that: one task tries it beside those that run on."""
    ledgers = _ledgers(server)
    ledgers.clock = f"{START}"

    async def take(name: str) -> str:
        return await ledgers.reserve(
            "GPU-t", _reservation(name, 1), free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0"
        )

    assert await take("w/1") == "ok"
    assert await ledgers.doubt("GPU-t", "", "Timeout", limit=1, seconds=0)
    ledgers.clock = f"{START + 1}"
    assert [await take("w/2"), await take("w/3")] == ["ok", "shut"]
    assert (await ledgers.read("GPU-t")).tried
    await ledgers.release("GPU-t", ["w/2"])
    assert await take("w/3") == "ok"
    await ledgers._server.aclose()


async def test_what_a_worker_tells_of_its_child_is_kept_for_a_moment(server: Server) -> None:
    """It is said with each change, kept by a renewal, and forgotten when it is old, or with the reservation."""
    ledgers = _ledgers(server, lease=60)
    ledgers.clock = f"{START}"
    child = _reservation("w/1", 10)._replace(seen=4)

    async def told() -> int:
        (one,) = (await ledgers.read("GPU-c")).reservations.values()
        return one.seen

    assert await ledgers.reserve("GPU-c", child, free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0") == "ok"
    assert await told() == 0
    await ledgers.keep("GPU-c", [child])
    assert await told() == 4
    assert await ledgers.renew("GPU-c", [child._replace(seen=0)], await ledgers._server.connect()) == []
    assert await told() == 4
    await ledgers.keep("GPU-c", [child._replace(seen=0)])
    assert await told() == 0
    await ledgers.keep("GPU-c", [child])
    ledgers.clock = f"{START + SEEN_FOR * 1000 + 1:.0f}"
    assert await told() == 0
    await ledgers.keep("GPU-c", [child])
    await ledgers.release("GPU-c", ["w/1"])
    assert set(server.client.hkeys("maas:gpu:{GPU-c}")) == {b"clock"}
    await ledgers._server.aclose()


async def test_a_full_server_goes_on_keeping_what_is_reserved(any_server: Server) -> None:
    """Neither runs a reservation out then, nor is its place given away: all that runs is written down."""
    ledgers = _ledgers(any_server)
    ledgers.clock = f"{START}"
    wanted = _reservation("w/1", 10)

    async def other() -> str:
        return await ledgers.reserve(
            "GPU-n", _reservation("w/2", 10), free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0"
        )

    assert await ledgers.reserve("GPU-n", wanted, free=TOTAL, used={}, limit=0, start_grace=0, holder="q 1:0") == "ok"
    await ledgers.doubt("GPU-n", "", "warm up", limit=1, seconds=0)
    await ledgers.trust("GPU-n")
    client = await ledgers._server.connect()
    any_server.client.config_set("maxmemory", "1mb")
    try:
        for beat in range(1, 4):
            ledgers.clock = f"{START + beat * 2000}"
            assert await ledgers.renew("GPU-n", [wanted], client) == []
            assert await other() == "room"
        await ledgers.keep("GPU-n", [wanted])
        assert await ledgers.hold("GPU-n", "q 10:0", 10, 5)
        assert await ledgers.doubt("GPU-n", "", "Xid 79", limit=1, seconds=5)
    finally:
        any_server.client.config_set("maxmemory", 0)
    await ledgers._server.aclose()


def test_a_ledger_of_nothing() -> None:
    assert DeviceLedger.of(START, []) == DeviceLedger()


@pytest.mark.parametrize(
    ("held_for", "words"),
    [
        ("images 14336:0", "tasks of images that need 14 GiB free"),
        ("images 1536:80", "tasks of images that need 1.5 GiB free and utilisation below 80 %"),
        ("images render/14336:0", "tasks of images that need 14 GiB free"),
        ("images render/~14336:0", "tasks of images that need 14 GiB free"),
        ("by hand", "by hand"),
    ],
)
def test_who_a_device_is_held_for_is_said_in_words(held_for: str, words: str) -> None:
    assert holder(held_for) == words
