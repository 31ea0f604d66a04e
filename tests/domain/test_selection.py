"""A selection: which tasks match, which values are refused, and how texts are read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from maas_backoff import GpuAssignment, InvalidValueError, Selection, TaskEntity, TaskError, TaskStatus
from maas_backoff.domain.labels import has_label
from maas_backoff.domain.reschedule import NewPlace
from maas_backoff.domain.selection import CHANGED_IN

NOW = datetime(2030, 1, 2, 12, tzinfo=UTC)
TASK = TaskEntity(
    task_id="img-1",
    biz_prefix="q",
    task_params={"prompt": "Eine Katze"},
    created_at=NOW - timedelta(hours=3),
    next_execute_time=NOW + timedelta(minutes=5),
    kind="render",
    tenant="acme",
    labels=("nightly", "customer=acme"),
    worker="gpu-7-123-abcdef",
    gpu=GpuAssignment("GPU-aa11", 0, 4),
    error=TaskError("RuntimeError", "CUDA error: no kernel"),
    waiting_for="due at 2030",
)
ENDED = attrs.evolve(TASK, status=TaskStatus.FAILED, finished_at=NOW - timedelta(minutes=10), next_execute_time=None)
BARE = TaskEntity("x", "q", {}, created_at=NOW)


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"status": "pending"},
        {"status": ("failed", "pending")},
        {"kind": "render", "tenant": "acme"},
        {"labels": ["nightly", "customer"]},
        {"labels": "customer=acme"},
        {"id_prefix": "img-"},
        {"error": "cuda ERROR", "error_type": "RuntimeError"},
        {"worker": "gpu-7"},
        {"worker": "gpu-7-123-abcdef"},
        {"gpu": "GPU-aa"},
        {"created_from": timedelta(hours=4), "created_to": timedelta(hours=2)},
        {"created_from": NOW - timedelta(hours=3)},
        {"due_from": timedelta(), "due_to": timedelta(minutes=6)},
        {"text": "IMG"},
        {"text": "no kernel"},
        {"params": "eine katze"},
    ],
)
def test_a_task_matches(conditions: dict[str, Any]) -> None:
    assert Selection(**conditions).at(NOW).matches(TASK)


@pytest.mark.parametrize(
    "conditions",
    [
        {"status": "failed"},
        {"kind": ""},
        {"tenant": "acm"},
        {"labels": ["nightly", "other"]},
        {"labels": ["custom"]},
        {"id_prefix": "mg"},
        {"error": "timeout"},
        {"error_type": "Runtime"},
        {"worker": "gpu"},
        {"worker": "gpu-7-12"},
        {"gpu": "aa11"},
        {"created_from": timedelta(hours=2)},
        {"created_to": NOW - timedelta(hours=3)},
        {"due_from": timedelta(minutes=6)},
        {"due_to": timedelta(minutes=5)},
        {"ended_from": timedelta(hours=1)},
        {"text": "kat"},
        {"params": "hund"},
    ],
)
def test_a_task_does_not_match(conditions: dict[str, Any]) -> None:
    if "worker" in conditions and conditions["worker"] == "gpu":
        assert Selection(worker="gpu").matches(TASK), "the beginning up to a -"
        return
    assert not Selection(**conditions).at(NOW).matches(TASK)


def test_a_task_without_a_value_matches_no_condition_on_it() -> None:
    given = {"error": "x", "error_type": "x", "worker": "x", "gpu": "x", "ended_from": NOW, "due_to": NOW}
    for name, value in given.items():
        assert not Selection(**{name: value}).matches(BARE)  # type: ignore[arg-type] - any option of a Selection


def test_an_end_is_a_moment_of_finished_tasks() -> None:
    assert Selection(ended_from=timedelta(hours=1)).at(NOW).matches(ENDED)
    assert not Selection(ended_to=timedelta(hours=1)).at(NOW).matches(ENDED)
    assert Selection(ended_from=NOW).statuses == ("failed", "cancelled", "completed")
    assert Selection(due_from=NOW).statuses == ("pending",)
    assert Selection(due_from=NOW, status="failed").statuses == ()
    assert Selection().statuses == ("pending", "processing", "failed", "cancelled", "completed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "done"),
        ("status", 5),
        ("labels", 5),
        ("kind", ["a"]),
        ("waiting_for", ["slot"]),
        ("kind", "9"),
        ("tenant", "a b"),
        ("labels", ["a b"]),
        ("labels", ["a"] + [f"k{n}" for n in range(9)]),
        ("id_prefix", ""),
        ("error", 5),
        ("worker", "x" * 1001),
        ("created_from", datetime(2030, 1, 1)),  # noqa: DTZ001 - wrong on purpose
        ("created_from", -timedelta(hours=1)),
        ("ended_to", 5),
        ("due_from", timedelta(days=4000)),
        ("waiting_for", "luck"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=f"{name}|unknown"):
        Selection(**{name: value})


def test_texts_become_a_selection() -> None:
    found = Selection.of_texts(
        {
            "state": ["failed,pending"],
            "kind": ["render"],
            "label": ["nightly", "customer=acme"],
            "created_from": ["2h"],
            "due_to": ["-10m"],
            "ended_to": ["2030-01-31T13:00+01:00"],
            "worker": [],
        }
    )
    assert found == Selection(
        status=("pending", "failed"),
        kind="render",
        labels=("nightly", "customer=acme"),
        created_from=timedelta(hours=2),
        due_to=-timedelta(minutes=10),
        ended_to=datetime(2030, 1, 31, 12, tzinfo=UTC),
    )
    assert Selection.of_texts({"state": ["all"]}) == Selection() and not Selection().has_conditions
    assert "secret" not in repr(Selection(params="secret"))


@pytest.mark.parametrize(
    "text", ["2 weeks", "2030-01-31T12:00", "", "-", "999999999d", "soon", "0001-01-01T00:00+10:00"]
)
def test_a_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="created_from"):
        Selection.of_texts({"created_from": [text]})


def test_a_call_allows_some_states_only() -> None:
    assert Selection(kind="a").within("retry_tasks", TaskStatus.FAILED).status == ("failed",)
    with pytest.raises(InvalidValueError, match="status: expected failed for retry_tasks, got"):
        Selection(status=("failed", "pending")).within("retry_tasks", TaskStatus.FAILED)
    with pytest.raises(InvalidValueError, match="expected pending, failed, cancelled or completed for delete_tasks"):
        Selection(status="processing").within("delete_tasks", *CHANGED_IN["delete"])


def test_a_label_with_a_value_has_its_key() -> None:
    assert has_label(["a=b"], "a") and has_label(["a"], "a") and has_label(["a=b"], "a=b")
    assert not has_label(["ab=c"], "a") and not has_label(["a"], "a=b")


def test_a_place_that_a_task_has_already() -> None:
    since, later = NOW - timedelta(seconds=5), NOW + timedelta(seconds=60)
    due = attrs.evolve(TASK, next_execute_time=NOW - timedelta(hours=1), priority=3)
    assert NewPlace(None, 0).has(due, since, NOW) and not NewPlace(None, 0).has(TASK, since, NOW)
    assert NewPlace(3, None).has(due, since, NOW) and not NewPlace(3, None).has(TASK, since, NOW)
    assert NewPlace(None, 60).has(attrs.evolve(TASK, next_execute_time=later - timedelta(seconds=3)), since, NOW)
    assert not NewPlace(None, 60).has(TASK, since, NOW) and not NewPlace(None, 60).has(due, since, NOW)
    assert NewPlace(None, later).has(attrs.evolve(TASK, next_execute_time=later), since, NOW)
    assert not NewPlace(3, later).has(attrs.evolve(TASK, next_execute_time=later), since, NOW)
