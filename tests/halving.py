"""The cost of a mass loss, in virtual time: tasks that are lost again come back in halves.

`python tests/halving.py` prints a table. One worker dies at 0 s with all of its tasks, and is replaced, as is each that
dies later. A poison task ends its worker at once. What happens to a lost task is decided by the package's own
functions. The choice of a claim is repeated here, as it is part of settle.lua: store/test_model.py compares it.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable

import attrs

from maas_backoff.config import TaskConfig
from maas_backoff.domain.backoff import Backoff
from maas_backoff.domain.settlement import Counts, decide
from maas_backoff.domain.suspicion import Losses, Lost, judge

LEASE, LOOK, RESTART = 30.0, 7.5, 1.0
"""Seconds: until a lost lease runs out, until somebody looks, and until a worker is replaced."""

ENDS_WORKER = 0.1
"""Seconds for which a poison task runs."""

COMES_IN = 300.0
"""Seconds for which fresh tasks come in."""

BACKOFF = Backoff("fixed", interval=1)


@attrs.define(eq=False)
class Task:
    number: int
    poison: bool
    counts: Counts = Counts()
    status: str = "pending"
    ended: float = 0.0


@attrs.define(eq=False)
class Worker:
    name: str
    running: dict[Task, int] = attrs.field(factory=dict)
    """With the token of each."""
    alive: bool = True


@attrs.frozen
class Result:
    seconds: float
    """Until the last task ended, from the first death on."""
    innocents_seconds: float
    """Until the last task ended that was lost at first and is no poison."""
    deaths: int
    failed_innocents: int
    failed_poison: int


class Simulation:
    """One queue, from the death of a worker with all of its tasks to the end of the last task."""

    def __init__(self, *, tasks: int, poison: int, workers: int, seconds: float, slots: int, fresh: int) -> None:
        """`tasks` are lost at first; `fresh` more come in each second for five minutes, and run beside those."""
        self.policy = TaskConfig().policy
        self.now, self.deaths = 0.0, 0
        self._seconds, self._slots = seconds, slots
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._tokens, self._names = itertools.count(), itertools.count(), itertools.count()
        # Poison is spread evenly.
        culprits = {(2 * n + 1) * tasks // (2 * poison) for n in range(poison)}
        self.tasks = [Task(number, number in culprits) for number in range(tasks)]
        self._suspects: list[Task] = []
        self._ready: list[Task] = []
        self._fresh, self._lost_first = fresh, tasks
        self._workers: list[Worker] = []
        for _ in range(workers):
            self._begin()
        first = self._workers[0]
        first.running = {task: next(self._tokens) for task in self.tasks}
        self._die(first)
        if fresh:
            self._come_in()

    def run(self) -> Result:
        self._claim_all()
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            self._claim_all()
        failed = [task for task in self.tasks if task.status == "failed"]
        assert all(task.status in {"completed", "failed"} for task in self.tasks)
        bad = sum(task.poison for task in failed)
        innocents = max(task.ended for task in self.tasks[: self._lost_first] if not task.poison)
        return Result(max(task.ended for task in self.tasks), innocents, self.deaths, len(failed) - bad, bad)

    def _come_in(self) -> None:
        new = [Task(len(self.tasks) + number, poison=False) for number in range(self._fresh)]
        self.tasks += new
        self._ready += new
        if self.now < COMES_IN:
            self._after(1, self._come_in)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    def _begin(self) -> None:
        self._workers.append(Worker(f"worker-{next(self._names)}"))

    # Claims, as settle.lua makes them

    def _claim_all(self) -> None:
        # One after the other, each a few at first: that is how sleeping workers are woken.
        for most in (2, self._slots):
            for worker in self._workers:
                self._claim(worker, most)

    def _claim(self, worker: Worker, most: int) -> None:
        free = min(most, self._slots - len(worker.running))
        held = next((task.counts.cohort for task in worker.running if task.counts.suspect), "")
        held = held or self._next_cohort()
        chosen = [task for task in self._suspects if task.counts.cohort == held][:free]
        chosen += self._ready[: free - len(chosen)]
        for task in chosen:
            (self._suspects if task in self._suspects else self._ready).remove(task)
            self._start(worker, task)

    def _next_cohort(self) -> str:
        waiting = Counter(task.counts.cohort for task in self._suspects)
        whole = [task for task in self._suspects if waiting[task.counts.cohort] >= task.counts.cohort_size]
        return (whole or self._suspects)[0].counts.cohort if self._suspects else ""

    # The fate of tasks

    def _start(self, worker: Worker, task: Task) -> None:
        token = worker.running[task] = next(self._tokens)

        def end() -> None:
            if not worker.alive or worker.running.get(task) != token:
                return
            if task.poison:
                self._die(worker)
            else:
                self._complete(worker, task)

        self._after(ENDS_WORKER if task.poison else self._seconds, end)

    def _complete(self, worker: Worker, task: Task) -> None:
        del worker.running[task]
        task.status, task.ended = "completed", self.now

    def _die(self, worker: Worker) -> None:
        worker.alive = False
        self.deaths += 1
        self._workers.remove(worker)
        self._after(RESTART, self._begin)
        self._after(LEASE + LOOK / 2, lambda: self._reap(worker))

    def _reap(self, worker: Worker) -> None:
        lost = list(worker.running)
        suspects = sum(task.counts.suspect for task in lost)
        fresh = len(lost) - suspects
        again = sum(task.counts.lost > 0 and not task.counts.suspect for task in lost)
        numbers = {worker.name: Losses(fresh, fresh, suspects, suspects, again)}
        judged = judge([Lost(worker.name, worker.running[task], task.counts) for task in lost], numbers)
        for task, loss in zip(lost, judged, strict=True):
            settlement = decide(loss, str(task.number), task.counts, self.policy, BACKOFF)
            assert settlement is not None and settlement.counts is not None
            task.counts, task.status = settlement.counts, str(settlement.status)
            if task.status == "pending":
                (self._suspects if task.counts.suspect else self._ready).append(task)
            else:
                task.ended = self.now


def simulate(
    poison: int,
    workers: int,
    *,
    tasks: int = 100,
    seconds: float = 10,
    slots: int = 100,
    fresh: int = 0,
) -> Result:
    return Simulation(
        tasks=tasks,
        poison=poison,
        workers=workers,
        seconds=seconds,
        slots=slots,
        fresh=fresh,
    ).run()


def main() -> None:
    print("100 tasks of 10 s are lost with their worker; lease 30 s, 100 slots, max_lost 3; times from the first death")
    print("workers  poison  new tasks  innocent ones  all tasks  deaths  innocents failed")
    for fresh, workers, poison in itertools.product((0, 5), (1, 4), (0, 1, 3)):
        got = simulate(poison, workers, fresh=fresh)
        print(
            f"{workers:7}  {poison:6}  {fresh:7}/s  {got.innocents_seconds:11.0f} s  {got.seconds:7.0f} s"
            f"  {got.deaths:6}  {got.failed_innocents:16}"
        )


if __name__ == "__main__":
    main()
