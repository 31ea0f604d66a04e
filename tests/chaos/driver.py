"""A chaos run: starts producers and workers, breaks what it can, heals, waits for the drain, and checks the history.

In a mixed run, half of the producers and workers have the code of the last release, as in a rolling deploy.
"""

import contextlib
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import lanes
import redis
from chaos.checker import Final, Violation, check, check_counts, mixture, needless_losses, returns
from chaos.durable import DurableServer
from chaos.ends import change_shares, read_finals, read_stats, set_shares
from chaos.fairness import crowded, rushed
from chaos.functions import FUNCTIONS
from chaos.history import History
from chaos.processes import Process, Processes, Worker
from chaos.setting import LEASE
from chaos.shares import CHAOTIC, TENANTS
from chaos.summary import Summary

from maas_backoff import StorageError
from maas_backoff.domain.stats import QueueStats

MODES = ("coroutine", "thread", "process", "coroutine")
PRODUCERS = 2
RATE = 12.0
"""Tasks a second and producer: a third of what the workers can do when they are left alone."""

DRAIN_SECONDS = 60.0
TICK = 0.02


class Driver:
    """One run, on one server, from one seed."""

    def __init__(self, server: DurableServer, folder: Path, seed: int, old: str | None = None) -> None:
        """Make the run a mixed one with `old`, the folder that has the package of the last release."""
        self._server = server
        self._folder = folder
        self._seed = seed
        self._processes = Processes(server.port, folder, old, random.Random(f"kinds {seed}"))
        self._choice = random.Random(seed)
        self._history = History(folder)
        self._workers: list[Worker] = []
        self._leaving: list[Process] = []
        self._producers: list[Process] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._still: set[int] = set()
        self._killed: set[int] = set()
        self._down = False
        self._done: Counter[str] = Counter()
        self._failures: list[Violation] = []
        self._has_shares = old is None  # the last release knows no tenants

    def run(self, seconds: float) -> Summary:
        """Break things for so long; return what came of it."""
        try:
            self._server.start()
            if self._has_shares:
                anyio.run(set_shares, self._server.port, CHAOTIC)
            self._workers = [self._processes.worker(n, mode) for n, mode in enumerate(MODES)]
            for n in range(PRODUCERS):
                arguments = (f"{self._seed}-{n}", str(seconds), str(RATE))
                self._producers.append(self._processes.producer(n, *arguments))
            self._break_for(seconds)
            self._heal()
            self._drain()
            self._dismiss()
            return self._judge()
        finally:
            for process in [*(worker.process for worker in self._workers), *self._leaving, *self._producers]:
                process.kill()
                process.wait()
            self._server.stop()

    # While it runs

    def _break_for(self, seconds: float) -> None:
        faults = self._faults()
        deadline = time.monotonic() + seconds
        next_fault = time.monotonic() + 1.5  # the workers need a moment to have something to lose
        while time.monotonic() < deadline:
            self._tick()
            if time.monotonic() >= next_fault:
                next(faults)()
                next_fault = time.monotonic() + self._choice.uniform(0.2, 1)

    def _faults(self) -> Iterator[Callable[[], None]]:
        """Each kind once in random order, then again: short runs see them all."""
        kinds = [
            self._kill_worker,
            self._kill_worker,
            self._stop_worker,
            self._dismiss_worker,
            self._cut_clients,
            self._restart_server,
            self._pause_server,
            self._forget_scripts,
            *([self._change_shares] if self._has_shares else []),
        ]
        while True:
            yield from self._choice.sample(kinds, len(kinds))

    def _tick(self) -> None:
        """Do what is due, and replace the workers that died."""
        time.sleep(TICK)
        now = time.monotonic()
        due = [action for when, action in self._later if when <= now]
        self._later = [(when, action) for when, action in self._later if when > now]
        for action in due:
            action()
        for n, worker in enumerate(self._workers):
            if worker.process.poll() is not None:
                self._died(worker.process)
                self._workers[n] = self._processes.replacement(worker)
        if self._has_shares and not self._down:
            self._look_at_limits()
        for process in [process for process in self._leaving if process.poll() is not None]:
            self._leaving.remove(process)
            self._died(process)

    def _died(self, worker: Process) -> None:
        """Note a death. SIGKILL is the driver's doing or that of a poison task, 0 the end of a drain."""
        self._history.note("died", worker=worker.pid)
        if self._never_began(worker):
            return
        if worker.returncode not in {0, -signal.SIGKILL}:
            self._failures.append(Violation("worker", "", f"worker {worker.pid} ended with {worker.returncode}"))
        elif worker.returncode and worker.pid not in self._killed:
            self._done["poisoned"] += 1

    def _never_began(self, worker: Process) -> bool:
        """Whether it was told to end before it listened to signals, and had done nothing."""
        return worker.returncode == -signal.SIGTERM and not (self._folder / f"{worker.pid}.jsonl").exists()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def _awake(self) -> Process | None:
        awake = [worker.process for worker in self._workers if worker.process.pid not in self._still]
        return self._choice.choice(awake) if awake else None

    # Faults

    def _kill_worker(self) -> None:
        worker = self._awake()
        if worker is not None:
            self._killed.add(worker.pid)
            worker.kill()
            worker.wait()
            self._done["kills"] += 1

    def _stop_worker(self) -> None:
        """Let a worker stand still for longer than its leases."""
        worker = self._awake()
        if worker is None or len(self._still) >= len(MODES) - 2:
            return
        self._history.note("stop", worker=worker.pid)
        self._still.add(worker.pid)
        worker.send_signal(signal.SIGSTOP)
        self._done["stops"] += 1

        def go_on() -> None:
            worker.send_signal(signal.SIGCONT)
            self._still.discard(worker.pid)

        self._after(self._choice.uniform(1.2, 2.0) * LEASE, go_on)

    def _dismiss_worker(self) -> None:
        """Have a worker drain, and another take its place at once."""
        process = self._awake()
        for n, worker in enumerate(self._workers):
            if worker.process is process:
                process.terminate()
                self._leaving.append(process)
                self._workers[n] = self._processes.replacement(worker)
                self._done["drains"] += 1

    def _cut_clients(self) -> None:
        self._done["cuts"] += 1
        self._history.note("outage")
        for n in range(self._choice.randint(5, 30)):
            self._after(0.05 * n, self._while_up(self._server.kill_clients))

    def _forget_scripts(self) -> None:
        self._done["flushes"] += 1
        for n in range(20):
            self._after(0.03 * n, self._while_up(self._server.forget_scripts))

    def _change_shares(self) -> None:
        """Pause a tenant, and set a limit, until the next change."""
        if not self._down:
            self._done["changes"] += 1
            self._set_shares(paused=self._choice.choice(["", *TENANTS]), is_limited=self._choice.random() < 0.5)

    def _set_shares(self, *, paused: str, is_limited: bool) -> None:
        with contextlib.suppress(StorageError):
            anyio.run(partial(change_shares, self._server.port, paused=paused, is_limited=is_limited))

    def _look_at_limits(self) -> None:
        """Compare the running tasks of each limit, as the server counts them, with its most."""
        with contextlib.suppress(redis.RedisError):
            for name, number in self._server.client.hgetall("maas:{chaos}:use").items():
                most = CHAOTIC.most_of(name.decode())
                if most is not None and int(number) > most:
                    self._failures.append(Violation("crowded", "", f"{int(number)} tasks of {name.decode()} run"))

    def _while_up(self, action: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self._down else action()

    def _restart_server(self) -> None:
        if self._down:
            self._after(0.2, self._restart_server)
        else:
            self._done["restarts"] += 1
            self._outage(signal.SIGKILL, self._server.start, self._choice.uniform(0, 1.5))

    def _pause_server(self) -> None:
        if not self._down:
            self._done["pauses"] += 1
            self._outage(signal.SIGSTOP, lambda: self._server.signal(signal.SIGCONT), self._choice.uniform(0.5, 4))

    def _outage(self, number: signal.Signals, back: Callable[[], None], seconds: float) -> None:
        self._down = True
        self._history.note("outage")
        self._server.signal(number)

        def up() -> None:
            back()
            self._down = False

        self._after(seconds, up)

    # Afterwards

    def _heal(self) -> None:
        """Undo what is still broken, and let the producers end."""
        while self._later:
            self._later.pop(0)[1]()
        if self._has_shares:
            self._set_shares(paused="", is_limited=False)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and any(producer.poll() is None for producer in self._producers):
            self._tick()  # a poison task may end a worker meanwhile
        for producer in self._producers:
            if producer.returncode != 0:
                log = (self._folder / "producer.log").read_text()
                text = f"a producer ended with {producer.returncode}: {log[-4000:]}"
                self._failures.append(Violation("producer", "", text))

    def _drain(self) -> None:
        """Wait until nothing is left to do, or nothing has ended for a minute."""
        deadline, ended = time.monotonic() + DRAIN_SECONDS, -1
        while time.monotonic() < deadline:
            self._tick()
            stats = anyio.run(read_stats, self._server.port)
            if stats is None:
                continue
            if not stats.pending_count and not stats.processing_count:
                return
            if ended != (ended := stats.completed_count + stats.failed_count + stats.cancelled_count):
                deadline = time.monotonic() + DRAIN_SECONDS

    def _dismiss(self) -> None:
        """End the workers: a drain has nothing to wait for, and succeeds."""
        self._tick()  # the last poison task may have ended its worker, and failed since
        leaving = [*(worker.process for worker in self._workers), *self._leaving]
        for worker in leaving:
            worker.terminate()
        for worker in leaving:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=20)
            if worker.returncode != 0 and not self._never_began(worker):
                self._failures.append(Violation("worker", "", f"the last drain ended with {worker.returncode}"))

    def _judge(self) -> Summary:
        events = self._history.read()
        ids = sorted({event["id"] for event in events if "id" in event})
        finals = anyio.run(read_finals, self._server.port, ids)
        stats = anyio.run(read_stats, self._server.port)
        assert stats is not None
        violations = [*self._failures, *check(events, finals), *self._counts(finals, stats)]
        if self._has_shares:
            violations += [*crowded(events, CHAOTIC), *rushed(events, CHAOTIC), *self._left_of_lanes()]
        log = (self._folder / "worker.log").read_text()
        violations += [Violation("worker", "", line) for line in log.splitlines() if "CRITICAL" in line]
        old = self._processes.old
        mixed = None if old is None else mixture(events, old)
        violations += [] if mixed is None else mixed.check()
        return Summary(
            seed=self._seed,
            statuses=Counter(final.status for final in finals.values()),
            poisoned=sum(final.error in {"lease_lost", "crashed"} for final in finals.values()),
            violations=violations,
            faults=self._done,
            longest_return=max(returns(events, finals), default=0),
            longest_quiet_return=max(returns(events, finals, quiet=True), default=0),
            needless_losses=needless_losses(events, finals),
            mixture=mixed,
        )

    def _left_of_lanes(self) -> Iterator[Violation]:
        """Nothing of tenants and limits is left when all tasks have ended, but settings."""
        try:
            found = lanes.check(self._server.client, 1000 * time.time(), "chaos")
        except AssertionError as error:
            yield Violation("keys", "", str(error))
            return
        for name in ("held", "use", "waiting", "laned"):
            if found.hash(name):
                yield Violation("keys", "", f"{name} has {found.hash(name)}")

    def _counts(self, finals: dict[str, Final], stats: QueueStats) -> list[Violation]:
        """Compare the queue's own numbers, three kinds of them, with its tasks."""
        client, prefix = self._server.client, "maas:{chaos}:"
        names = ("pending", "processing", "completed", "failed", "cancelled")
        counted = {name: getattr(stats, f"{name}_count") for name in names}
        ended = {name: int(client.hget(prefix + "meta", name) or 0) for name in names[2:]}
        indexes = {"completed": 0, "failed": 0, "cancelled": 0}
        indexes |= {name: client.zcard(prefix + name) for name in indexes}
        found = check_counts(finals, counted, "get_queue_stats")
        found += check_counts(finals, ended, "totals")
        found += check_counts(finals, indexes, "indexes")
        of_kinds = [f"k:{kind}:{name}" for kind in FUNCTIONS if kind for name in ("ready", "suspects")]
        for name in ("ready", "suspects", "scheduled", "leases", "external", *of_kinds):
            if client.zcard(prefix + name):
                found.append(Violation("counts", "", f"{name} is not empty: {client.zrange(prefix + name, 0, 5)}"))
        return found
