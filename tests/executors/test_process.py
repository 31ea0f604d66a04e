"""The process executor, with real processes: what a handler does ends its own attempt and nothing else."""

import asyncio
import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import attrs
import child_handlers as handlers
import psutil
import pytest

from maas_backoff.config import ThreadPoolConfig
from maas_backoff.domain.emission import Emission, Part
from maas_backoff.domain.lane import ALL_LIMITS
from maas_backoff.domain.outcome import Failed, HandlerOutcome, Snoozed, Succeeded, Unstarted
from maas_backoff.domain.task import FailedAttempt, TaskEntity, TaskError
from maas_backoff.worker.executors import exits, parent
from maas_backoff.worker.executors.base import Handler
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.starter import ChildStarter

pytestmark = pytest.mark.anyio

LIMIT = 100_000


class FakeCall:
    """One call; keeps what the executor tells."""

    grant = None
    span = None
    earlier: tuple[Part, ...] = ()

    def __init__(self, **params: Any) -> None:
        self.start_before = time.monotonic() + 600
        self.reports: list[tuple[float, str | None]] = []
        self.uses: list[tuple[float | None, Mapping[str, float]]] = []
        self.starts = 0
        self.reported = asyncio.Event()
        self.emitted = Emission(LIMIT, self.earlier, lambda form, text: None)
        self.task = TaskEntity("task-1", "queue", params, receiver=self)

    def started(self) -> None:
        self.starts += 1

    def lingers(self, ended: asyncio.Event) -> None:
        raise AssertionError("a child can always be stopped")

    def progressed(self, _: int, progress: float, message: str | None) -> None:
        self.reports.append((progress, message))
        self.reported.set()

    def used(self, _: int, cost: float | None, limits: Mapping[str, float]) -> None:
        self.uses.append((cost, limits))

    def emission(self, _: int) -> Emission:
        return self.emitted


@asynccontextmanager
async def executor(
    handler: Handler, max_tasks: int | None = None, limit: int = LIMIT, warm: int = 1
) -> AsyncIterator[ProcessExecutor]:
    made = ProcessExecutor(
        handler, ThreadPoolConfig(max_tasks_per_process=max_tasks, warm_children=warm), max_payload_bytes=limit
    )
    try:
        await made.start()
        yield made
    finally:
        await made.aclose()


async def outcome_of(handler: Handler, **params: Any) -> Any:
    async with executor(handler) as made:
        return await made.run(FakeCall(**params))


async def value_of(made: ProcessExecutor, **params: Any) -> Any:
    outcome = await made.run(FakeCall(**params))
    assert isinstance(outcome, Succeeded), outcome
    return json.loads(outcome.result)


def is_gone(pid: int) -> bool:
    """If pid 1 does not reap, dead processes stay as zombies."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


async def until(holds: Callable[[], bool], within: float = 5) -> None:
    with anyio.fail_after(within):
        while not holds():
            await anyio.sleep(0.005)


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Every test ends with the descriptors and the processes that it began with."""
    me = psutil.Process()
    descriptors, children = me.num_fds(), set(me.children())
    yield
    gc.collect()
    assert set(me.children()) <= children
    assert me.num_fds() <= descriptors


class TestWhatComesBack:
    async def test_a_value_completes(self) -> None:
        """A handler's JSON value comes back as the text of it, a ResultEntity.ok as its result."""
        assert await outcome_of(handlers.params, a=[1, None, "ü"]) == Succeeded('{"a":[1,null,"ü"]}')
        assert await outcome_of(handlers.succeeds) == Succeeded('{"a":[1,"ü"]}')

    async def test_the_whole_task_crosses(self) -> None:
        """The handler sees the entity that the worker sees, but for the progress report."""
        now = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
        attempt = FailedAttempt(1, now, now, "host:1", TaskError("ValueError", "x", 3), "trace")
        call = FakeCall()
        call.task = TaskEntity(
            "id", "q", {"a": 1}, started_at=now, error=TaskError("timeout", "t"), attempts=(attempt,), token=2**53 - 1
        )
        in_a_lane = FakeCall()
        in_a_lane.task = attrs.evolve(
            call.task, tenant="acme", cost=2.5, limits=MappingProxyType({"openai": 1200.0, "user:7": 1.0})
        )
        async with executor(handlers.whole_task) as made:
            for one in (call, in_a_lane):
                outcome = await made.run(one)
                assert isinstance(outcome, Succeeded)
                assert TaskEntity.from_dict(json.loads(outcome.result)) == one.task

    async def test_a_coroutine_runs_on_the_childs_own_loop(self) -> None:
        """All coroutine handlers of a child share one loop."""
        async with executor(handlers.on_a_loop) as made:
            first = await value_of(made)
            assert first == await value_of(made)
            assert first[0] != os.getpid()

    async def test_methods_without_an_instance(self) -> None:
        """Class methods, also inherited ones, and static methods are called as what they are."""
        assert await outcome_of(handlers.Heir.named) == Succeeded('"Heir"')
        assert await outcome_of(handlers.Methods.still) == Succeeded('"static"')
        assert await outcome_of(handlers.decorated) == Succeeded('["wrapped","inner"]')

    async def test_fail(self) -> None:
        """ResultEntity.fail is a failure that was not raised."""
        assert await outcome_of(handlers.fails) == Failed(TaskError("failed", "no model", 7))

    async def test_a_code_that_is_not_json(self) -> None:
        """It is a failure without a code, and the child lives."""
        async with executor(handlers.strange_fail) as made:
            outcome = await made.run(FakeCall())
            assert isinstance(outcome, Failed)
            assert (outcome.error.type, outcome.error.code) == ("failed", None)

    @pytest.mark.parametrize("handler", [handlers.raises, handlers.raises_on_a_loop])
    async def test_whatever_is_raised_is_an_outcome(self, handler: Handler) -> None:
        """Exceptions of every kind, and signals of the library; the child that raised them goes on."""
        async with executor(handler) as made:

            async def raised(what: str) -> Any:
                return await made.run(FakeCall(what=what))

            assert await raised("retry") == Failed(TaskError("Retry", "later"), retry_after=5, requested=True)
            assert await raised("snooze") == Snoozed(7)
            assert await raised("limited") == Snoozed(20, (("openai", 20), (ALL_LIMITS, 3)))
            assert await raised("discard") == Failed(TaskError("discarded", "useless"), permanent=True)
            comebacks = ("retry", "snooze", "limited")
            types = {what: (await raised(what)).error.type for what in handlers.RAISED if what not in comebacks}
            broken, long = await raised("value"), await raised("long")
            assert broken.error == TaskError("ValueError", "broken")
            assert "raise error" in broken.traceback
            assert broken.raised
            assert len(long.error.message) == 8192
            assert (await raised("hostile")).error.message == "<unprintable HostileError>"
            assert types == {
                "value": "ValueError",
                "discard": "discarded",
                "exit": "SystemExit",
                "interrupt": "KeyboardInterrupt",
                "cancelled": "CancelledError",
                "generator": "GeneratorExit",
                "stop": "RuntimeError" if handler is handlers.raises_on_a_loop else "StopIteration",
                "group": "BaseExceptionGroup",
                "hostile": "HostileError",
                "long": "ValueError",
                "surrogate": "ValueError",
            }
            assert len(made.pool._children) == 1

    @pytest.mark.parametrize("handler", [handlers.returns_what_json_cannot_hold, handlers.returns_a_generator])
    async def test_a_result_that_is_not_json(self, handler: Handler) -> None:
        """Such a result fails the task for good: the same code would return it again."""
        outcome = await outcome_of(handler)
        assert outcome.error.type == "not_serializable"
        assert outcome.permanent

    async def test_the_size_of_a_result(self) -> None:
        """A result may have the limit, quoted or not, and no byte more."""
        async with executor(handlers.returns_much) as made:
            assert len(await value_of(made, size=LIMIT - 2)) == LIMIT - 2
            outcome = await made.run(FakeCall(size=LIMIT - 1))
            assert outcome == Failed(
                TaskError("not_serializable", f"result: expected at most {LIMIT} bytes of JSON, got {LIMIT + 1}"),
                permanent=True,
            )
        async with executor(handlers.returns_quotes, limit=3_000_001) as made:
            assert len(await value_of(made, count=1_000_000)) == 1_000_000

    async def test_large_params(self) -> None:
        """Params that do not fit into a socket's buffer cross whole, also above this worker's limit."""
        assert await outcome_of(handlers.counts, text="é" * 3_000_000) == Succeeded("3000000")

    @pytest.mark.parametrize(
        ("handler", "error"), [(handlers.recurses, "RecursionError"), (handlers.out_of_memory, "MemoryError")]
    )
    async def test_exhaustion(self, handler: Handler, error: str) -> None:
        """Running out of stack or of memory is an exception like any other."""
        assert (await outcome_of(handler)).error.type == error


class TestProgress:
    async def test_progress_arrives_in_order_and_before_the_outcome(self) -> None:
        """Reports from the handler and from its threads reach the worker's entity; texts are cut, not refused."""
        call = FakeCall()
        async with executor(handlers.progresses) as made:
            assert await made.run(call) == Succeeded('"done"')
        first, second, third = call.reports
        assert (first, third) == ((10, None), (90, "thread"))
        assert second[0] == 55.5
        assert second[1] is not None
        assert len(second[1]) == 2000

    async def test_a_wrong_value_is_the_handlers_error(self) -> None:
        """The handler that reports 101 % hears of it, and nobody else."""
        assert (await outcome_of(handlers.progresses_too_far)).error.type == "InvalidValueError"

    async def test_progress_of_a_call_that_is_over(self) -> None:
        """An entity that was kept from an earlier call reports nothing for a later one."""
        async with executor(handlers.progresses_late) as made:
            for _ in range(3):
                call = FakeCall()
                assert await made.run(call) == Succeeded("null")
                assert call.reports == []

    async def test_what_an_attempt_has_used_arrives_as_it_was_reported(self) -> None:
        """From the handler and its threads. A wrong report is the handler's error, and goes no further."""
        call = FakeCall()
        call.task = attrs.evolve(call.task, tenant="acme", limits={"openai": 100})
        async with executor(handlers.uses) as made:
            assert await made.run(call) == Succeeded('"done"')
            in_no_lane = FakeCall()
            assert await made.run(in_no_lane) == Succeeded('"done"')
        assert call.uses == [(3, {"openai": 10}), (None, {"openai": 830})]
        assert in_no_lane.uses == []


class TestOutput:
    async def test_output_is_logged_under_its_task(self, caplog: pytest.LogCaptureFixture) -> None:
        """The output of the handler, its C code and its programs comes to the log by lines, and disturbs nothing."""
        caplog.set_level(logging.INFO, "maas_backoff.output")
        async with executor(handlers.prints) as made:
            assert await made.run(FakeCall()) == Succeeded('"printed"')
            lines = [record.getMessage() for record in caplog.records if record.name == "maas_backoff.output"]
            assert lines == [
                "to stdout",
                "to stderr",
                "\x00\x00\x00\x02{}",
                "from a shell",
                "\\xff",
                "10 %",
                "20 %",
                "y" * 8192,
                "y" * (10_000 - 8192),
                "no newline",
            ]
            (child,) = made.pool._children
            assert {(record.task_id, record.child_pid) for record in caplog.records} == {("task-1", child.pid)}

    async def test_much_output(self, caplog: pytest.LogCaptureFixture) -> None:
        """A handler that prints more than the pipe holds waits for its reader, and loses nothing."""
        caplog.set_level(logging.INFO, "maas_backoff.output")
        assert await outcome_of(handlers.prints_much) == Succeeded('"printed"')
        assert [record.getMessage() for record in caplog.records] == [f"{number:0100}" for number in range(1000)]

    async def test_last_words(self, caplog: pytest.LogCaptureFixture) -> None:
        """The output of a child before it dies is logged, too."""
        caplog.set_level(logging.INFO, "maas_backoff.output")
        assert (await outcome_of(handlers.dies_with_a_full_pipe)).error.message == "child process exited with code 4"
        assert [record.getMessage() for record in caplog.records] == ["last words"]


class TestCrashes:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("segfault", "child process was killed by SIGSEGV"),
            ("abort", "child process was killed by SIGABRT"),
            ("real-time signal", f"child process was killed by signal {signal.SIGRTMIN + 1}"),
            ("kill", "child process was killed by SIGKILL, probably by the out-of-memory killer"),
            ("exit", "child process exited with code 3"),
            ("exit 0", "child process exited with code 0"),
        ],
    )
    async def test_a_crash_is_told_by_name_and_the_next_task_runs(self, how: str, message: str) -> None:
        """A dead child is an outcome; the next call gets another child."""
        async with executor(handlers.dies) as made:
            assert await made.run(FakeCall(how=how)) == Failed(TaskError("crashed", message), raised=True)
            assert await value_of(made, how="not")

    async def test_a_crash_leaves_the_others_alone(self) -> None:
        """Two calls have two children, and the end of one is not the other's."""
        neighbour = FakeCall()
        async with executor(handlers.blocks) as blocking, executor(handlers.dies) as dying:  # noqa: SIM117 - too long
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(blocking.run, neighbour)
                await neighbour.reported.wait()
                outcomes = [await dying.run(FakeCall(how="segfault")) for _ in range(2)]
                assert all("SIGSEGV" in outcome.error.message for outcome in outcomes)
                assert not is_gone(int(neighbour.reports[0][1].split()[0]))
                tasks.cancel_scope.cancel()

    async def test_a_complete_outcome_beats_the_exit(self) -> None:
        """A child that dies right after its answer has answered; it is not asked again."""
        async with executor(handlers.dies_after_a_task) as made:
            first = await value_of(made)
            await until(lambda: is_gone(first))
            assert await value_of(made) != first

    async def test_an_answer_that_was_sent_counts_although_its_child_was_killed_before_it_was_read(self) -> None:
        """The event loop of a worker may be busy while the kernel's memory killer ends the child."""
        async with executor(handlers.pid) as made:
            (child,) = made.pool._children
            loop, end = asyncio.get_running_loop(), child._connection._end
            loop.remove_reader(end)
            call, outcomes = FakeCall(), list[HandlerOutcome]()

            async def run() -> None:
                outcomes.append(await made.run(call))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await until(lambda: bool(select.select([end], [], [], 0)[0]))
                os.kill(child.pid, signal.SIGKILL)
            assert outcomes == [Succeeded(str(child.pid))]
            assert made.pool._idle == []

    @pytest.mark.parametrize("handler", [handlers.fork_stays, handlers.program_stays])
    async def test_a_process_that_stays_hides_no_crash(self, handler: Handler, tmp_path: Path) -> None:
        """A daemon that holds copies of the child's descriptors does not keep the call from ending."""
        file = tmp_path / "pid"
        outcome = await outcome_of(handler, file=str(file))
        os.kill(int(file.read_text()), signal.SIGKILL)
        assert outcome.error.message == "child process exited with code 5"

    @pytest.mark.parametrize("handler", [handlers.forks, handlers.forks_on_a_loop])
    async def test_a_forked_process_cannot_answer(self, handler: Handler) -> None:
        """os.fork() and return in both: the value of the child counts, the forked process ends."""
        async with executor(handler) as made:
            for _ in range(3):
                call = FakeCall()
                assert await made.run(call) == Succeeded('"from the child"')
                assert call.reports == []

    async def test_stop_signals_are_the_parents_business(self) -> None:
        """systemd's SIGTERM to every process does not stop a child, but a handler can stop what it starts."""
        assert await outcome_of(handlers.survives_sigterm) == Succeeded('"alive"')
        assert await outcome_of(handlers.forked_can_be_terminated) == Succeeded("[15,15]")


class TestMischief:
    @pytest.mark.parametrize("fds", [[0], [1], [2], [0, 1, 2]])
    async def test_closed_standard_streams(self, fds: list[int]) -> None:
        """The outcome counts; the next task gets a child whose streams are open."""
        async with executor(handlers.closes) as made:
            first = await value_of(made, fds=fds)
            assert await value_of(made, fds=[]) != first

    async def test_a_closed_socket(self) -> None:
        """A child that has cut the line is killed: its outcome could never arrive."""
        started = time.monotonic()
        outcome = await outcome_of(handlers.closes_everything)
        assert outcome.error == TaskError("crashed", "child process closed its connection")
        assert time.monotonic() - started < 10

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("Q" * 8, "child process sent a frame of 1364283729 bytes, at most 7340032 are accepted"),
            ("\0\0\0\x03abc", "child process sent a frame that is not JSON"),
            ("\0\0\0\x02[]", "child process sent a frame that is not a JSON object"),
        ],
    )
    async def test_noise_on_the_socket(self, text: str, message: str) -> None:
        """Bytes that are no frame, or too many for one, are an error at once and never a hang."""
        outcome = await outcome_of(handlers.writes_to_every_socket, text=text)
        assert outcome.error.message.startswith(message)

    async def test_the_working_directory_comes_back(self) -> None:
        """A handler that changes directory does so for its own call."""
        async with executor(handlers.moves) as made:
            assert [await value_of(made), await value_of(made)] == [str(Path.cwd())] * 2

    async def test_a_handler_that_cancels_its_own_task(self) -> None:
        """Its value counts."""
        assert isinstance(await outcome_of(handlers.cancels_itself), Succeeded)

    @pytest.mark.parametrize("handler", [handlers.stops_its_loop, handlers.child_task_exits])
    async def test_a_broken_loop(self, handler: Handler) -> None:
        """The attempt fails, and the child whose loop it was is not asked again."""
        async with executor(handler) as made:
            assert (await made.run(FakeCall())).error.type in ("RuntimeError", "SystemExit")
            assert made.pool._idle == []


class TestCancel:
    async def test_a_cancelled_call_leaves_no_process(self) -> None:
        """Deaf to SIGTERM, in C code, with a program of its own: gone in less than a second, before run() ends."""
        call = FakeCall()
        async with executor(handlers.blocks) as made:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.run, call)
                await call.reported.wait()
                started = time.monotonic()
                tasks.cancel_scope.cancel()
            assert time.monotonic() - started < 1
            child, program = map(int, call.reports[0][1].split())
            assert is_gone(child)
            await until(lambda: is_gone(program), 1)
            assert made.pool._idle == []

    async def test_a_native_cancel_that_is_repeated(self) -> None:
        """task.cancel() goes through anyio's shields; the child is reaped all the same."""
        call = FakeCall()
        async with executor(handlers.blocks) as made:
            task = asyncio.create_task(made.run(call))
            await call.reported.wait()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert is_gone(int(call.reports[0][1].split()[0]))

    async def test_cancelled_while_a_child_starts(self) -> None:
        """A spawn that is cancelled at any moment leaks neither process nor descriptor."""
        async with executor(handlers.waits) as made:
            made.pool._idle.pop().dismiss()
            for delay in (0, 0.001, 0.02, 0.05, 0.1):
                with anyio.move_on_after(delay) as scope:
                    await made.run(FakeCall())
                assert scope.cancelled_caught

    async def test_cancelled_while_a_request_is_sent(self) -> None:
        """A child that does not read holds up nobody."""
        async with executor(handlers.params) as made:
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGSTOP)
            with anyio.move_on_after(0.1) as scope:
                await made.run(FakeCall(text="x" * 5_000_000))
            assert scope.cancelled_caught
            assert is_gone(child.pid)

    async def test_a_child_that_dies_while_a_request_is_sent(self) -> None:
        """It cannot have begun: another child takes the call."""
        async with executor(handlers.params, limit=6_000_000) as made:
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGSTOP)
            asyncio.get_running_loop().call_later(0.1, os.kill, child.pid, signal.SIGKILL)
            assert await value_of(made, text="x" * 5_000_000) == {"text": "x" * 5_000_000}


class TestChildren:
    async def test_a_child_is_used_again(self) -> None:
        """Calls that follow each other share a child; it is started before the first."""
        async with executor(handlers.pid) as made:
            assert len({await value_of(made) for _ in range(5)}) == 1
            assert len(made.pool._children) == 1

    async def test_calls_at_the_same_time_have_a_child_each(self) -> None:
        """One call at a time in each child; `started` is told once for each call."""
        calls = [FakeCall(), FakeCall()]
        async with executor(handlers.blocks) as made, anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(made.run, call)
            for call in calls:
                await call.reported.wait()
            assert len({call.reports[0][1] for call in calls}) == 2
            assert [call.starts for call in calls] == [1, 1]
            tasks.cancel_scope.cancel()

    async def test_recycling(self) -> None:
        """A child is replaced after its number of tasks, and ends by itself."""
        async with executor(handlers.pid, max_tasks=2) as made:
            pids = [await value_of(made) for _ in range(6)]
            assert pids[0::2] == pids[1::2]
            assert len(set(pids)) == 3
            await until(lambda: all(map(is_gone, pids)))

    async def test_an_idle_child_that_died_costs_no_attempt(self) -> None:
        """It is noticed before it is asked."""
        async with executor(handlers.pid) as made:
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGKILL)
            await until(lambda: is_gone(child.pid))
            assert await value_of(made) != child.pid

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not say what was left unread")
    async def test_a_child_that_dies_before_it_takes_its_task_costs_no_attempt(self) -> None:
        """It was stopped when it was asked, as one is whose memory the kernel takes back: a new one is asked."""
        call = FakeCall()
        async with executor(handlers.pid) as made, anyio.create_task_group() as tasks:
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGSTOP)
            outcomes: list[HandlerOutcome] = []

            async def run() -> None:
                outcomes.append(await made.run(call))

            tasks.start_soon(run)
            await until(lambda: call.starts == 1)
            os.kill(child.pid, signal.SIGKILL)
            await until(lambda: bool(outcomes))
        assert isinstance(outcomes[0], Succeeded)
        assert int(outcomes[0].result) != child.pid

    async def test_what_a_thread_of_an_earlier_call_reports_is_not_the_next_ones(self) -> None:
        """Sent when its call was over already, as far as the child could not know."""
        call = FakeCall()
        async with executor(handlers.reports_as_if_of_an_earlier_call) as made:
            await value_of(made)
            assert isinstance(await made.run(call), Succeeded)
        assert call.reports == []

    async def test_a_child_that_is_reaped_is_not_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process may have its number by now."""
        async with executor(handlers.pid) as made:
            (child,) = made.pool._children
            child.kill()
            await child.ended()
            killed = list[int]()
            monkeypatch.setattr(os, "killpg", lambda pid, _: killed.append(pid))
            child.kill()
            assert killed == []

    async def test_a_child_that_does_not_end_by_itself_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """aclose() takes no longer than the grace."""
        monkeypatch.setattr(parent, "GRACE", 0.2)
        async with executor(handlers.pid) as made:
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGSTOP)
            started = time.monotonic()
            await made.aclose()
            assert 0.2 <= time.monotonic() - started < 1
            assert is_gone(child.pid)

    async def test_without_pidfd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without pidfd in the kernel, ends are noticed all the same."""
        monkeypatch.setattr(exits, "_pidfd", lambda _: None)
        async with executor(handlers.dies) as made:
            assert "SIGSEGV" in (await made.run(FakeCall(how="segfault"))).error.message
            assert await value_of(made, how="not")

    async def test_no_room_for_a_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a child cannot be started, the task is not to blame, and no descriptor is lost."""

        def full(*_: object, **__: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        async with executor(handlers.pid) as made:
            made.pool._idle.pop().dismiss()
            monkeypatch.setattr(subprocess, "Popen", full)
            assert await made.run(FakeCall()) == Unstarted()
            assert "could not be started: [Errno 11]" in str(made.setback.trouble)

    async def test_a_child_that_does_not_get_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is killed, and the task goes back unharmed."""
        async with executor(handlers.pid) as made:
            made.pool._idle.pop().dismiss()
            monkeypatch.setattr(made._starter, "_start_timeout", 0.01)
            assert await made.run(FakeCall()) == Unstarted()
            assert "child process was not ready within 0.01 s" in str(made.setback.trouble)

    async def test_a_child_that_dies_in_its_set_up(self) -> None:
        """The handler has not begun: the task goes back unharmed, and the next start ends the setback."""
        async with executor(handlers.pid) as made:
            made.pool._idle.pop().dismiss()
            outcomes: list[HandlerOutcome] = []

            async def run() -> None:
                outcomes.append(await made.run(FakeCall()))

            known = set(made.pool._children)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await until(lambda: len(made.pool._children - known) == 1)
                (child,) = made.pool._children - known
                os.kill(child.pid, signal.SIGKILL)
            assert outcomes == [Unstarted()]
            assert "killed by SIGKILL" in str(made.setback.trouble)
            assert "before it was ready" in str(made.setback.trouble)
            await made.warm_up()
            assert made.setback.trouble is None
            assert await value_of(made)

    async def test_a_new_child_that_dies_before_it_reads_a_small_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No task can have killed it: it costs no attempt. One that was too large to be read may have."""
        start = ChildStarter.start

        async def stopped(self: ChildStarter, *arguments: Any, **options: Any) -> parent.Child:
            child = await start(self, *arguments, **options)
            os.kill(child.pid, signal.SIGSTOP)
            asyncio.get_running_loop().call_later(0.1, os.kill, child.pid, signal.SIGKILL)
            return child

        async with executor(handlers.counts) as made:
            made.pool._idle.pop().dismiss()
            monkeypatch.setattr(ChildStarter, "start", stopped)
            assert await made.run(FakeCall(text="x")) == Unstarted()
            large = await made.run(FakeCall(text="x" * 5_000_000))
            assert isinstance(large, Failed)
            assert large.error.type == "crashed"

    async def test_no_call_begins_too_late(self) -> None:
        """Neither after a start that took long, nor in a child that reads its request too late; the child is kept."""
        async with executor(handlers.pid) as made:
            late = FakeCall()
            late.start_before = time.monotonic()
            assert await made.run(late) == Unstarted()
            assert late.starts == 0
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGSTOP)
            stands_still = FakeCall()
            stands_still.start_before = time.monotonic() + 0.3
            asyncio.get_running_loop().call_later(0.5, os.kill, child.pid, signal.SIGCONT)
            assert await made.run(stands_still) == Unstarted()
            assert stands_still.starts == 1
            assert await value_of(made) == child.pid

    async def test_children_are_warmed_up(self) -> None:
        """As many as were asked for; a task that comes meanwhile takes the one that is being started."""
        async with executor(handlers.pid, warm=2) as made:
            (first,) = made.pool._children
            assert made.lacks_child
            first.kill()
            await first.ended()
            answers: list[Any] = []

            async def run() -> None:
                answers.append(await value_of(made))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.warm_up)
                await until(lambda: len(made.pool._children) == 1)
                tasks.start_soon(run)
            (second,) = made.pool._children
            assert answers == [second.pid]
            await made.warm_up()
            assert not made.lacks_child
            assert len(made.pool._idle) == 2
            assert len({await value_of(made) for _ in range(3)}) == 1

    async def test_a_task_that_waits_for_a_child_goes_back_if_the_child_cannot_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It does not try once more at once: what one child lacks, the next one lacks as well."""
        async with executor(handlers.pid) as made:
            made.pool._idle.pop().dismiss()
            monkeypatch.setattr(made._starter, "_start_timeout", 0.01)
            known, outcomes = set(made.pool._children), list[HandlerOutcome]()
            await _warm_up_and_run(made, outcomes)
            assert outcomes == [Unstarted()]
            assert len(made.pool._children - known) == 1
            assert "was not ready within 0.01 s" in str(made.setback.trouble)

    async def test_a_task_that_waits_for_a_child_outlives_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The child is killed when it is ready, before it is asked: the task starts another one."""
        start, killed = ChildStarter.start, list[int]()

        async def killing(self: ChildStarter, *arguments: Any, **options: Any) -> parent.Child:
            child = await start(self, *arguments, **options)
            if not killed:
                killed.append(child.pid)
                child.kill()
                await child.ended()
            return child

        async with executor(handlers.pid) as made:
            made.pool._idle.pop().dismiss()
            monkeypatch.setattr(ChildStarter, "start", killing)
            outcomes = list[HandlerOutcome]()
            await _warm_up_and_run(made, outcomes)
            (outcome,) = outcomes
            assert isinstance(outcome, Succeeded) and int(outcome.result) not in killed
            assert made.setback.trouble is None

    async def test_a_start_that_began_before_the_last_failure_ends_no_setback(self) -> None:
        """Another one could not be started meanwhile; the worker goes on to try, and to say so."""
        async with executor(handlers.pid, warm=3) as made:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.warm_up)
                await until(lambda: len(made.pool._children) == 2)
                made.setback.failed("no room for another one")
            assert len(made.pool._idle) == 2
            assert made.setback.trouble is not None
            assert made.setback.begun.is_set()
            await made.warm_up()
            assert made.setback.trouble is None

    async def test_a_child_is_missed_when_it_ends(self) -> None:
        """One that ends before any task has used it is told apart: those after it may end as well."""
        async with executor(handlers.dies) as made:
            made.lacking.clear()
            await made.run(FakeCall(how="exit"))
            assert made.lacking.is_set()
            assert made.lacks_child
            assert not made.unused_ended()
            await made.warm_up()
            (child,) = made.pool._idle
            os.kill(child.pid, signal.SIGKILL)
            await child.ended()
            assert made.unused_ended()
            assert not made.unused_ended()

    async def test_the_parents_death_is_the_childs(self, tmp_path: Path) -> None:
        """When a worker is killed by SIGKILL, no child stays, not even one that is busy in C code."""
        script = tmp_path / "worker.py"
        script.write_text(WORKER)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        worker = await anyio.open_process([sys.executable, str(script)], stderr=None, env=environment)
        assert worker.stdout is not None
        child, program = map(int, (await worker.stdout.receive()).split())
        assert not is_gone(child)
        worker.kill()
        await worker.wait()
        await worker.aclose()
        await until(lambda: is_gone(child), 2)
        os.kill(program, signal.SIGKILL)


async def _warm_up_and_run(made: ProcessExecutor, outcomes: list[HandlerOutcome]) -> None:
    """Run a call that comes while a child is being started, and waits for that child."""

    async def run() -> None:
        outcomes.append(await made.run(FakeCall()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.warm_up)
        await until(lambda: made._warming is not None)
        tasks.start_soon(run)
        await until(lambda: made._warming is None or made._warming.awaited)


WORKER = """
import asyncio, time, child_handlers
from maas_backoff.config import ThreadPoolConfig
from maas_backoff.domain.task import TaskEntity
from maas_backoff.worker.executors.process import ProcessExecutor

class Call:
    grant = None
    span = None
    start_before = time.monotonic() + 600
    earlier = ()
    def started(self): pass
    def progressed(self, _, progress, message): print(message, flush=True)

Call.task = TaskEntity("id", "q", {}, receiver=Call())

async def main():
    executor = ProcessExecutor(child_handlers.blocks, ThreadPoolConfig(warm_children=1), max_payload_bytes=1000)
    await executor.start()
    await executor.run(Call())

asyncio.run(main())
"""
