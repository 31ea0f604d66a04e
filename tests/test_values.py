"""All public errors and values survive pickle, copy and deepcopy, and show no params or results."""

import concurrent.futures
import copy
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from threading import Lock
from types import MappingProxyType
from typing import Any

import attrs
import pytest

import maas_backoff
from maas_backoff import errors
from maas_backoff.domain import signals
from maas_backoff.domain.worker import Device

NOW = datetime(2030, 1, 2, tzinfo=UTC)
SECRET = "what nobody may read"
ERROR = maas_backoff.TaskError("ValueError", "boom", 3)
TASK = maas_backoff.TaskEntity(
    task_id="x",
    biz_prefix="queue",
    task_params={"prompt": [SECRET]},
    result={"text": SECRET},
    error=ERROR,
    attempts=(maas_backoff.FailedAttempt(1, NOW, NOW, "worker", ERROR, "traceback"),),
    created_at=NOW,
    gpu=maas_backoff.GpuAssignment("GPU-a", 0, 4.0),
)
LANE_TASK = attrs.evolve(TASK, tenant="acme", cost=2.5, limits=MappingProxyType({"openai": 1200.0}))
GPU_TASK = maas_backoff.GpuTask("x", "queue", "worker", 4.0)
DEVICE = Device("GPU-a", 0, "H100", 80, 40, 30, 60, 3.0, 40.0, "ok", 0.5)

VALUES: list[Any] = [
    maas_backoff.Activity(errors={"ValueError": 3}, completed=1),
    maas_backoff.Backoff("linear", timedelta(seconds=3), jitter=0.5),
    maas_backoff.BackoffStrategy.LINEAR,
    maas_backoff.BatchSizes(),
    maas_backoff.Durations(),
    maas_backoff.Ensured("x", is_new=True),
    maas_backoff.KindSpec("render", maas_backoff.TaskSpec({"prompt": SECRET}, "x")),
    maas_backoff.MemorySizes(),
    maas_backoff.GpuConfig(gpus=[0, "GPU-a"]),
    maas_backoff.GpuStatus("GPU-a", 0, "H100", "host", 80, 40, 20, 10, 3.0, 40.0, "ok", 0.5, (GPU_TASK,)),
    maas_backoff.Health(("not started",)),
    maas_backoff.History(maas_backoff.Activity(), [maas_backoff.Activity(NOW, failed=2)]),
    maas_backoff.Breakdown(
        "kind", timedelta(minutes=1), {"render": [maas_backoff.SettledAttempts(NOW, 1, 2, 3, 4, 5.5)]}
    ),
    maas_backoff.RetryAhead(2, 30, 60, NOW, NOW),
    maas_backoff.SettledAttempts(NOW, 1, 2, 3, 4, 5.5),
    maas_backoff.Limit(64, (500, "1m"), (120_000, timedelta(minutes=1))),
    maas_backoff.LimitList([maas_backoff.LimitStats("openai", None, "")], more=3),
    maas_backoff.LimitStats("openai", maas_backoff.Limit(64), "openai", 64, 64, 2, 120, "limit openai: …", NOW),
    maas_backoff.TenantStats("acme", 3, 2.5, NOW),
    maas_backoff.QueueStats(1, 2, 3, 4, 5, 6, 7.5, paused=True),
    maas_backoff.ResultEntity.ok({"text": SECRET}),
    maas_backoff.SchedulerConfig(lease=7),
    maas_backoff.Selection(status="failed", labels=["nightly"], params=SECRET, created_from=timedelta(hours=2)),
    maas_backoff.SelectionProgress(200, 20, 10),
    maas_backoff.StorageConfig(nodes=["a:1"], password="hunter2"),
    maas_backoff.TaskBackoffConfig(task=maas_backoff.TaskConfig(biz_prefix="queue")),
    maas_backoff.TaskConfig(min_gpu_utilization=5, backoff_interval=timedelta(minutes=1)),
    maas_backoff.TaskEvent.of(TASK),
    maas_backoff.StreamPart("5-1", [SECRET], 1),
    maas_backoff.LogLine("5-1", SECRET, 1, NOW),
    maas_backoff.TaskOptions(priority=3, delay=timedelta(seconds=3)),
    maas_backoff.TaskPage([TASK], "ready 1 0"),
    maas_backoff.TaskSpec({"prompt": SECRET}, "x", priority=3),
    maas_backoff.TaskStatus.FAILED,
    maas_backoff.ThreadPoolConfig(exec_timeout=3),
    maas_backoff.Worker("worker", devices=(DEVICE,)),
    *(TASK, LANE_TASK, *TASK.attempts, ERROR, TASK.gpu, GPU_TASK),
]

ERRORS: list[errors.MaasBackoffError] = [
    errors.CallerGoneError("x"),
    errors.ConfigError("task.x", "a number", "x"),
    signals.Discard("bad prompt"),
    errors.HandlerError("task handler: expected a function"),
    errors.EventLoopError("shutdown: the worker runs in another event loop"),
    errors.WorkerEndedError("the worker ended although nobody stopped it"),
    signals.HandlerSignal("text"),
    errors.InvalidValueError("option", "a number", timedelta(seconds=3)),
    errors.MaasBackoffError("text"),
    signals.Misfit("bad_arguments", "render.steps: expected a whole number, got str"),
    errors.MissingExtraError("The dashboard", "dashboard"),
    errors.PayloadError("task_params.a", "JSON", b"x"),
    errors.PayloadTooLargeError("result", 10, 20),
    errors.QueueFullError(10, 11, 3.5, created=["a"], asked=3),
    signals.Retry(),
    signals.Retry(timedelta(seconds=2), "busy", params={"a": [1]}),
    signals.Snooze(60),
    signals.RateLimited(20, limit="openai"),
    signals.RateLimited.from_headers({"Retry-After": "7"}),
    errors.StorageDeniedError("no"),
    errors.StorageError("no"),
    errors.StorageFullError("no"),
    errors.StorageUnavailableError("no"),
    errors.StorageUnfitError(["one", "two"]),
    errors.StreamError("too late"),
    errors.StreamFullError(10),
    errors.TaskConflictError(["a", "b"], ["c"]),
    errors.TaskFailedError("x", "failed", "ValueError: boom", 3),
    errors.TaskFailedError("x", "cancelled", cancel_reason="expired"),
    errors.TaskNotFoundError("x"),
    errors.TaskTimeoutError("x", 5.0),
    errors.TenantFullError("acme", 10, created=["a"], asked=3),
]

WAYS: list[Callable[[Any], Any]] = [
    *(lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol)) for protocol in range(2, 6)),
    copy.copy,
    copy.deepcopy,
]


def test_all_public_names_are_tested_here() -> None:
    """All but the schedulers, their kinds and their handles, a function, and the version."""
    tested = {type(value).__name__ for value in (*VALUES, *ERRORS)} | {"CreateOptions", "KindOptions", "TaskOptions"}
    untested = {"TaskBackoffScheduler", "TaskFunction", "TaskHandle", "TaskKind", "current_task", "__version__"}
    untested |= {"SyncScheduler", "SyncKind", "SyncTaskHandle"}
    assert set(maas_backoff.__all__) - tested == untested
    assert {*errors.__all__, *signals.__all__} <= tested


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_equal_afterwards(value: Any) -> None:
    for way in WAYS:
        again = way(value)
        assert type(again) is type(value) and again == value
        assert repr(again) == repr(value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_afterwards(error: errors.MaasBackoffError) -> None:
    error.add_note("a note")
    for way in WAYS:
        again = way(error)
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
        assert (again.http_status, again.http_headers, again.http_detail) == (
            *(error.http_status, error.http_headers, error.http_detail),
        )
        if isinstance(error, ImportError):
            assert again.msg == error.msg


class OfAUser(signals.Retry):
    def __init__(self, one: int, two: int) -> None:
        self.sum = one + two
        super().__init__(one)


def test_a_subclass_with_an_init_of_its_own_survives() -> None:
    for way in WAYS:
        again = way(OfAUser(1, 2))
        assert (again.sum, again.after, str(again)) == (3, 1, "retry requested")


def test_a_value_that_cannot_be_pickled_keeps_no_error_from_it() -> None:
    """A lock or a lambda as an argument: an error that cannot be pickled hangs a multiprocessing.Pool."""
    for got in (Lock(), lambda: None, object()):
        error = errors.InvalidValueError("option", "a number", got)
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error) and repr(got)[:70] in again.got
        assert copy.copy(error).got is got


def test_a_payload_is_never_in_its_error() -> None:
    error = errors.PayloadError("task_params.a", "a JSON value", SECRET.encode())
    assert str(error) == "task_params.a: expected a JSON value, got bytes"
    assert SECRET.encode() not in pickle.dumps(error)
    assert error.got == "bytes"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_no_text_of_a_value_has_params_or_a_result(value: Any) -> None:
    assert SECRET not in f"{value!r} {value}"
    assert "hunter2" not in f"{value!r} {value}"


@attrs.define
class Told:
    told: list[object]

    def progressed(self, _: int, progress: float, message: str | None) -> None:
        self.told.append(progress)

    def used(self, _: int, cost: float | None, limits: Mapping[str, float]) -> None:
        self.told.append((cost, limits))

    def emission(self, _: int) -> None:
        return None


def test_an_entity_that_is_copied_reports_progress_and_one_that_is_pickled_does_not() -> None:
    told: list[object] = []
    handed = copy.copy(TASK).connected(Told(told))
    copy.copy(handed).update_progress(1)
    copy.deepcopy(handed).update_progress(2)
    assert copy.deepcopy(handed) == handed and copy.deepcopy(handed).task_params is not handed.task_params
    again = pickle.loads(pickle.dumps(handed))
    again.update_progress(3)
    assert again == handed
    assert told == [1, 2]


def fail() -> None:
    raise errors.TaskTimeoutError("x", 5.0)


def test_an_error_comes_through_a_pool_of_processes(pool: concurrent.futures.Executor) -> None:
    """One that cannot be unpickled breaks such a pool; a multiprocessing.Pool waits for ever."""
    with pytest.raises(errors.TaskTimeoutError, match="5 s"):
        pool.submit(fail).result(40)


@pytest.mark.parametrize(
    ("error", "status", "headers", "detail"),
    [
        (errors.InvalidValueError("task_id", "text", 1), 422, {}, "task_id: expected text, got 1"),
        (errors.PayloadError("task_params.a", "JSON", 1), 422, {}, "task_params.a: expected JSON, got int"),
        (
            errors.PayloadTooLargeError("task_params", 1, 2),
            413,
            {},
            "task_params: expected at most 1 bytes of JSON, got 2",
        ),
        (errors.TaskConflictError(["a"]), 409, {}, str(errors.TaskConflictError(["a"]))),
        (errors.TaskNotFoundError("a"), 404, {}, str(errors.TaskNotFoundError("a"))),
        (errors.CallerGoneError("a"), 499, {}, str(errors.CallerGoneError("a"))),
        (errors.TaskTimeoutError("a", 3), 504, {}, "the task has not finished yet"),
        (errors.QueueFullError(1, 1, 2.1), 503, {"Retry-After": "3"}, str(errors.QueueFullError(1, 1, 2.1))),
        (
            errors.StorageUnavailableError("no answer from 10.0.0.1:6379"),
            503,
            {},
            "the task queue cannot be reached now; try again later",
        ),
        (errors.ConfigError("storage.path", "a directory", "/srv"), 500, {}, "internal error"),
        (errors.HandlerError("secret"), 500, {}, "internal error"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
def test_an_error_knows_how_a_web_service_answers(
    error: errors.MaasBackoffError, status: int, headers: dict[str, str], detail: str
) -> None:
    assert (error.http_status, error.http_headers, error.http_detail) == (status, headers, detail)
