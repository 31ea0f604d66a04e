"""Bad input is refused at the door: a clear error that names the option, before any network I/O."""

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from maas_backoff import (
    ConfigError,
    HandlerError,
    InvalidValueError,
    PayloadError,
    PayloadTooLargeError,
    StorageConfig,
    StorageError,
    StorageUnavailableError,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskSpec,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def unreachable() -> AsyncIterator[TaskBackoffScheduler]:
    """A scheduler whose server is not there: whatever gets past the door raises StorageUnavailableError."""
    storage = StorageConfig(host="127.0.0.1", port=1, timeout=0.1)
    scheduler = TaskBackoffScheduler(TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="test")))
    yield scheduler
    await scheduler.shutdown()


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        ([1], InvalidValueError, "task_params: expected a dict"),
        ("text", InvalidValueError, "task_params: expected a dict"),
        (None, InvalidValueError, "task_params: expected a dict"),
        ({"a": b""}, PayloadError, "task_params.a: expected a JSON value"),
        ({"a": {"b": [float("nan")]}}, PayloadError, r"task_params.a.b\[0\]: expected a finite number"),
        ({1: 2}, PayloadError, "task_params: expected text keys, got int"),
        (
            {"a": "x" * 1_048_576},
            PayloadTooLargeError,
            "task_params: expected at most 1048576 bytes of JSON, got 1048584",
        ),
        ({"a": "x" * 10_000_000}, PayloadTooLargeError, "got 10000008"),
    ],
)
async def test_params_that_cannot_be_stored(
    unreachable: TaskBackoffScheduler, params: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await unreachable.create_task(params)


@pytest.mark.parametrize(
    "task_id", ["", "x" * 257, "a\nb", "a\r\nb", "nul\0", "\ud800", "bell\a", "\u202e", 7, b"bytes", True]
)
async def test_ids_that_are_none(unreachable: TaskBackoffScheduler, task_id: Any) -> None:
    with pytest.raises(InvalidValueError, match="task_id: expected text of 1 to 256 printable characters, got "):
        await unreachable.create_task({}, task_id)
    with pytest.raises(InvalidValueError, match="task_id"):
        await unreachable.create_tasks([TaskSpec({}, task_id)])
    for call in (
        *(unreachable.get_task, unreachable.wait_task, unreachable.cancel_task, unreachable.retry_task),
        *(unreachable.delete_task, unreachable.mark_task_processing),
        lambda given: unreachable.mark_task_completed(given, None),
        lambda given: unreachable.mark_task_failed(given, "why"),
        lambda given: unreachable.update_task(given, priority=1),
        lambda given: unreachable.update_task_progress(given, 50),
    ):
        with pytest.raises(InvalidValueError, match="task_id: expected text of 1 to 256 printable characters, got "):
            await call(task_id)


@pytest.mark.parametrize("code", ["400", True, 4.0, 2**63])
async def test_codes_that_are_none(unreachable: TaskBackoffScheduler, code: Any) -> None:
    with pytest.raises(InvalidValueError, match="code: expected a whole number of 64 bits, or None, got "):
        await unreachable.mark_task_failed("x", code=code)


async def test_what_comes_after_a_bad_item_is_not_asked_for(unreachable: TaskBackoffScheduler) -> None:
    drawn: list[int] = []

    def items() -> Iterator[dict[str, object]]:
        for n in itertools.count():
            drawn.append(n)
            yield {"n": n if n < 3 else {1, 2}}

    with pytest.raises(PayloadError, match=re.escape("tasks[3].task_params.n: expected a JSON value")):
        await unreachable.create_tasks(items())
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"priority": 2**63}, "priority: expected a whole number from -1000 to 1000"),
        ({"priority": 1.5}, "priority: "),
        ({"priority": True}, "priority: "),
        ({"priority": "5"}, "priority: "),
        ({"priority": float("nan")}, "priority: "),
        ({"delay": -5}, "delay: expected seconds from 0 to ten years"),
        ({"delay": float("nan")}, "delay: "),
        ({"delay": float("inf")}, "delay: "),
        ({"delay": 10**12}, "delay: "),
        ({"delay": timedelta(days=36500)}, "delay: "),
        ({"delay": "5"}, "delay: "),
        ({"run_at": datetime(2030, 1, 1)}, "run_at: expected a datetime with a time zone"),  # noqa: DTZ001 - that is the point
        ({"run_at": 1700000000}, "run_at: "),
        (
            {"run_at": datetime.max.replace(tzinfo=datetime.now().astimezone().tzinfo)},
            "run_at: expected a moment within ten years",
        ),
        ({"run_at": datetime.now().astimezone(), "delay": 1}, "run_at: expected either delay or run_at"),
        ({"max_retries": 3}, "max_retries: expected one of the options backoff_interval, "),
        ({"max_retry_count": -1}, "max_retry_count: expected a whole number from 0"),
        (
            {"retry_on": ["not a name"]},
            "retry_on: expected at most 100 names of exceptions, exception classes, or ",
        ),
        ({"give_up_on": [object]}, "give_up_on: "),
        ({"backoff_strategy": "cubic"}, "backoff_strategy: "),
        ({"backoff_strategy": lambda n: n}, "backoff_strategy: expected a name"),
        ({"exec_timeout": 0}, "exec_timeout: "),
        (
            {"backoff_interval": 7200},
            "backoff_interval: expected at most task.max_backoff_interval, which is 3600 s",
        ),
        (
            {"backoff_interval": 6, "max_backoff_interval": 5},
            "backoff_interval: expected at most task.max_backoff_interval, which is 5 s",
        ),
        ({"min_gpu_memory_gb": -1}, "min_gpu_memory_gb: "),
        ({"max_gpu_utilization": 200}, "max_gpu_utilization: "),
        ({"start_within": 0}, "start_within: expected seconds (or a timedelta) from 0.001 to ten years, got 0"),
        ({"complete_within": -1}, "complete_within: "),
        ({"min_gpu_utilization": 200}, "min_gpu_utilization: "),
    ],
)
async def test_options_that_are_wrong(unreachable: TaskBackoffScheduler, options: Any, text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        await unreachable.create_task({}, **options)
    assert str(caught.value).startswith(text)
    with pytest.raises(InvalidValueError) as of_item:
        await unreachable.create_tasks([{}, TaskSpec({}, **options)])
    assert str(of_item.value) == f"tasks[1].{caught.value}"
    assert of_item.value.option == f"tasks[1].{caught.value.option}"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([{"a": 1}, 5], "tasks[1]: expected a dict of params, or a TaskSpec, got int"),
        ([{"a": 1}, None], "tasks[1]: expected a dict of params, or a TaskSpec, got NoneType"),
        ([TaskSpec(5)], "tasks[0].task_params: expected a dict, got int"),  # type: ignore[arg-type] - wrong on purpose
        ([{}, TaskSpec({"a": {1}})], "tasks[1].task_params.a: expected a JSON value"),
        ([{}, TaskSpec({}, "")], "tasks[1].task_id: expected text"),
        ({"a": 1}, "tasks[0]: expected a dict of params, or a TaskSpec, got str"),
        (TaskSpec({"a": "secret"}), "tasks: expected dicts of params, or TaskSpecs, in a list or another iterable"),
        (5, "tasks: expected dicts of params, or TaskSpecs, in a list or another iterable, got int"),
    ],
)
async def test_the_error_of_one_of_many_tasks_names_it(
    unreachable: TaskBackoffScheduler, items: Any, text: str
) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(text)) as caught:
        await unreachable.create_tasks(items)
    assert "secret" not in str(caught.value) and caught.value.http_status == 422


async def test_one_bad_task_of_many_keeps_all_from_being_created(scheduler: TaskBackoffScheduler) -> None:
    with pytest.raises(PayloadError, match=r"tasks\[1\]\.task_params\.a"):
        await scheduler.create_tasks([{"a": 1}, {"a": {1, 2}}, {"a": 3}])
    assert (await scheduler.get_queue_stats()).pending_count == 0


async def test_other_arguments_that_are_wrong(unreachable: TaskBackoffScheduler) -> None:
    with pytest.raises(
        InvalidValueError, match="status: expected one of pending, processing, completed, failed, cancelled, got 'done'"
    ):
        await unreachable.list_tasks("done")
    with pytest.raises(InvalidValueError, match="limit: "):
        await unreachable.list_tasks("failed", limit=0)
    with pytest.raises(InvalidValueError, match="cursor: "):
        await unreachable.list_tasks("failed", cursor="x")
    for progress in (-1, 101, float("nan"), "5", True):
        with pytest.raises(InvalidValueError, match="progress: expected a number from 0 to 100"):
            await unreachable.update_task_progress("x", progress)  # type: ignore[arg-type] - wrong on purpose
    with pytest.raises(PayloadError, match="result: "):
        await unreachable.mark_task_completed("x", object())
    for timeout in (-1, float("nan"), True, "5", timedelta(seconds=-1)):
        with pytest.raises(InvalidValueError, match=r"timeout: expected seconds \(or a timedelta\) from 0 on, or None"):
            await unreachable.wait_task("x", timeout)  # type: ignore[arg-type] - wrong on purpose
    for step in (0, float("nan"), True, "5", timedelta(days=2)):
        with pytest.raises(InvalidValueError, match=r"step: expected seconds \(or a timedelta\), above 0"):
            await unreachable.get_upcoming(step)  # type: ignore[arg-type] - wrong on purpose


async def test_everything_good_gets_past_the_door(unreachable: TaskBackoffScheduler) -> None:
    """The control of this file: the same calls with good values do reach for the server."""
    with pytest.raises(StorageUnavailableError):
        await unreachable.create_task({"a": 1}, "id", priority=5, delay=1)
    with pytest.raises(StorageUnavailableError):
        await unreachable.start()


async def test_payloads_and_ids_at_their_limits_come_back_verbatim(scheduler: TaskBackoffScheduler) -> None:
    """Empty params, exactly 1 MiB of them, and ids of all printable kinds: none is another's."""
    largest = {"a": "x" * (1_048_576 - 8)}
    ids = ["x" * 256, "a:b", "{x}", "}{", "..", " ", "*", "t:a", "naïve 🦊", "مرحبا", "'; DROP", "-x", "\\n", "%s"]
    await scheduler.create_tasks(TaskSpec({"id": task_id}, task_id) for task_id in ids)
    await scheduler.create_task({}, "empty")
    await scheduler.create_task(largest, "largest")
    for task_id in ids:
        task = await scheduler.get_task(task_id)
        assert task is not None
        assert (task.task_id, task.task_params) == (task_id, {"id": task_id})
    found = [await scheduler.get_task(name) for name in ("empty", "largest")]
    assert [task and task.task_params for task in found] == [{}, largest]
    assert (await scheduler.get_queue_stats()).pending_count == len(ids) + 2


class CallableObject:
    def __call__(self, task: object) -> None: ...


def test_handlers_that_cannot_be_called_in_a_child_are_refused_at_registration() -> None:
    config = TaskBackoffConfig(task=TaskConfig(biz_prefix="test"))
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config)

    def local(task: object) -> None: ...

    for handler in (local, lambda task: None, CallableObject(), CallableObject().__call__):
        with pytest.raises(HandlerError, match="define a function at the top level of a module"):
            scheduler.set_custom_task_handler(handler)
    with pytest.raises(HandlerError, match="expected a function, got str"):
        scheduler.set_custom_task_handler("handler")  # type: ignore[type-var] - wrong on purpose


async def test_a_handler_cannot_be_changed_while_the_scheduler_runs(scheduler: TaskBackoffScheduler) -> None:
    scheduler.set_custom_task_handler(print)
    async with scheduler:
        with pytest.raises(HandlerError, match=r"before start\(\)"):
            scheduler.set_custom_task_handler(print)


async def test_a_wrong_password_is_said_without_showing_it(scheduler: TaskBackoffScheduler) -> None:
    scheduler.config.storage.username, scheduler.config.storage.password = "nobody", "hunter2"
    with pytest.raises(StorageError, match="refused the credentials") as caught:
        await scheduler.start()
    assert "hunter2" not in str(caught.value)


def test_config_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(PayloadTooLargeError, PayloadError)
