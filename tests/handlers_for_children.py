"""Handlers that tests of the whole way run in child processes: they must live in a module that can be imported."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio

from maas_backoff import RateLimited, StreamFullError, TaskEntity, current_task


def sleeps(task: TaskEntity) -> str:
    """Note the own pid in a file, then sleep."""
    Path(task.task_params["file"]).write_text(str(os.getpid()), encoding="ascii")
    time.sleep(60)
    return "woke up"


def reports(task: TaskEntity) -> int:
    """Note progress, then go on until a file is there."""
    task.update_progress(40, "in a child")
    while not Path(task.task_params["file"]).exists():
        time.sleep(0.01)
    return os.getpid()


def makes_a_span(task: TaskEntity) -> None:
    """Make a span, with an SDK of this process's own that writes it to a file; fail the first time."""
    _make_a_span(task.task_params["file"], fails=task.attempt == 1)


def makes_a_span_for_a_batch(paths: list[str]) -> list[int]:
    """Do the same for a batch: fail if no span was written yet."""
    _make_a_span(paths[0], fails=not Path(paths[0]).exists())
    return [1] * len(paths)


def _make_a_span(path: str, *, fails: bool) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    with Path(path).open("a", encoding="utf-8") as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("handler").start_as_current_span("denoise"):
            if fails:
                raise ConnectionError("the model is still loading")


def knows_tracing(task: TaskEntity) -> bool:
    """Tell whether the extra was imported in this process. OpenTelemetry itself is, by redis-py, where it is there."""
    return "maas_backoff.otel" in sys.modules


@contextmanager
def without_opentelemetry() -> Iterator[None]:
    """Let this process be one in which it is not installed."""
    for name in ["opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))]:
        sys.modules[name] = None  # type: ignore[assignment] - how a module is kept from being imported
    yield


def knows_without(task: TaskEntity, _: None) -> bool:
    return knows_tracing(task)


@contextmanager
def in_a_folder_that_goes() -> Iterator[None]:
    """A lifespan that leaves the process in a folder that is gone."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    Path(folder).rmdir()
    yield


def where(task: TaskEntity, _: None) -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "nowhere"


def pid(task: TaskEntity) -> int:
    return os.getpid()


class Ticking:
    def __init__(self) -> None:
        self.ticks = 0
        self.file = ""
        self.breaks = False


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticking]:
    """Count in the background, in a task group around the yield, until told to break."""
    state = Ticking()

    async def tick() -> None:
        while not state.breaks:
            state.ticks += 1
            await anyio.sleep(0.01)
        raise ConnectionError("the pool is broken")

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        yield state
        group.cancel_scope.cancel()
    if state.file:
        await anyio.Path(state.file).write_text("left")


def ticks(task: TaskEntity, state: Ticking) -> int:
    asyncio.run(asyncio.sleep(0))
    state.file = task.task_params["file"]
    return state.ticks


async def ticks_on_a_loop(task: TaskEntity, state: Ticking) -> int:
    state.file = task.task_params["file"]
    return state.ticks


def breaks(task: TaskEntity, state: Ticking) -> int:
    state.breaks = True
    return os.getpid()


def limited(task: TaskEntity) -> None:
    raise RateLimited(**task.task_params)


async def limited_in_a_coroutine(task: TaskEntity) -> None:
    limited(task)


def uses(task: TaskEntity) -> object:
    for report in task.task_params["used"]:
        task.used(**report)
    return [task.cost, dict(task.limits), task.tenant]


async def uses_in_a_coroutine(task: TaskEntity) -> object:
    return uses(task)


def name_of_current(task: TaskEntity) -> str:
    """A handler that is not handed what it needs; for threads and children."""
    current = current_task()
    assert current is not None and current.task_id == task.task_id
    return current.task_id


def emits(task: TaskEntity) -> object:
    """Emit parts, after those of earlier attempts if `keeps` is true. All attempts but the last one fail."""
    before = task.emitted
    if task.task_params.get("keeps"):
        task.keep_emitted()
    task.log(f"attempt {task.attempt}")
    for part in task.task_params["parts"]:
        task.emit(part)
    if task.attempt < task.task_params.get("attempts", 1):
        raise ValueError("once more")
    return [list(before), task.emitted_text()]


async def emits_in_a_coroutine(task: TaskEntity) -> object:
    return emits(task)


def emits_control_characters(task: TaskEntity) -> None:
    """Emit a text that takes six times its size on its way to the worker."""
    task.emit("\x00" * 1_000_000)


def emits_and_hangs(task: TaskEntity) -> None:
    """Emit texts until the process is killed."""
    while True:
        task.emit("x")
        time.sleep(0.001)


def overflows(task: TaskEntity) -> str:
    """Emit until the stream is full, and go on without it."""
    try:
        while True:
            task.emit("x" * 100)
    except StreamFullError as error:
        return f"{len(task.emitted_text())} {error}"


@contextmanager
def notes_each_attempt(task: TaskEntity) -> Iterator[None]:
    """Write into a file of the task when an attempt begins and ends, and which process that is."""
    _write(task, f"begins {os.getpid()}")
    try:
        yield
    except ValueError as error:
        _write(task, f"failed: {error}")
    else:
        _write(task, "ended")


def _write(task: TaskEntity, line: str) -> None:
    with Path(task.task_params["file"]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@asynccontextmanager
async def awaited_around_each_attempt(task: TaskEntity) -> AsyncIterator[None]:
    """As the hook above, awaited."""
    with notes_each_attempt(task):
        await asyncio.sleep(0)
        yield


def notes_its_call(task: TaskEntity) -> int:
    """Write into the same file; fail the first time."""
    _write(task, "handler")
    if task.attempt == 1:
        raise ValueError("the first time")
    return os.getpid()


async def notes_its_call_and_awaits(task: TaskEntity) -> int:
    """As the handler above, awaited."""
    await asyncio.sleep(0)
    return notes_its_call(task)
