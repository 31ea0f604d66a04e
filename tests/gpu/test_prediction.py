"""The start that a worker predicts, beside the answer of the script that decides, for any ledger and GPU sample.

`gate/placement.py` and `store/lua/reserve.lua` contain the same rule. The script decides, and `plan` predicts.
Both look here at the same ledger and the same GPU sample, for one task on one device:

- If `plan` starts the task, the script answers "ok" for that place. The worker then tries no place in vain.
- If `plan` does not start the task, the script refuses each place. The worker then leaves no place unused.

The prediction is more careful than the script in five cases, each with its own test:

- Other programs took memory that was promised to a warm child. The script keeps the promise, `plan` wants the memory.
- The utilisation is not below the task's ceiling. The script is not told the utilisation.
- `tasks_per_gpu` tasks run on a device that takes one process at a time. The script is told the second fact only.
- A child of another worker is starting, and the worker's own `gpu_settle_time` is 0.
- An attempt has ended, and the ledger was not told yet.

The script is never more careful than the prediction.

`MAAS_BACKOFF_STEPS=10` makes the runs ten times as long. A failure prints the scene, and the line that repeats it.
"""

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import Server

from maas_backoff.config import GpuConfig
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.others import with_reported
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.placement import plan, room_of
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store import server as servers
from maas_backoff.store.keys import ledger as ledger_key
from maas_backoff.store.ledger import ONE_PROCESS, ONE_WORKER, DeviceLedger, Ledgers, Reservation

FACTOR = int(os.environ.get("MAAS_BACKOFF_STEPS", "1"))
ANSWERS = {"ok", "room", "busy", "starting", "held", "shut"}
UUID, KEY, QUEUE, WORKER = "GPU-p", ledger_key("GPU-p"), "q", "w"
NOW = 1_800_000_000_000
"""The time of the ledger, in ms."""
SETTLE = 5.0
CONTEXT = GateContext(GpuConfig(), worker=WORKER, queue=QUEUE, in_children=True, changed=asyncio.Event())


@attrs.frozen
class Entry:
    """A reservation in the stored ledger, and what its process uses; amounts are MiB, times ms from now."""

    id: str
    mib: int
    state: str
    owner: str
    expiry: int = 5000
    starts_for: int = -NOW
    used: int = 0
    told_for: int = 0

    @property
    def is_current_and_mine(self) -> bool:
        return self.expiry >= 0 and self.id.startswith(f"{WORKER}/")

    @property
    def is_elsewhere(self) -> bool:
        return self.owner.startswith("elsewhere:")

    def fields(self) -> dict[str, str]:
        """Return the stored fields, as `store/lua/_ledger.lua` describes them."""
        first = f"{NOW + self.expiry} {self.mib} {self.state} {NOW + self.starts_for}"
        found = {f"r:{self.id}": f"{first} {self.owner} {self.id.partition('/')[0]} {QUEUE} a task"}
        if self.is_elsewhere and self.used:
            found[f"u:{self.id}"] = f"{NOW + self.told_for} {self.used}"
        return found


@attrs.frozen
class Scene:
    """One task that waits, and all that decides about its start on one device."""

    entries: tuple[Entry, ...]
    marks: dict[str, str]
    """Fields of the stored ledger that are no reservations."""
    taken: str
    """The warm child with this id has the next task, which the ledger does not say yet."""
    free: int
    demand: Demand
    in_children: bool
    exclusive: bool
    tasks_per_gpu: int
    ahead: int
    """The ms by which the ledger's clock is ahead of the server's."""
    settle: float = SETTLE
    load: float | None = None
    late: bool = False
    """Whether the ledger still says that the idle children run."""

    @property
    def clock(self) -> str:
        return f"{NOW - self.ahead}"

    @property
    def holder(self) -> str:
        return f"{QUEUE} {self.demand.name}"

    @property
    def limit(self) -> int:
        """The gate's message to the script."""
        if self.exclusive:
            return ONE_PROCESS if self.in_children else ONE_WORKER
        return self.tasks_per_gpu

    def stored(self) -> dict[str, str]:
        fields = dict(self.marks)
        for one in self.entries:
            is_late = self.late and one.is_current_and_mine and one.state == "idle"
            fields |= (attrs.evolve(one, state="running") if is_late else one).fields()
        return fields

    def sample(self, ledger: DeviceLedger) -> GpuSample:
        """Return the GPU sample, with what workers of other containers tell of their children."""
        used = {one.owner: one.used for one in self.entries if one.owner != "-" and not one.is_elsewhere and one.used}
        found = GpuSample(
            UUID, 0, "Fake", PLENTY, self.free, 0, {"0:1": 2, **used}, self.load, exclusive=self.exclusive
        )
        return with_reported(found, ledger)

    def grants(self) -> list[Grant]:
        """Return what the worker itself holds: its reservations that the ledger has."""
        found = list[Grant]()
        for one in self.entries:
            if one.is_current_and_mine:
                state: Any = "running" if one.id == self.taken else one.state
                grant = Grant(one.id, CONTEXT, GpuSample(UUID, 0, "Fake", PLENTY, PLENTY, 0), 0, Demand(one.mib))
                grant.state, grant.child.owner = state, one.owner
                grant.child.evict = (lambda: None) if self.in_children else None
                found.append(grant)
        return found

    def places(self, grants: list[Grant]) -> list[Grant | None]:
        """Return where the task may start: in a process or thread of its own, or in a warm child."""
        return [None, *(grant for grant in grants if grant.state == "idle")]

    def starts(self, ledger: DeviceLedger, grants: list[Grant]) -> list[Grant | None]:
        """Return what is predicted: the place of the task, None for a process or thread of its own; or nothing."""
        made = plan(
            [Waiting(self.demand.name, self.demand, rank=0, age=0)],
            [self.sample(ledger)],
            {UUID: ledger},
            grants,
            queue=QUEUE,
            slots=1,
            limit=self.tasks_per_gpu,
            starts_children=self.in_children,
            starvation_after=60,
            held="",
        )
        return [start.grant for start in made.starts]


def one_of_each(*parts: Sequence[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw one value of each part, at once: hypothesis takes longer for each draw than the scripts for an answer."""
    return st.sampled_from(list(itertools.product(*parts)))


# From now: times that are over, and times that are not. The borders belong to one of them.
TIMES = (5000, 1, 0, -1)
SIZES = range(5)
PLENTY = 20
"""MiB for all reservations and one task."""
MINE = [f"{WORKER}/1", f"{WORKER}/2"]
IDS = [*MINE, "v/1", "v/2", "x/1"]
CAUSES = ["room", "limit", "exclusive", "hold", "all", *["warm child", "starting", "quarantine"] * 2]
causes = st.sampled_from(CAUSES)
# Mostly few: where one reservation already keeps the task from a start, the others do not matter.
names = st.sampled_from([chosen for n in (1, 1, 1, 1, 2, 2, 3, 0) for chosen in itertools.combinations(IDS, n)])
reservations = one_of_each(SIZES, ["running", "idle", "ending"], range(3), TIMES, TIMES, range(5), TIMES)
warm_children = one_of_each(SIZES, SIZES)
trials = one_of_each(*[[(None, 0), *itertools.product(TIMES, range(4))]] * 3)
holders = one_of_each(TIMES, range(3))
rest = one_of_each(SIZES, range(6), [True, True, False], [False, True], range(3), [0, 0, 60_000], ["", IDS[1]])


@st.composite
def entries(draw: st.DrawFn, name: str, in_children: bool, cause: str) -> Entry:
    mib, state, kind, expiry, starts_for, use, told_for = draw(reservations)
    pid = owner_of(4_000_000 + IDS.index(name))
    owners = [pid if in_children else "-"] * 3 if name in MINE else [pid, "-", f"elsewhere:{name[0]}"]
    owner = owners[kind]
    if cause not in {"starting", "all"}:
        starts_for = -NOW
    used = (0, mib // 2, mib // 2, mib, mib + 1)[use] if owner != "-" else 0
    return Entry(name, mib, state, owner, expiry, starts_for, used, told_for)


@st.composite
def quarantines(draw: st.DrawFn, chosen: Sequence[str]) -> dict[str, str]:
    """Draw those of the device and of two queues, with their trials."""
    found: dict[str, str] = {}
    for part, (time, trial) in zip(("", f":{QUEUE}", ":other"), draw(trials), strict=True):
        if time is not None:
            trying = chosen[trial] if trial < len(chosen) else "v/9"
            found |= {f"shut{part}": f"{NOW + time} CUDA error", f"trial{part}": trying}
    return found


@st.composite
def holds(draw: st.DrawFn, demand: Demand) -> dict[str, str]:
    """Draw a hold, and what somebody needs, which keeps no task from a start."""
    time, holder = draw(holders)
    holder = (f"{QUEUE} {demand.name}", f"{QUEUE} 99:0", f"other {demand.name}")[holder]
    return {"hold": f"{NOW + time} 9 {holder}", "need": f"{NOW + 5000} 9"}


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Draw scenes in which one cause may keep the task from a start, or all."""
    cause, chosen = draw(causes), draw(names)
    memory, free, in_children, exclusive, limit, ahead, taken = draw(rest)
    has_all, is_warm, demand = cause == "all", cause == "warm child", Demand(memory)
    in_children |= is_warm
    exclusive = cause == "exclusive" or (has_all and exclusive)
    found = [draw(entries(name, in_children, cause)) for name in chosen if not is_warm or name != IDS[0]]
    if is_warm:
        mib, used = draw(warm_children)
        found.append(Entry(IDS[0], mib, "idle", owner_of(4_000_000), used=used))
    marks = {"clock": f"{NOW - 10} {ahead}"} if ahead else {}
    if has_all or cause == "quarantine":
        marks |= draw(quarantines(chosen))
    if has_all or cause == "hold":
        marks |= draw(holds(demand))
    return Scene(
        entries=tuple(found),
        marks=marks,
        taken=taken,
        free=free if has_all or is_warm or cause == "room" else PLENTY,
        demand=demand,
        in_children=in_children,
        exclusive=exclusive,
        tasks_per_gpu=limit if cause == "limit" or (has_all and not exclusive) else 0,
        ahead=ahead,
        settle=SETTLE if in_children else 0,
    )


@st.composite
def careful(draw: st.DrawFn) -> Scene:
    """Scenes of all careful cases together."""
    scene = draw(scenes())
    return attrs.evolve(
        scene,
        demand=Demand(scene.demand.memory, draw(st.sampled_from([0, 50]))),
        load=draw(st.sampled_from([None, 0, 49.9, 50])),
        tasks_per_gpu=draw(st.sampled_from([0, 1, 2])),
        settle=draw(st.sampled_from([0, scene.settle])),
        late=draw(st.booleans()),
    )


_CHILD = Entry(f"{WORKER}/1", 4, "idle", owner_of(4_000_000), used=1)
_OTHER = Entry("v/1", 4, "running", "-")
_EMPTY = Scene((), {}, "", free=4, demand=Demand(4), in_children=True, exclusive=False, tasks_per_gpu=0, ahead=0)
CAREFUL = {
    "others use what was promised to a warm child": attrs.evolve(_EMPTY, entries=(_CHILD,), free=1),
    "the utilisation is too high": attrs.evolve(_EMPTY, demand=Demand(4, 50), load=50),
    "tasks_per_gpu on an exclusive device": attrs.evolve(
        _EMPTY,
        entries=(attrs.evolve(_CHILD, owner="-", state="running", mib=0),),
        in_children=False,
        exclusive=True,
        tasks_per_gpu=1,
        settle=0,
    ),
    "the child of another worker is starting": attrs.evolve(
        _EMPTY, entries=(attrs.evolve(_OTHER, mib=0, starts_for=5000),), settle=0
    ),
    "the ledger was not told of an end": attrs.evolve(_EMPTY, entries=(_CHILD,), tasks_per_gpu=1, late=True),
}
BORDERS = [
    # A starting child shows a half of its memory, or less.
    *(
        attrs.evolve(_EMPTY, entries=(attrs.evolve(_OTHER, owner="elsewhere:v", used=used, starts_for=5000),), free=9)
        for used in (2, 1)
    ),
    # A warm child's own memory, and what is free beside it, is just enough, or is not.
    *(attrs.evolve(_EMPTY, entries=(attrs.evolve(_CHILD, used=4),), free=2, demand=Demand(mib)) for mib in (6, 7)),
]


class Script:
    """The real scripts, on a ledger that is stored anew for each question."""

    def __init__(self, server: Server) -> None:
        self._client = server.client
        self._runner = asyncio.Runner()
        self._server = servers.Server(server.storage, KEY)
        self._ledgers = Ledgers(server.storage, self._server, lease=3, queue=QUEUE)
        self._scene: Scene | None = None
        """The stored value now."""

    def close(self) -> None:
        self._runner.run(self._server.aclose())
        self._runner.close()
        self._client.delete(KEY)

    def read(self, scene: Scene) -> DeviceLedger:
        self._store(scene)
        return self._runner.run(self._ledgers.read(UUID))

    def reserve(self, scene: Scene, ledger: DeviceLedger, grant: Grant | None) -> str:
        """Return the answer for a place, asked as `Gate.reserve` asks."""
        self._store(scene)
        sample, owner, mib, settle = scene.sample(ledger), "-", scene.demand.memory, scene.settle
        if grant is not None:
            owner, mib, settle = grant.owner, max(mib, sample.used.get(grant.owner, 0)), 0
        wanted = Reservation(grant.id if grant else f"{WORKER}/9", mib, "running", owner, WORKER, QUEUE, "-")
        answer = self._runner.run(
            self._ledgers.reserve(
                UUID,
                wanted,
                free=sample.free,
                used=sample.used,
                limit=scene.limit,
                start_grace=settle,
                holder=scene.holder,
            )
        )
        if answer == "ok":
            self._scene = None
        return answer

    def _store(self, scene: Scene) -> None:
        if scene is self._scene:
            return
        self._scene, self._ledgers.clock = scene, scene.clock
        pipe = self._client.pipeline(transaction=False)
        pipe.delete(KEY)
        if fields := scene.stored():
            pipe.hset(KEY, mapping=fields)
        pipe.execute()


@pytest.fixture
def script(server: Server) -> Iterator[Script]:
    script = Script(server)
    yield script
    script.close()


def for_any(strategy: st.SearchStrategy[Scene], check: Callable[[Scene], None], *, examples: int) -> None:
    """Check that many drawn scenes, and those of BORDERS."""
    checked = given(scene=strategy)(check)
    for scene in BORDERS:
        checked = example(scene=scene)(checked)
    chosen = settings(
        max_examples=examples * FACTOR, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )
    chosen(checked)()


def is_promised(scene: Scene, ledger: DeviceLedger, grant: Grant | None) -> bool:
    """Whether a task needs no more than a warm child has, and others use some of that."""
    if grant is None:
        return False
    sample = scene.sample(ledger)
    seen = sample.used.get(grant.owner, 0)
    others = {name: one for name, one in ledger.reservations.items() if name != grant.id}
    room = room_of(ledger._replace(reservations=others), sample) + seen
    return seen > 0 and room < scene.demand.memory <= max(seen, grant.mib)


def is_unasked(scene: Scene, ledger: DeviceLedger, grant: Grant | None) -> bool:
    """Whether `Gate.reserve` gives a warm child its next task without a question to the script."""
    closed = scene.limit or ledger.quarantine or ledger.held_for
    return grant is not None and scene.demand.memory <= grant.mib and not closed


@pytest.mark.long
def test_the_script_accepts_what_is_predicted_and_refuses_what_is_not(script: Script) -> None:
    """Each answer of the script occurs. A place that is taken without a question would have been accepted."""
    seen: Counter[str] = Counter()

    def check(scene: Scene) -> None:
        ledger, grants = script.read(scene), scene.grants()
        places = scene.places(grants)
        answers = [script.reserve(scene, ledger, place) for place in places]
        seen.update(answers)
        room = room_of(ledger, scene.sample(ledger))
        assert answers[0] not in {"ok", "room"} or (scene.demand.memory <= room) == (answers[0] == "ok")
        unasked = [answer for place, answer in zip(places, answers, strict=True) if is_unasked(scene, ledger, place)]
        assert set(unasked) <= {"ok"}
        accepted = [place for place, answer in zip(places, answers, strict=True) if answer == "ok"]
        starts = scene.starts(ledger, grants)
        if starts:
            assert starts[0] in accepted
        else:
            assert all(is_promised(scene, ledger, place) for place in accepted)
        seen.update(unasked=len(unasked), warm=starts[:1] not in ([], [None]), new=starts == [None])

    for_any(scenes(), check, examples=1000)
    assert {*ANSWERS, "unasked", "warm", "new"} <= set(+seen), seen


@pytest.mark.parametrize("scene", CAREFUL.values(), ids=list(CAREFUL))
def test_the_prediction_is_more_careful(scene: Scene, script: Script) -> None:
    ledger, grants = script.read(scene), scene.grants()
    assert "ok" in [script.reserve(scene, ledger, place) for place in scene.places(grants)]
    assert scene.starts(ledger, grants) == []


def test_the_script_accepts_what_is_predicted_in_the_careful_cases(script: Script) -> None:
    seen: Counter[str] = Counter()

    def check(scene: Scene) -> None:
        ledger, grants = script.read(scene), scene.grants()
        for start in scene.starts(ledger, grants):
            assert script.reserve(scene, ledger, start) == "ok"
            seen["started"] += 1

    for_any(careful(), check, examples=200)
    assert seen["started"]
