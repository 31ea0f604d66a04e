"""Kinds of tasks, from a typed call to a typed result."""

import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
import kinds_for_children
import kinds_on_gpus
import pytest
from support import Server, eventually, quick_config

from maas_backoff import (
    ConfigError,
    HandlerError,
    InvalidValueError,
    PayloadError,
    ResultEntity,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConflictError,
    TaskEntity,
    TaskFailedError,
    TaskHandle,
    TaskNotFoundError,
    TaskSpec,
    TaskStatus,
    TaskTimeoutError,
    current_task,
)
from maas_backoff.testing import FakeGpu, FakeGpuProbe, SimulatedScheduler
from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.lease import Lease

pytestmark = pytest.mark.anyio


@dataclass
class Image:
    url: str
    at: datetime
    sizes: tuple[int, int] = (1, 1)
    tags: list[str] = field(default_factory=list)


MOMENT = datetime(2026, 5, 4, tzinfo=UTC)


async def test_a_typed_call_becomes_a_typed_result(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def render(image: Image, *, steps: int = 20, at: datetime | None = None) -> list[Image]:
        assert isinstance(image, Image) and isinstance(at, datetime)
        return [image, Image(str(steps), at)]

    async with scheduler:
        handle = await render.create(Image("a", MOMENT, tags=["x"]), at=MOMENT)
        assert await handle.result(30) == [Image("a", MOMENT, tags=["x"]), Image("20", MOMENT)]
        task = await handle.task()
    assert task.kind == "render" and await handle.status() is TaskStatus.COMPLETED
    # A default is not stored: that of the function that runs the task counts.
    stored = {"url": "a", "at": "2026-05-04T00:00:00+00:00", "sizes": [1, 1], "tags": ["x"]}
    assert task.task_params == {"image": stored, "at": "2026-05-04T00:00:00+00:00"}


async def test_kinds_run_beside_each_other_and_beside_the_nameless_kind(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def on_loop(n: int) -> tuple[str, bool]:
        return f"loop {n}", threading.current_thread() is threading.main_thread()

    @scheduler.task(name="in-a-thread")
    def plain(task: TaskEntity, /, n: int) -> tuple[str, bool]:
        found = current_task()
        assert found is not None and found.task_id == task.task_id
        return f"thread {n}", threading.current_thread() is threading.main_thread()

    @scheduler.task
    def also_plain() -> None: ...

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> object:
        return [task.kind, task.task_params]

    async with scheduler:
        first, second, third = await on_loop.create(1), await plain.create(2), await also_plain.create()
        fourth = await scheduler.create_task({"x": 1})
        assert await first.result(30) == ("loop 1", True)
        assert await second.result(30) == ("thread 2", False)
        assert await third.result(30) is None
        assert (await scheduler.wait_task(fourth, 30)).result == ["", {"x": 1}]
    assert plain.name == (await second.task()).kind == "in-a-thread"


async def test_a_kind_is_found_by_its_name(scheduler: TaskBackoffScheduler) -> None:
    """For a program that has the name as text."""

    @scheduler.task
    async def render(prompt: str) -> str:
        return prompt.upper()

    assert scheduler.kinds == ("render",)
    scheduler.set_custom_task_handler(lambda task: None)
    assert scheduler.kinds == ("", "render")
    async with scheduler:
        handle = await scheduler.kind("render").options(task_id="x").create(prompt="cat")
        assert await handle.result(30) == "CAT"
        assert await render.handle("x").result(30) == "CAT"
    for name in ("", "upscale", None, []):
        with pytest.raises(InvalidValueError, match=r"kind: expected the name of a declared kind \(render\)"):
            scheduler.kind(name)  # type: ignore[arg-type] - wrong on purpose
    with pytest.raises(InvalidValueError, match="there is none"):
        TaskBackoffScheduler().kind("render")


async def test_many_are_created_in_one_call(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def double(n: int) -> int:
        return 2 * n

    @scheduler.task
    async def other(n: int) -> int:
        return n

    specs = [double.spec(1), double.options(task_id="two", priority=-5).spec(n=2)]
    handles = await double.create_many(specs)
    assert handles[1].task_id == "two" and (await handles[1].task()).priority == -5
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == [2, 4]
    with pytest.raises(InvalidValueError, match=r"specs\[1\]: expected a result of `spec` of the kind 'double', got"):
        await double.create_many([specs[0], other.spec(1)])  # type: ignore[list-item] - wrong on purpose
    with pytest.raises(
        InvalidValueError, match="specs: expected a list of results of `spec` of the kind 'double', got"
    ):
        await double.create_many(double.spec(1))  # type: ignore[arg-type] - wrong on purpose


@pytest.mark.parametrize("is_finished", [False, True])
async def test_an_id_stands_for_a_task_of_one_kind(scheduler: TaskBackoffScheduler, is_finished: bool) -> None:
    """Equal params of another kind are another work: nothing of it is taken for done."""

    @scheduler.task
    async def draw(prompt: str) -> str:
        return prompt

    @scheduler.task
    async def count(prompt: str) -> str:
        return f"{len(prompt)}"

    handle = await draw.options(task_id="x").create("cat")
    if is_finished:
        await scheduler.mark_task_completed("x", "cat")
    for again in (
        lambda: count.options(task_id="x").create("cat"),
        lambda: count.options(task_id="x", tenant="acme").create("cat"),
        lambda: scheduler.create_task({"prompt": "cat"}, "x"),
        lambda: scheduler.create_tasks([TaskSpec({"prompt": "cat"}, "x"), TaskSpec({"prompt": "cat"}, "y")]),
    ):
        with pytest.raises(
            TaskConflictError, match="expected a new id, or the kind and the params it was created with"
        ):
            await again()
    assert (await draw.options(task_id="x", tenant="acme").create("cat")).task_id == handle.task_id
    assert await scheduler.create_task({"prompt": "cat"}, "y") == "y"
    with pytest.raises(TaskConflictError):
        await count.options(task_id="y").create("cat")
    made = [draw.options(task_id="z").spec("cat"), draw.options(task_id="z").spec("cat")]
    assert [one.task_id for one in await draw.create_many(made)] == ["z", "z"]


async def test_an_id_makes_a_create_idempotent(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def double(n: int) -> int:
        return 2 * n

    once = double.options(task_id="x")
    assert (await once.create(1)).task_id == (await once.create(1)).task_id == "x"
    with pytest.raises(TaskConflictError):
        await once.create(2)
    async with scheduler:
        # Another process has the id only.
        assert await double.handle("x").result(30) == 2


WRONG_CALLS: list[tuple[tuple[object, ...], dict[str, object], str]] = [
    ((), {}, 'render: expected the arguments (prompt: str, *, steps: int = 20), got "missing a required argument'),
    (("a", 3), {}, "render: expected the arguments (prompt: str, *, steps: int = 20), got 'too many positional"),
    (("a",), {"stps": 3}, 'render: expected the arguments (prompt: str, *, steps: int = 20), got "got an unexpected'),
    (("a",), {"prompt": "b"}, 'render: expected the arguments (prompt: str, *, steps: int = 20), got "multiple values'),
    ((3,), {}, "render.prompt: expected text, got int"),
    (("a",), {"steps": "secret"}, "render.steps: expected a whole number, got str"),
    (("\ud800",), {}, "render.prompt: expected text that UTF-8 can hold (no lone surrogates), got str"),
]


@pytest.mark.parametrize(("args", "kwargs", "message"), WRONG_CALLS, ids=[one[2] for one in WRONG_CALLS])
async def test_wrong_arguments_create_nothing(
    scheduler: TaskBackoffScheduler, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    @scheduler.task
    async def render(prompt: str, *, steps: int = 20) -> None: ...

    with pytest.raises(InvalidValueError) as caught:
        await render.create(*args, **kwargs)
    assert str(caught.value).startswith(message)
    assert caught.value.http_status == 422
    assert (await scheduler.get_queue_stats()).pending_count == 0


async def test_params_that_do_not_fit_the_function_any_more_fail_the_task_at_once(
    server: Server, config: TaskBackoffConfig
) -> None:
    before, now = TaskBackoffScheduler(config), TaskBackoffScheduler(config)
    ran: list[str] = []

    @before.task(name="render")
    async def as_before(prompt: str, steps: str = "") -> None: ...

    @now.task(name="render")
    async def as_now(prompt: str, steps: int = 1) -> None:
        ran.append(prompt)

    fits = await as_before.create("a cat")
    misfits = [await as_before.create("a cat", "secret"), await before_renaming(config).create(text="secret")]
    async with now:
        await now.wait_task(fits.task_id, 30)
        for handle, message in zip(
            misfits,
            [
                "render.steps: expected a whole number, got str",
                "render.text: expected no argument: this worker's function has no such parameter, got str",
            ],
            strict=True,
        ):
            task = await now.wait_task(handle.task_id, 30)
            assert (task.status, task.attempt) == (TaskStatus.FAILED, 1)
            assert task.error is not None and (task.error.type, task.error.message) == ("bad_arguments", message)
            with pytest.raises(TaskFailedError, match=r"is failed: bad_arguments: render\.") as caught:
                await handle.result()
            assert caught.value.status == "failed"
    assert ran == ["a cat"]
    await before.shutdown()


def before_renaming(config: TaskBackoffConfig) -> Any:
    @TaskBackoffScheduler(config).task
    async def render(text: str) -> None: ...

    return render


async def test_a_result_of_another_type_fails_the_task_at_once(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def render() -> int:
        return "secret"  # type: ignore[return-value] - wrong on purpose

    async with scheduler:
        handle = await render.create()
        with pytest.raises(TaskFailedError, match="not_serializable: result: expected a whole number, got str"):
            await handle.result(30)
    assert (await handle.task()).attempt == 1


async def test_a_handle_raises_what_a_wait_raises(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def render() -> int:
        return 3

    handle = await render.create()
    assert repr(handle) == f"<TaskHandle of {handle.task_id!r}>"
    with pytest.raises(TaskTimeoutError):
        await handle.result(0.01)
    assert await handle.cancel() and await handle.status() is TaskStatus.CANCELLED
    with pytest.raises(TaskFailedError, match=r"is cancelled \(requested\)") as cancelled:
        await handle.result(30)
    assert cancelled.value.cancel_reason == "requested"
    for call in (render.handle("unknown").result, render.handle("unknown").status):
        with pytest.raises(TaskNotFoundError):
            await call()


async def test_a_result_that_a_newer_function_returned_is_refused(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def render() -> int:
        return 3

    handle = await render.create()
    await scheduler.mark_task_completed(handle.task_id, "three")
    with pytest.raises(PayloadError, match="result: expected a whole number, got str") as caught:
        await handle.result(30)
    assert caught.value.http_status == 500


# Policies


async def test_each_kind_has_a_policy_of_its_own(scheduler: TaskBackoffScheduler) -> None:
    attempts: list[str] = []

    @scheduler.task(max_retry_count=0)
    async def once() -> None:
        attempts.append("once")
        raise OSError

    @scheduler.task(max_retry_count=2, backoff_interval=0.01)
    async def thrice() -> None:
        attempts.append("thrice")
        raise OSError

    async with scheduler:
        handles = [await once.create(), await thrice.create(), await thrice.options(max_retry_count=1).create()]
        for handle in handles:
            await scheduler.wait_task(handle.task_id, 30)
    assert (attempts.count("once"), attempts.count("thrice")) == (1, 5)


@pytest.mark.parametrize("own", [None, 0.2])
async def test_each_kind_has_a_timeout_of_its_own(scheduler: TaskBackoffScheduler, own: float | None) -> None:
    @scheduler.task(exec_timeout=30 if own else 0.1, max_retry_count=0)
    async def slow() -> None:
        await anyio.sleep_forever()

    async with scheduler:
        handle = await (slow.options(exec_timeout=own) if own else slow).create()
        with pytest.raises(TaskFailedError, match=f"timeout: stopped after {own or 0.1} s"):
            await handle.result(20)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_retry_count": -1}, "max_retry_count: expected a whole number"),
        ({"exec_timeout": 0}, "exec_timeout: expected"),
        ({"backoff_strategy": len}, "backoff_strategy: expected a name"),
        ({"max_retries": 1}, "max_retries: expected one of the options backoff_interval, "),
        ({"priority": 1}, "priority: expected one of the options"),
        ({"name": "two words"}, "kind: expected a letter or _"),
    ],
)
async def test_wrong_options_of_a_kind_are_refused_when_it_is_declared(options: Any, error: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        TaskBackoffScheduler().task(**options)(_nothing)
    assert str(caught.value).startswith(error)


def _nothing() -> None: ...


async def test_options_that_exclude_each_other_are_refused_at_start(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task(backoff_interval=100, max_backoff_interval=10)
    async def render() -> None: ...

    with pytest.raises(ConfigError, match=r"task\.backoff_interval: expected at most task\.max_backoff_interval"):
        await scheduler.start()


# Declarations


def _yields(n: int) -> Generator[int, None, None]:
    yield n


def _untyped(n) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001 - untyped on purpose


def _of_any(first: Any) -> None: ...


def _of_object(first: object) -> None: ...


def _star(*names: str) -> None: ...


def _stars(**names: str) -> None: ...


def _result_entity() -> ResultEntity:
    return ResultEntity.ok()


def _socket(n: threading.Thread) -> None: ...


def _task_last(n: int, task: TaskEntity) -> None: ...


def _ambiguous(n: str | datetime) -> None: ...


REFUSED: list[tuple[Callable[..., Any], str]] = [
    (_yields, "kind '_yields': _yields(n: int) -> collections.abc.Generator[int, None, None] yields, and nobody"),
    (_untyped, "kind '_untyped': parameter `n` has no type; add one, such as `n: str`"),
    (_of_any, "kind '_of_any': a type checker takes its first parameter `first` for the task; put `*` before"),
    (_of_object, "kind '_of_object': a type checker takes its first parameter `first` for the task"),
    (_star, "kind '_star': `*names` has no name for each value; take a list instead"),
    (_stars, "kind '_stars': `**names` has no name for each value; take a dict instead"),
    (_result_entity, "kind '_result_entity': its result: a ResultEntity has no type for its result; return"),
    (_socket, "kind '_socket': parameter `n`: Thread cannot be stored as JSON; use JSON's own types, Enum"),
    (_task_last, "kind '_task_last': parameter `task`: a TaskEntity is the first parameter, or none"),
    (_ambiguous, "kind '_ambiguous': parameter `n`: JSON cannot tell text from a datetime; use one type"),
]


@pytest.mark.parametrize(("function", "why"), REFUSED, ids=[one[0].__name__ for one in REFUSED])
def test_a_function_that_cannot_be_a_kind_is_refused_with_the_remedy(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(HandlerError) as caught:
        TaskBackoffScheduler().task(function)
    assert str(caught.value).startswith(why)


@contextmanager
def model() -> Generator[str, None, None]:
    yield "model"


def test_a_function_without_a_parameter_for_its_lifespan_is_refused() -> None:
    scheduler = TaskBackoffScheduler()
    with pytest.raises(HandlerError, match="kind 'none': its first parameters are not what its lifespan"):
        scheduler.task(name="none", lifespan=model)(_keyword_only)
    with pytest.raises(HandlerError, match="lifespan of kind 'none': expected a function, got str"):
        scheduler.task(name="none", lifespan="model")(_keyword_only)  # type: ignore[call-overload] - wrong on purpose


def _keyword_only(*, value: str) -> None: ...


def test_a_second_kind_of_the_same_name_is_refused() -> None:
    scheduler = TaskBackoffScheduler()

    @scheduler.task(name="render")
    def one() -> None: ...

    with pytest.raises(HandlerError, match="kind 'render': the scheduler has this kind; give the second one a `name=`"):
        scheduler.task(name="render")(one.declaration.function)


async def test_an_annotation_may_name_a_class_that_is_defined_later(scheduler: TaskBackoffScheduler) -> None:
    def render(later: "Later") -> "Later":  # noqa: F821 # type: ignore[name-defined] - defined later, as the test says
        return later

    kind = scheduler.task(render)
    with pytest.raises(HandlerError, match="kind 'render': an annotation has the unknown name 'Later'; define it"):
        await scheduler.start()
    globals()["Later"] = Image
    try:
        async with scheduler:
            assert await (await kind.create(Image("a", MOMENT))).result(30) == Image("a", MOMENT)
    finally:
        del globals()["Later"]


async def test_a_kind_cannot_be_declared_while_the_scheduler_runs(scheduler: TaskBackoffScheduler) -> None:
    scheduler.task(_task_first)
    async with scheduler:
        with pytest.raises(HandlerError, match=r"kind 'other': set it before start\(\)"):
            scheduler.task(name="other")(_task_first)


def _task_first(task: TaskEntity) -> None: ...


async def test_the_worker_lifespan_without_a_task_handler_is_refused(scheduler: TaskBackoffScheduler) -> None:
    scheduler.task(_task_first)
    scheduler.set_worker_lifespan(model)
    with pytest.raises(
        HandlerError, match="worker_lifespan: its value is for the task handler; a kind has a `lifespan=`"
    ):
        await scheduler.start()


async def test_a_kind_is_called_as_its_function_is() -> None:
    scheduler = TaskBackoffScheduler()

    @scheduler.task
    async def double(n: int, *, by: int = 2) -> int:
        """Return a multiple."""
        return n * by

    assert await double(2, by=3) == 6
    assert double.__name__ == "double" and double.__doc__ == "Return a multiple."
    assert repr(double) == "<kind 'double'>"


# Lifespans


async def test_kinds_with_the_same_lifespan_share_its_value(scheduler: TaskBackoffScheduler) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def shared() -> AsyncGenerator[list[str], None]:
        events.append("entered")
        yield events
        events.append("left")

    @scheduler.task(lifespan=shared)
    async def one(value: list[str], text: str) -> None:
        value.append(text)

    @scheduler.task(lifespan=shared)
    def two(task: TaskEntity, value: list[str], text: str) -> None:
        value.append(f"{task.kind} {text}")

    @scheduler.task(lifespan=model)
    async def other(value: str) -> str:
        return value

    async with scheduler:
        await (await one.create("a")).result(30)
        await (await two.create(text="b")).result(30)
        assert await (await other.create()).result(30) == "model"
    assert events == ["entered", "a", "two b", "left"]


async def test_a_lifespan_that_ends_by_itself_ends_the_worker(scheduler: TaskBackoffScheduler) -> None:
    end = anyio.Event()

    @asynccontextmanager
    async def ends() -> AsyncGenerator[str, None]:
        async with anyio.create_task_group() as group:

            async def fail() -> None:
                await end.wait()
                raise OSError("gone")

            group.start_soon(fail)
            yield "value"

    @scheduler.task(lifespan=ends)
    async def one(value: str) -> None: ...

    @scheduler.task(lifespan=model)
    async def two(value: str) -> None: ...

    await scheduler.start()
    end.set()
    await eventually(lambda: not scheduler.health().ready, "the worker has ended")
    with pytest.raises(HandlerError, match="worker_lifespan: it ended by itself"):
        await scheduler.shutdown()


# A process that creates tasks only


async def test_a_program_may_create_tasks_of_its_kinds_and_run_none(config: TaskBackoffConfig) -> None:
    web, worker = TaskBackoffScheduler(config), TaskBackoffScheduler(config)

    def render(prompt: str) -> str:
        return prompt.upper()

    here, there = web.task(render), worker.task(render)
    assert isinstance(there.name, str)
    await web.start(run_tasks=False)
    handle = await here.create("a cat")
    assert web.has_handler and not web.health().ready
    await anyio.sleep(0.2)
    assert await handle.status() is TaskStatus.PENDING
    async with worker:
        assert await handle.result(30) == "A CAT"
    await web.shutdown()


# Child processes


@pytest.fixture
async def in_children(config: TaskBackoffConfig) -> AsyncGenerator[TaskBackoffScheduler, None]:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 2
    kinds_for_children.scheduler.config = config
    async with kinds_for_children.scheduler as scheduler:
        yield scheduler


async def test_kinds_run_in_child_processes(in_children: TaskBackoffScheduler) -> None:
    one = await (await kinds_for_children.coroutine.create("x")).result(30)
    two = await (await kinds_for_children.plain.create(text="y")).result(30)
    assert (one.text, two.text) == ("x", "plain y") and os.getpid() not in {one.pid, two.pid}
    nameless = await in_children.wait_task(await in_children.create_task({"x": 1}), 30)
    assert nameless.result["x"] == 1 and nameless.result["pid"] != os.getpid()
    # Kinds with the same lifespan share a child, and no other kind has that child.
    with_model = await (await kinds_for_children.on_model.create(7)).result(30)
    also = await (await kinds_for_children.also_on_model.create()).result(30)
    assert with_model[1:] == [7] and {with_model[0], also[0]}.isdisjoint({one.pid, two.pid, os.getpid()})


async def test_a_local_function_cannot_run_in_a_child_process(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config)

    def local() -> None: ...

    with pytest.raises(HandlerError, match="exists only inside the function that made it"):
        scheduler.task(local)


async def test_a_bad_argument_is_found_in_the_child(in_children: TaskBackoffScheduler) -> None:
    other = TaskBackoffScheduler(quick_config(in_children.config.storage))

    def coroutine(text: int) -> None: ...

    handle: TaskHandle[None] = await other.task(coroutine).create(3)
    task = await in_children.wait_task(handle.task_id, 30)
    assert str(task.error) == "bad_arguments: coroutine.text: expected text, got int" and task.attempt == 1
    await other.shutdown()


# Workers that do not have each kind, GPUs, tests of users


async def test_a_worker_without_a_kind_leaves_its_tasks_to_others(config: TaskBackoffConfig) -> None:
    old, new = TaskBackoffScheduler(config), TaskBackoffScheduler(config)

    def render(prompt: str) -> str:
        return prompt

    there = new.task(name="new")(render)
    here = old.task(name="old")(render)
    async with old:
        waiting, done = await there.create("a"), await here.create("b")
        assert await done.result(30) == "b"
        assert await waiting.status() is TaskStatus.PENDING
        async with new:
            assert await waiting.result(30) == "a"


@pytest.mark.blocks
async def test_each_kind_has_a_gpu_need_of_its_own() -> None:
    scheduler = SimulatedScheduler(gpus=[FakeGpu("GPU-0", total_gb=20)])

    @scheduler.task(min_gpu_memory_gb=15)
    async def large(task: TaskEntity) -> str | None:
        return None if task.gpu is None else task.gpu.uuid

    @scheduler.task
    async def small(task: TaskEntity) -> str | None:
        return None if task.gpu is None else task.gpu.uuid

    async with scheduler:
        on_gpu, without = await large.create(), await small.create()
        await scheduler.drain()
        assert (await on_gpu.result(30), await without.result(30)) == ("GPU-0", None)


@pytest.mark.blocks
async def test_a_simulated_scheduler_runs_the_kinds_of_another() -> None:
    service = TaskBackoffScheduler()  # its queue has no name: it could not run here
    attempts: list[str] = []

    @service.task(max_retry_count=2, backoff_interval=3600)
    async def render(prompt: str) -> str:
        attempts.append(prompt)
        if len(attempts) < 3:
            raise OSError
        return prompt.upper()

    async with SimulatedScheduler(kinds_of=service) as scheduler:
        handle = await render.create("a cat")
        await scheduler.advance(4 * 3600)
        assert await handle.result(30) == "A CAT" and len(attempts) == 3
    with pytest.raises(ConfigError, match="biz_prefix"):
        await render.create("a cat")


async def test_a_lifespan_of_a_kind_is_entered_on_the_gpu_of_its_kind(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 2
    kinds_on_gpus.scheduler.config = config
    kinds_on_gpus.scheduler._probe = FakeGpuProbe([FakeGpu("GPU-0", total_gb=20)])
    async with kinds_on_gpus.scheduler:
        on_gpu, without = await kinds_on_gpus.on_gpu.create(), await kinds_on_gpus.without_gpu.create()
        (loaded, uuid), (is_without, pid) = await on_gpu.result(30), await without.result(30)
    assert loaded.split()[:2] == ["GPU-0", "GPU-0"] and uuid == "GPU-0"
    assert is_without and str(pid) != loaded.split()[2]


@pytest.mark.long
async def test_a_drain_hands_back_coroutines_and_leaves_threads_to_their_lease(config: TaskBackoffConfig) -> None:
    config.scheduler.shutdown_grace = 0.1
    scheduler = TaskBackoffScheduler(config)
    end = threading.Event()
    running: list[str] = []

    @scheduler.task
    async def on_loop() -> None:
        running.append("on_loop")
        await anyio.sleep_forever()

    @scheduler.task
    def in_thread() -> None:
        running.append("in_thread")
        end.wait(30)

    await scheduler.start()
    try:
        first, second = await on_loop.create(), await in_thread.create()
        await eventually(lambda: len(running) == 2, "both run")
        await scheduler.shutdown()
        assert (await first.status(), await second.status()) == (TaskStatus.PENDING, TaskStatus.PROCESSING)
    finally:
        end.set()
    await scheduler.shutdown()


async def test_only_attempts_that_can_be_stopped_are_stopped_with_their_lease() -> None:
    class Kind:
        over, reason, deadline = False, None, float("inf")

        def __init__(self, kind: str) -> None:
            self.task = TaskEntity("x", "q", {}, kind=kind)
            self.lease = Lease(0, 0)
            self.cancelled = False

        def cancel(self, _: object) -> None:
            self.cancelled = True

        def about(self, _: str) -> dict[str, object]:
            return {}

    coroutine, thread = Kind("coroutine"), Kind("thread")
    deadlines = Deadlines(by_lease=True, stops=lambda kind: kind == "coroutine")
    attempts: list[Any] = [coroutine, thread]
    deadlines.stop_overdue(attempts, 1)
    assert (coroutine.cancelled, thread.cancelled) == (True, False)
