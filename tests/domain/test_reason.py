"""The reasons that explain() and waiting tasks give."""

from datetime import UTC, datetime

import attrs
import pytest

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.reason import reason
from maas_backoff.domain.settlement import Counts
from maas_backoff.domain.shares import LimitStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import Paused, Place, waiting_for
from maas_backoff.domain.worker import Device, Worker

IDLE = Worker("idle", slots=20, running=8)
FULL = Worker("full", slots=8, running=8)
GPU = Device("GPU-a", 0, "a GPU", 8192, 8192, 8192, 8192, 0, 40, "ok", 0)


def stats(pending: int, suspects: int, gpu: int = 0) -> QueueStats:
    return QueueStats(pending, 0, 8, 0, 0, 0, 1, suspect_count=suspects, gpu_count=gpu)


LOST = "15 tasks lost their worker again and come back in halves: 8 running now."
CASES = [
    ("nothing else waits", stats(15, 15), IDLE, f"15 tasks due, 8 tasks running; {LOST}"),
    ("others wait", stats(20, 15), IDLE, f"20 tasks due, 8 tasks running: 8 of 20 slots of 1 worker are busy; {LOST}"),
    (
        "no slot is free",
        stats(15, 15),
        FULL,
        f"15 tasks due, 8 tasks running: all 8 slots of 1 worker are busy; {LOST}",
    ),
    (
        "one",
        stats(1, 1),
        IDLE,
        "1 task due, 8 tasks running; 1 task lost its worker again and comes back in halves: 8 running now.",
    ),
]


@pytest.mark.parametrize(("counted", "worker", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_explain_tells_of_lost_tasks(counted: QueueStats, worker: Worker, expected: str) -> None:
    assert reason(counted, [worker], None, [], 8) == expected


def test_explain_blames_no_gpu_that_has_room() -> None:
    worker = Worker("w", slots=20, running=8, devices=(GPU,))
    told = reason(stats(15, 15, gpu=15), [worker], None, [(Demand(4096), 15)], 8)
    assert told == f"15 tasks due, 8 tasks running; {LOST}"
    told = reason(stats(15, 15, gpu=15), [worker], None, [(Demand(9000), 15)], 8)
    assert told.startswith("15 tasks due, 8 tasks running: 15 need a GPU with 8.79 GiB free, more than any device has")
    assert told.endswith(LOST)


SINCE = datetime(2026, 3, 1, tzinfo=UTC)


def of_kinds(due: int, kinds: dict[str, int], *paused: str, gpu: dict[str, int] | None = None) -> QueueStats:
    gpu = gpu or {}
    counted = attrs.evolve(stats(due, 0, gpu=sum(gpu.values())), kinds=kinds, gpu_kinds=gpu)
    return attrs.evolve(counted, paused_kinds=dict.fromkeys(paused, SINCE))


AT_IT = "8 of 20 slots of 1 worker are busy"


@pytest.mark.parametrize(
    ("counted", "waiting", "expected"),
    [
        (of_kinds(3, {"a": 3}, "a"), [], "3 tasks due, 8 tasks running; kind a: paused, 3 tasks due."),
        (of_kinds(4, {"a": 3}, "a"), [], f"4 tasks due, 8 tasks running: {AT_IT}; kind a: paused, 3 tasks due."),
        (of_kinds(0, {"a": 0}, "a"), [], "Nothing is due: 8 tasks running; kind a: paused, 0 tasks due."),
        (
            of_kinds(3, {"a": 1, "b": 0}, "a", gpu={"a": 1, "b": 1}),
            [(Demand(1024), 1)],
            (
                "3 tasks due, 8 tasks running: 1 need a GPU with 1 GiB free, and no running worker has a GPU; "
                "kind a: paused, 2 tasks due."
            ),
        ),
        (
            of_kinds(1, dict.fromkeys("abcdefg", 0) | {"f": 1}, *"abcdefg"),
            [],
            (
                "1 task due, 8 tasks running; kind f: paused, 1 task due; kind a: paused, 0 tasks due; kind b: paused, "
                "0 tasks due; kind c: paused, 0 tasks due; kind d: paused, 0 tasks due; 2 more kinds: paused."
            ),
        ),
    ],
)
def test_explain_names_paused_kinds(counted: QueueStats, waiting: list[tuple[Demand, int]], expected: str) -> None:
    worker = attrs.evolve(IDLE, kinds=("", "a", "b"))
    assert reason(counted, [worker], None, waiting) == expected


@pytest.mark.parametrize(
    ("counted", "kinds", "expected"),
    [
        (
            of_kinds(3, {"a": 2}),
            ("a",),
            f"{AT_IT}; 1 task without a kind: no running worker has a handler for such tasks.",
        ),
        (
            of_kinds(4, {"a": 1}, gpu={"b": 1}),
            ("c",),
            (
                "4 tasks due, 8 tasks running; 2 tasks without a kind: no running worker has a handler for such tasks; "
                "1 task of kind a: no running worker has it; 1 task of kind b: no running worker has it."
            ),
        ),
        (of_kinds(3, {"a": 2}, "a"), ("", "b"), f"{AT_IT}; kind a: paused, 2 tasks due."),
        (of_kinds(2, {"a": 1}, gpu={"a": 1}), ("a",), f"{AT_IT}."),
    ],
)
def test_explain_names_tasks_that_no_worker_runs(counted: QueueStats, kinds: tuple[str, ...], expected: str) -> None:
    told = reason(counted, [attrs.evolve(IDLE, kinds=kinds)], None, [])
    assert told.removeprefix(f"{counted.pending_count} tasks due, 8 tasks running: ") == expected


QUIET = attrs.evolve(IDLE, name="quiet", kinds=("a", "b"), quiet=True)
OTHER = attrs.evolve(IDLE, name="other", kinds=("c",))


@pytest.mark.parametrize(
    ("fleet", "expected"),
    [
        ([OTHER, QUIET], "; 3 tasks of kind a: all workers that could run them are quiet."),
        ([OTHER, attrs.evolve(QUIET, quiet=False)], ": 8 of 20 slots of the only worker for these tasks are busy."),
        (
            [OTHER, attrs.evolve(QUIET, quiet=False), attrs.evolve(FULL, kinds=("a",))],
            ": 16 of 28 slots of the 2 workers for these tasks are busy.",
        ),
        (
            [attrs.evolve(QUIET, quiet=False), attrs.evolve(FULL, kinds=("a",))],
            ": 16 of 28 slots of 2 workers are busy.",
        ),
        (
            [attrs.evolve(IDLE, running=0, kinds=("a",), trouble="starting; no driver: x")],
            ": 0 of 20 slots of 1 worker are busy; 1 worker is not ready: starting.",
        ),
        (
            [attrs.evolve(IDLE, running=0, kinds=("a",), trouble="starting")] * 2,
            ": 0 of 40 slots of 2 workers are busy; 2 workers are not ready: starting.",
        ),
    ],
)
def test_explain_counts_the_workers_that_could_run_the_due_tasks(fleet: list[Worker], expected: str) -> None:
    assert reason(of_kinds(3, {"a": 3}), fleet, None, []) == f"3 tasks due, 8 tasks running{expected}"


def test_explain_names_tasks_without_a_kind_whose_workers_are_quiet() -> None:
    fleet = [OTHER, attrs.evolve(QUIET, kinds=("",))]
    assert reason(of_kinds(1, {"a": 0}), fleet, None, []) == (
        "1 task due, 8 tasks running; 1 task without a kind: all workers that could run them are quiet."
    )


@pytest.mark.parametrize(
    ("fleet", "leased", "expected"),
    [
        ([attrs.evolve(IDLE, running=0)], 8, "8 of 20 slots of 1 worker are busy"),
        ([attrs.evolve(IDLE, running=9)], 8, "9 of 20 slots of 1 worker are busy"),
        ([attrs.evolve(FULL, running=0)], 9, "all 8 slots of 1 worker are busy"),
        ([attrs.evolve(IDLE, running=0), attrs.evolve(FULL, quiet=True)], 10, "2 of 20 slots of 1 worker are busy"),
        ([attrs.evolve(IDLE, running=0), attrs.evolve(FULL, running=0)], 8, "8 of 28 slots of 2 workers are busy"),
        ([attrs.evolve(IDLE, running=0)], -1, "0 of 20 slots of 1 worker are busy"),
    ],
)
def test_explain_counts_slots_that_no_heartbeat_has_told_of(fleet: list[Worker], leased: int, expected: str) -> None:
    assert f": {expected}" in reason(stats(3, 0), fleet, None, [], leased=leased)


def test_explain_counts_no_slots_while_heartbeats_have_not_told_of_batches() -> None:
    """Several of the running tasks may share a slot."""
    fleet = [attrs.evolve(IDLE, running=0, batches={"a": (8, 1.0)})]
    assert reason(stats(3, 0), fleet, None, [], leased=8) == "3 tasks due, 8 tasks running."
    assert "0 of 20 slots" in reason(stats(3, 0), fleet, None, [])


def test_suspects_wait_for_no_batch() -> None:
    fleet = [attrs.evolve(IDLE, kinds=("a",), batches={"a": (8, 1.0)})]
    waiting = attrs.evolve(of_kinds(4, {"a": 4}), suspect_count=3)
    assert "kind a waits for a batch: 1 of 8" in reason(waiting, fleet, None, [])
    assert "batch: " not in reason(attrs.evolve(waiting, suspect_count=4), fleet, None, [])


def test_tasks_that_are_held_back_wait_for_no_batch() -> None:
    """Neither do they wait for slots, which the last heartbeats have told to be busy."""
    worker = Worker("w", kinds=("e",), slots=8, running=8, batches={"e": (32, 0.5)})
    counted = QueueStats(3, 0, 0, 0, 0, 0, 1, kinds={"e": 3})
    held = "3 tasks due, nothing runs; tenant acme is paused: 3 tasks wait."
    assert reason(counted, [worker], None, [], paused_tenants={"acme": 3}) == held
    free = attrs.evolve(worker, running=0)
    assert reason(counted, [free], None, [], paused_tenants={"acme": 3}) == held
    # These are not due, and those are of another kind.
    batch = "; kind e waits for a batch: 3 of 32, at most 500 ms; "
    delayed = attrs.evolve(counted, pending_count=1003, scheduled_count=1000)
    assert batch in reason(delayed, [free], None, [], paused_tenants={"acme": 1000})
    others = attrs.evolve(counted, pending_count=8, kinds={"e": 3, "f": 5})
    assert batch in reason(others, [free], None, [], paused_tenants={"acme": 5})


def test_tasks_for_a_gpu_wait_for_their_batch() -> None:
    """Nothing else comes first."""
    worker = Worker("w", kinds=("e",), slots=8, running=0, batches={"e": (32, 60.0)}, devices=(GPU,))
    counted = QueueStats(1, 0, 0, 0, 0, 0, 1, gpu_count=1, kinds={"e": 0}, gpu_kinds={"e": 1})
    assert reason(counted, [worker], None, [(Demand(4096), 1)]) == (
        "1 task due, nothing runs: 0 of 8 slots of 1 worker are busy; kind e waits for a batch: 1 of 32, at most 60 s."
    )
    full = attrs.evolve(worker, devices=(attrs.evolve(GPU, room=1024),))
    assert "best device has 1 GiB free" in reason(counted, [full], None, [(Demand(4096), 1)])
    said = waiting_for(0, 2000, Demand(4096), [worker], kind="e")
    assert said == "batch: at least 1 of 32 tasks, at most 58 s more"


def test_explain_names_running_tasks_that_have_no_worker() -> None:
    lost = "8 tasks have lost their worker, and come back when a worker starts"
    assert reason(stats(3, 0), [], None, [], leased=8) == f"No worker is running: 3 tasks due; {lost}."
    nothing = "Nothing is due: 8 tasks running, and no worker is connected"
    assert reason(stats(0, 0), [], None, [], leased=8) == f"{nothing}; {lost}."
    one = "1 task has lost its worker, and comes back when a worker starts"
    assert reason(stats(0, 0), [], None, [], leased=1) == f"{nothing}; {one}."
    assert reason(stats(0, 0), [IDLE], None, [], leased=8) == "Nothing is due: 8 tasks running."


@pytest.mark.parametrize("fleet", [[], [IDLE]])
def test_a_queue_with_scheduled_tasks_is_not_empty(fleet: list[Worker]) -> None:
    """The first entry may be a task past its deadline, which is due and cancelled."""
    counted = attrs.evolve(stats(4, 0), scheduled_count=4, processing_count=0)
    alone = "" if fleet else ", and no worker is connected"
    for next_due in (0, None):
        assert reason(counted, fleet, next_due, []) == f"Nothing is due: nothing runs; 4 tasks scheduled{alone}."


def test_explain_asks_no_gpu_of_a_quiet_worker() -> None:
    fleet = [IDLE, attrs.evolve(QUIET, kinds=("",), devices=(GPU,))]
    told = reason(stats(1, 0, gpu=1), fleet, None, [(Demand(1024), 1)])
    assert told.endswith("1 need a GPU with 1 GiB free, and no running worker has a GPU.")


def test_a_device_that_is_large_enough_may_not_be_well() -> None:
    large = attrs.evolve(GPU, uuid="GPU-b", total=24_576, health="quarantine: by hand")
    worker = attrs.evolve(IDLE, devices=(GPU, large))
    why = "and no device that is large enough is well (quarantine: by hand)"
    assert waiting_for(0, 1, Demand(20_480), [worker]) == f"gpu: needs 20 GiB free, {why}"
    broken = attrs.evolve(worker, devices=(large,))
    assert waiting_for(0, 1, Demand(20_480), [broken]).endswith("and no device is well (quarantine: by hand)")
    assert waiting_for(0, 1, Demand(8192), [worker]) == "gpu: needs 8 GiB free, and others come first"


def test_a_task_waits_while_no_worker_is_ready() -> None:
    starting = attrs.evolve(IDLE, trouble="starting; no driver: x")
    why = "; no worker that could run it is ready: starting"
    assert waiting_for(0, 1, None, [starting], Place(0)) == f"slot: next in line{why}"
    assert waiting_for(0, 1, None, [starting, IDLE], Place(0)) == "slot: next in line"
    assert waiting_for(0, 1, Demand(1024), [starting]) == f"gpu: needs 1 GiB free, and no running worker has a GPU{why}"
    assert waiting_for(0, 1, None, [starting], counts=ALONE) == f"{BY_ITSELF}{why}"


def shut(name: str, tasks: int) -> LimitStats:
    return LimitStats(name, None, "", waiting_tasks=tasks, shut="shut")


@pytest.mark.parametrize(
    ("counted", "tenants", "limits", "expected"),
    [
        (
            stats(12, 0),
            {"acme": 12},
            [],
            "12 tasks due, 8 tasks running; tenant acme is paused: 12 tasks wait.",
        ),
        (
            stats(12, 0),
            {"acme": 1},
            [shut("openai", 10)],
            (
                f"12 tasks due, 8 tasks running: {AT_IT}; tenant acme is paused: 1 task waits; "
                "limit openai is shut: 10 tasks wait."
            ),
        ),
        (
            stats(120, 0),
            {},
            [shut("openai", 119), shut("user:7", 1)],
            (
                "120 tasks due, 8 tasks running; limit openai is shut: 119 tasks wait; "
                "limit user:7 is shut: 1 task waits."
            ),
        ),
        (
            attrs.evolve(stats(7, 0), scheduled_count=4),
            {"acme": 4},
            [],
            f"3 tasks due, 8 tasks running: {AT_IT}; tenant acme is paused: 4 tasks wait.",
        ),
        (stats(0, 0), {"acme": 0}, [], "Nothing is due: 8 tasks running; tenant acme is paused: 0 tasks wait."),
        (
            stats(21, 0),
            {f"t{n}": n for n in range(7)},
            [shut(f"l{n}", 1) for n in range(7)],
            (
                "21 tasks due, 8 tasks running; tenant t6 is paused: 6 tasks wait; tenant t5 is paused: 5 tasks wait; "
                "tenant t4 is paused: 4 tasks wait; tenant t3 is paused: 3 tasks wait; "
                "tenant t2 is paused: 2 tasks wait; 2 more tenants are paused; "
                "limit l0 is shut: 1 task waits; limit l1 is shut: 1 task waits; "
                "limit l2 is shut: 1 task waits; limit l3 is shut: 1 task waits; limit l4 is shut: 1 task waits; "
                "2 more limits are shut."
            ),
        ),
    ],
)
def test_explain_names_paused_tenants_and_shut_limits(
    counted: QueueStats, tenants: dict[str, int], limits: list[LimitStats], expected: str
) -> None:
    assert reason(counted, [IDLE], None, [], 0, tenants, limits) == expected


def test_explain_blames_no_gpu_for_a_shut_limit() -> None:
    told = reason(stats(2, 0, gpu=2), [IDLE], None, [(Demand(1024), 2)], 0, {}, [shut("openai", 2)])
    assert told == "2 tasks due, 8 tasks running; limit openai is shut: 2 tasks wait."


def test_a_task_of_a_paused_kind_says_so() -> None:
    for paused, kind, expected in (
        (Paused(kinds={"a"}), "a", "kind a: paused"),
        (Paused(kinds={"a"}), "b", "kind b: no running worker has it"),
        (Paused(kinds={"a"}), "", "slot"),
        (Paused(queue=True, kinds={"a"}), "a", "paused"),
    ):
        assert waiting_for(0, 1, None, [IDLE], paused=paused, kind=kind) == expected
    assert waiting_for(2, 1, None, [], paused=Paused(kinds={"a"}), kind="a").startswith("due at")


ACME = Lane("acme", limits={"openai": 1, "user:7": 1})
FULL_LIMIT = {"openai": "limit openai: 64 of 64 in use", "user:7": "rate user:7: room in 7 s"}


@pytest.mark.parametrize(
    ("paused", "lane", "fleet", "expected"),
    [
        (Paused(queue=True, tenants={"acme"}), ACME, [IDLE], "paused"),
        (Paused(kinds={"a"}, tenants={"acme"}), ACME, [IDLE], "kind a: paused"),
        (Paused(tenants={"acme"}, shut=FULL_LIMIT), ACME, [IDLE], "tenant acme is paused"),
        (Paused(tenants={"bolt"}, shut=FULL_LIMIT), ACME, [], "limit openai: 64 of 64 in use"),
        (Paused(shut={"user:7": FULL_LIMIT["user:7"]}), ACME, [IDLE], "rate user:7: room in 7 s"),
        (Paused(shut={"other": "limit other: 1 of 1 in use"}), ACME, [], "worker: none is running"),
        (Paused(shut=FULL_LIMIT), Lane("acme"), [IDLE], "tenant acme: next in line"),
        (Paused(), Lane(limits={"openai": 1}), [IDLE], "slot: next in line"),
    ],
)
def test_a_task_says_what_stands_against_it_first(
    paused: Paused, lane: Lane, fleet: list[Worker], expected: str
) -> None:
    """The queue, its kind, its tenant, its limits by name; then workers and slots."""
    workers = [attrs.evolve(worker, kinds=("a",)) for worker in fleet]
    assert waiting_for(0, 1, None, workers, Place(0), paused=paused, kind="a", lane=lane) == expected
    later = waiting_for(2, 1, None, workers, Place(0), paused=paused, kind="a", lane=lane)
    assert later.startswith("due at")


@pytest.mark.parametrize(
    ("place", "tenant", "expected"),
    [
        (Place(0, 0, 5), "acme", "tenant acme: next of its tasks, 5 tenants take turns"),
        (Place(1), "acme", "tenant acme: 1 of its own tasks first"),
        (Place(1200, 3000, 4), "acme", "tenant acme: 1,200 of its own tasks and about 3,000 of others first"),
        (Place(), "acme", "slot"),
        (Place(3, 4, 2), "", "slot: 7 ahead of it"),
        (Place(0), "", "slot: next in line"),
    ],
)
def test_a_task_says_what_comes_before_it(place: Place, tenant: str, expected: str) -> None:
    assert waiting_for(0, 1, None, [IDLE], place, lane=Lane(tenant)) == expected


def test_a_place_is_one_among_the_tasks_of_a_kind() -> None:
    """A worker of several kinds may claim those of another kind first."""
    several = attrs.evolve(IDLE, kinds=("", "a"))
    assert waiting_for(0, 1, None, [IDLE, several], Place(3), kind="") == "slot: 3 of its kind ahead of it"
    assert waiting_for(0, 1, None, [IDLE, several], Place(0), kind="a") == "slot: next of its kind"
    assert waiting_for(0, 1, None, [IDLE, attrs.evolve(IDLE, kinds=("a",))], Place(0), kind="a") == "slot: next in line"


def test_a_lost_task_waits_for_its_limits_first() -> None:
    shut = Paused(shut=FULL_LIMIT)
    assert waiting_for(0, 1, None, [IDLE], paused=shut, counts=TWICE, lane=ACME) == FULL_LIMIT["openai"]


TWICE, ALONE = (Counts(lost=2, suspect=True, cohort="x", cohort_size=size) for size in (3, 1))
BY_ITSELF = "suspect: its worker was lost again; each worker runs one such task at a time, this one alone"
WITH_OTHERS = "suspect: its worker was lost again; it comes back in halves of what was lost, with up to 2 other tasks"


@pytest.mark.parametrize(
    ("counts", "worker", "demand", "expected"),
    [
        (TWICE, IDLE, None, WITH_OTHERS),
        (ALONE, IDLE, None, BY_ITSELF),
        (Counts(lost=1), IDLE, None, "slot"),
        (TWICE, Worker("w", devices=(GPU,)), Demand(1024), WITH_OTHERS),
        (TWICE, IDLE, Demand(1024), "gpu: needs 1 GiB free, and no running worker has a GPU"),
    ],
)
def test_a_lost_task_says_what_it_waits_for(
    counts: Counts, worker: Worker, demand: Demand | None, expected: str
) -> None:
    assert waiting_for(0, 1, demand, [worker], counts=counts) == expected


def test_a_device_with_room_is_of_no_use_while_its_worker_is_busy() -> None:
    """Other workers have free slots: the sentence names what is missing. If no worker has one, slots are missing."""
    demand, on_gpu, full = Demand(1024), attrs.evolve(IDLE, devices=(GPU,)), attrs.evolve(FULL, devices=(GPU,))
    small = attrs.evolve(IDLE, devices=(attrs.evolve(GPU, uuid="GPU-b", room=0),))
    told = {
        "and others come first": [on_gpu, full],
        "and the workers whose devices have room have no free slot": [full, small],
    }
    for why, fleet in told.items():
        assert reason(stats(5, 0, 5), fleet, None, [(demand, 5)]) == (
            f"5 tasks due, 8 tasks running: 5 need a GPU with 1 GiB free, {why}."
        )
        assert waiting_for(0, 1, demand, fleet) == f"gpu: needs 1 GiB free, {why}"
    assert "all 8 slots of 1 worker are busy" in reason(stats(5, 0, 5), [full], None, [(demand, 5)])


def test_a_task_waits_for_its_batch_only_while_a_slot_is_free() -> None:
    """A list does not know the place of a task: it tells of the task alone."""
    idle = Worker("idle", slots=2, running=1, kinds=("embed",), batches={"embed": (4, 60.0)})
    busy = attrs.evolve(idle, running=2)
    assert waiting_for(0, 5000, None, [busy, idle], Place(2), kind="embed") == (
        "batch: at least 3 of 4 tasks, at most 55 s more"
    )
    assert waiting_for(0, 5000, None, [idle], kind="embed") == "batch: at least 1 of 4 tasks, at most 55 s more"
    assert waiting_for(0, 5000, None, [busy], Place(2), kind="embed") == "slot: 2 ahead of it"
    assert waiting_for(0, 5000, None, [busy], kind="embed") == "slot"
    assert waiting_for(0, 60_000, None, [idle], kind="embed") == "slot", "its turn has come"
