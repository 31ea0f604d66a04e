"""What explain() says of lost tasks."""

import pytest

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.reason import reason
from maas_backoff.domain.settlement import Counts
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import waiting_for
from maas_backoff.domain.worker import Device, Worker

IDLE = Worker("idle", slots=20, running=8)
FULL = Worker("full", slots=8, running=8)
GPU = Device("GPU-a", 0, "a GPU", 8192, 8192, 8192, 8192, 0, 40, "ok", 0)


def stats(pending: int, suspects: int, gpu: int = 0) -> QueueStats:
    return QueueStats(pending, 0, 8, 0, 0, 0, 1, suspect_count=suspects, gpu_count=gpu)


LOST = "15 tasks lost their worker again and come back in halves: 8 running now."
CASES = [
    ("nothing else waits", stats(15, 15), IDLE, f"15 tasks due, 8 tasks running; {LOST}"),
    ("others wait", stats(20, 15), IDLE, f"20 tasks due, 8 tasks running: 1 workers with 20 slots are at it; {LOST}"),
    ("no slot is free", stats(15, 15), FULL, f"15 tasks due, 8 tasks running: all 8 slots are taken; {LOST}"),
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
