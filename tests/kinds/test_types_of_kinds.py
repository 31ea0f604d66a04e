"""Type checkers find each wrong call of a kind, and accept each right one."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # mypy takes some seconds to read the package

SERVICE = """
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from maas_backoff import GpuAssignment, TaskBackoffScheduler, TaskEntity

scheduler = TaskBackoffScheduler()


@dataclass
class Image:
    url: str


class Model: ...


@contextmanager
def model() -> Generator[Model, None, None]:
    yield Model()


@asynccontextmanager
async def model_on(gpu: GpuAssignment | None) -> AsyncGenerator[Model, None]:
    yield Model()


@scheduler.task(max_retry_count=3, exec_timeout=60, min_gpu_memory_gb=20)
async def render(prompt: str, *, steps: int = 20) -> Image:
    return Image(prompt)


@scheduler.task
def count(task: TaskEntity, words: list[str]) -> int:
    return len(words)
"""

RIGHT = (
    SERVICE
    + """
from collections.abc import Coroutine
from typing import Any, assert_type

from maas_backoff import SyncScheduler, SyncTaskHandle, TaskHandle, TaskKind, TaskStatus


@scheduler.task
async def bare(prompt: str) -> Image:
    return Image(prompt)


@scheduler.task(name="other")
async def after_task(task: TaskEntity, n: int = 1) -> str:
    return task.task_id


@scheduler.task()
async def nothing() -> None: ...


@scheduler.task(lifespan=model)
async def with_model(model: Model, prompt: str) -> int:
    return 1


@scheduler.task(lifespan=model_on, max_retry_count=0)
def with_both(task: TaskEntity, model: Model, prompt: str, share: float = 0) -> int:
    return 1


async def main() -> None:
    handle = await render.create("a cat", steps=20)
    assert_type(handle, TaskHandle[Image])
    assert_type(await handle.result(timeout=30), Image)
    assert_type(await handle.status(), TaskStatus)
    assert_type(await handle.cancel(running=True), bool)
    assert_type(await bare.create(prompt="x"), TaskHandle[Image])
    assert_type(await count.create(["x"]), TaskHandle[int])
    assert_type(await after_task.create(), TaskHandle[str])
    assert_type(await nothing.create(), TaskHandle[None])
    assert_type(await with_model.create("x"), TaskHandle[int])
    assert_type(await with_both.create("x", share=1), TaskHandle[int])
    assert_type(await render.options(priority=-5, delay=3, task_id="x").create("a cat"), TaskHandle[Image])
    many = await render.create_many([render.spec("a cat"), render.options(priority=1).spec("a dog", steps=5)])
    assert_type(many, list[TaskHandle[Image]])
    assert_type(render.handle("x"), TaskHandle[Image])
    direct = render("a cat")
    _ = assert_type(direct, Coroutine[Any, Any, Image])
    assert_type(await direct, Image)
    assert_type(with_both(TaskEntity("x", "q", {}), Model(), "x"), int)
    kind: TaskKind[[list[str]], int] = count
    await kind.create(["x"])


def blocking() -> None:
    sync = SyncScheduler(scheduler)
    handle = sync.kind(render).create("a cat", steps=20)
    assert_type(handle, SyncTaskHandle[Image])
    assert_type(handle.result(timeout=30), Image)
    assert_type(sync.kind(count).options(priority=1).create(["x"]).result(), int)
    assert_type(sync.kind("count").create(1).result(), Any)
    assert_type(sync.create_task({}, max_retry_count=3), str)
    assert_type([event.task for event in sync.watch("x")], list[TaskEntity])
    with sync.call({}, delay=3) as task_id:
        assert_type(task_id, str)
"""
)

MISTAKES = (
    SERVICE
    + """
from maas_backoff import SyncScheduler


@scheduler.task(max_retries=1)  # 1: an unknown option
async def a() -> None: ...


@scheduler.task(max_retry_count="3")  # 2: an option of another type
async def b() -> None: ...


@scheduler.task(lifespan=model)  # 3: the value of the lifespan has no parameter
async def c(prompt: str) -> None: ...


@scheduler.task(lifespan=model_on)  # 4: the value has another type
def d(task: TaskEntity, model: Image, prompt: str) -> None: ...


@scheduler.task(lifespan=Model)  # 5: no context manager
async def e(model: Model) -> None: ...


async def main() -> None:
    await render.create(3)  # 6: a value of another type
    await render.create("a cat", stps=20)  # 7: a misspelled argument
    await render.create()  # 8: a missing argument
    await render.create("a cat", 20)  # 9: an argument by position that has a name only
    await count.create(TaskEntity("x", "q", {}), ["x"])  # 10: the task is no argument
    await render.options(priorty=1).create("a cat")  # 11: a misspelled option
    await render.create_many([count.spec(["x"])])  # 12: a task of another kind
    url: str = await (await render.create("a cat")).result()  # 13: a result of another type
    render.create("a cat").task_id  # 14: an await is missing
    sync = SyncScheduler(scheduler)
    sync.kind(render).create("a cat", stps=20)  # 15: a misspelled argument, in a blocking call
    sync.create_task({}, max_retries=1)  # 16: an unknown option
    sync.start()  # 17: it runs no tasks
"""
)

BATCHES = (
    SERVICE
    + """
@scheduler.batch(max_size=4, max_retry_count=3)
async def embed(texts: list[str]) -> list[Image]:
    return [Image(text) for text in texts]


@scheduler.batch(max_wait=1, cost_of=len)
def mixed(tasks: list[TaskEntity], texts: list[str]) -> list[Image | Exception]:
    return [ValueError() for _ in texts]


@scheduler.batch(lifespan=model)
def numbers_on_model(model: Model, numbers: list[int]) -> list[int]:
    return numbers


@scheduler.batch(lifespan=model_on)
async def all_on_model(tasks: list[TaskEntity], model: Model, numbers: list[int]) -> list[tuple[int, str]]:
    return [(number, "") for number in numbers]


@scheduler.batch
async def lengths(texts: list[str]) -> list[int]:
    return list(map(len, texts))


@scheduler.batch
def of_tasks(tasks: list[TaskEntity], texts: list[str]) -> list[Image | Exception]:
    return [ValueError() for _ in texts]
"""
)

RIGHT_BATCHES = (
    BATCHES
    + """
from typing import assert_type

from maas_backoff import TaskHandle


async def main() -> None:
    handle = await embed.create("a cat")
    assert_type(handle, TaskHandle[Image])
    assert_type(await handle.result(), Image)
    assert_type(await mixed.create("a cat"), TaskHandle[Image])
    assert_type(await numbers_on_model.create(1), TaskHandle[int])
    assert_type(await all_on_model.options(priority=1).create(1), TaskHandle[tuple[int, str]])
    assert_type(await lengths.create("a cat"), TaskHandle[int])
    assert_type(await of_tasks.create("a cat"), TaskHandle[Image])
    assert_type(await embed.create_many([embed.spec("a dog")]), list[TaskHandle[Image]])
"""
)

MISTAKEN_BATCHES = (
    BATCHES
    + """
@scheduler.batch(max_size="4")  # 1: an option of another type
async def a(texts: list[str]) -> list[str]:
    return texts


@scheduler.batch()  # 2: no list of items
def b(text: str) -> list[str]:
    return [text]


@scheduler.batch  # 3: no list of items, without options
def c(text: str) -> list[str]:
    return [text]


async def main() -> None:
    await embed.create(3)  # 4: an item of another type
    await embed.create(["a cat"])  # 5: several items
    await embed.create()  # 6: no item
    await embed.create("a cat", "a dog")  # 7: two items
    await lengths.create(3)  # 8: an item of another type
"""
)


def _lines(program: str) -> set[int]:
    return {number for number, line in enumerate(program.splitlines(), 1) if re.search(r"# \d+: ", line)}


PROGRAMS = {
    "right": RIGHT,
    "mistakes": MISTAKES,
    "right_batches": RIGHT_BATCHES,
    "mistaken_batches": MISTAKEN_BATCHES,
}


def _mypy(folder: Path) -> list[str]:
    return [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache")]


def _pyright(_: Path) -> list[str]:
    return [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", [_mypy, _pyright])
def test_each_mistake_is_found(checker: Callable[[Path], list[str]], tmp_path: Path) -> None:
    """One run checks all programs: most of its time it reads the package."""
    for name, program in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(program)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "reportUnusedVariable": false}')
    command = [*checker(tmp_path), *(str(tmp_path / f"{name}.py") for name in PROGRAMS)]
    environ = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300, check=False)
    for name, program in PROGRAMS.items():
        found = {int(line) for line in re.findall(rf"\b{name}\.py:(\d+):[\d:]*(?: -)? error", done.stdout)}
        # The error of a decorator may stand in the line of its function.
        mistakes = _lines(program)
        found = {line - 1 if line - 1 in mistakes and line not in mistakes else line for line in found}
        assert found == mistakes, done.stdout + done.stderr
    assert [len(_lines(program)) for program in PROGRAMS.values()] == [0, 17, 0, 8]
