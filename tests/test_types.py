"""A type checker finds a function of a user with a wrong signature, and accepts each right one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # mypy takes some seconds to read the package

PROGRAM = """
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

from maas_backoff import GpuAssignment, ResultEntity, TaskBackoffScheduler, TaskConfig, TaskEntity, TaskError

scheduler = TaskBackoffScheduler()


class Model: ...


@scheduler.set_custom_task_handler
async def a_coroutine(task: TaskEntity) -> ResultEntity:
    return ResultEntity.ok(task.task_id)


@scheduler.set_custom_task_handler
def with_a_model(task: TaskEntity, model: Model) -> dict[str, int]:
    return {}


@scheduler.set_custom_task_handler  # wrong
def without_a_task() -> None: ...


@scheduler.set_custom_task_handler  # wrong
def with_params(params: dict[str, object]) -> None: ...


@scheduler.set_custom_task_handler  # wrong
def with_three(task: TaskEntity, model: Model, more: int) -> None: ...


@scheduler.set_custom_task_exception_handler
def after_a_failure(task: TaskEntity) -> ResultEntity | None:
    return None


@scheduler.set_custom_task_exception_handler  # wrong
def with_the_error(task: TaskEntity, error: Exception) -> None: ...


TaskConfig(backoff_strategy=lambda retry: 5, retry_on=[ValueError, "timeout", 503])


def by_the_error(retry: int, error: TaskError | None) -> timedelta:
    return timedelta(seconds=retry)


TaskConfig(backoff_strategy=by_the_error, give_up_on=(KeyError,))


def by_text(retry: str) -> float:
    return 1


TaskConfig(backoff_strategy=by_text)  # wrong
TaskConfig(retry_on=[int])  # wrong


@scheduler.set_worker_lifespan
@contextmanager
def on_a_gpu(gpu: GpuAssignment | None) -> Iterator[Model]:
    yield Model()


@scheduler.around_attempt
@contextmanager
def around(task: TaskEntity) -> Iterator[None]:
    yield


@scheduler.around_attempt
@asynccontextmanager
async def awaited_around(task: TaskEntity) -> AsyncIterator[None]:
    yield


@scheduler.around_attempt  # wrong
def no_manager_of_a_task(task: TaskEntity) -> None: ...


@scheduler.around_attempt  # wrong
@contextmanager
def without_a_task_either() -> Iterator[None]:
    yield


@scheduler.set_worker_lifespan  # wrong
def no_manager() -> Model:
    return Model()


async def create() -> str:
    await scheduler.create_task({}, max_retries=1)  # wrong
    await scheduler.create_task({}, give_up_on=[KeyError, "openai.BadRequestError", 400])
    await scheduler.create_task({}, give_up_on=[4.5])  # wrong
    return await scheduler.create_task({}, max_retry_count=1, priority=-1)
"""


def test_a_wrong_signature_is_found(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    found = {int(line) for line in re.findall(r"program\.py:(\d+): error", done.stdout)}
    expected = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line}
    assert found == expected, done.stdout
