"""From what a handler returned or raised to an outcome."""

import json
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest

from maas_backoff import Discard, InvalidValueError, RateLimited, ResultEntity, Retry, Snooze, TaskError
from maas_backoff.domain import handler_outcome as h
from maas_backoff.domain import outcome as o
from maas_backoff.domain.lane import ALL_LIMITS
from maas_backoff.domain.shorten import TEXT_LIMIT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, o.Succeeded("null")),
        ({"b": 1, "a": [1, None]}, o.Succeeded('{"a":[1,null],"b":1}')),
        (ResultEntity.ok(result=[1]), o.Succeeded("[1]")),
        (ResultEntity.fail(7, "no model"), o.Failed(TaskError("failed", "no model", 7))),
    ],
)
def test_a_value_is_an_outcome(value: object, expected: o.Outcome) -> None:
    assert h.outcome_of_value(value, 100) == expected


@pytest.mark.parametrize("value", [object(), {1: 2}, b"x", "x" * 200, float("nan"), ResultEntity.ok(object())])
def test_a_result_that_is_no_json_fails_for_good(value: object) -> None:
    """It is not retried: the same code would return the same value."""
    outcome = h.outcome_of_value(value, 100)
    assert isinstance(outcome, o.Failed)
    assert outcome.error.type == "not_serializable"
    assert outcome.permanent


def test_a_coroutine_that_was_not_awaited_fails_for_good_without_a_warning() -> None:
    async def handler() -> None: ...

    outcome = h.outcome_of_value(handler(), 100)
    assert isinstance(outcome, o.Failed)
    assert outcome.permanent


class CodeIsText(Discard):
    code = "gone"  # type: ignore[assignment] # pyright: ignore[reportAssignmentType] - wrong on purpose


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Snooze(5), o.Snoozed(5)),
        (RateLimited(20), o.Snoozed(20, ((ALL_LIMITS, 20),))),
        (RateLimited(timedelta(seconds=20), limit="openai"), o.Snoozed(20, (("openai", 20),))),
        (Retry(after=2, reason="busy"), o.Failed(TaskError("Retry", "busy"), retry_after=2, requested=True)),
        (Discard("bad prompt"), o.Failed(TaskError("discarded", "bad prompt"), permanent=True)),
        (Discard("no", code=HTTPStatus.GONE), o.Failed(TaskError("discarded", "no", 410), permanent=True)),
        (CodeIsText(), o.Failed(TaskError("discarded", Discard.reason), permanent=True)),
    ],
)
def test_a_signal_is_an_outcome(error: BaseException, expected: o.Outcome) -> None:
    assert h.outcome_of_error(error) == expected


@pytest.mark.parametrize("code", ["400", True, 4.0, 2**63])
def test_a_discard_refuses_what_is_no_code(code: Any) -> None:
    with pytest.raises(InvalidValueError, match="code: expected a whole number of 64 bits, or None, got "):
        Discard("bad prompt", code=code)


@pytest.mark.parametrize("limit", ["", "two words", 5, "x" * 101, "user:*"])
def test_a_rate_limited_refuses_what_is_no_name_of_a_limit(limit: Any) -> None:
    with pytest.raises(InvalidValueError, match="limit: expected 1 to 100 of A-Z a-z 0-9 _"):
        RateLimited(20, limit=limit)


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Hostile(), "Hostile"),
        (ValueError("x" * 10_000_000), "ValueError"),
        (ValueError("lone \ud800 surrogate"), "ValueError"),
        (SystemExit(1), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (BaseExceptionGroup("both", [ValueError(1), KeyboardInterrupt()]), "BaseExceptionGroup"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_any_exception_is_an_outcome_of_bounded_text(error: BaseException, kind: str) -> None:
    outcome = h.outcome_of_error(error)
    assert isinstance(outcome, o.Failed)
    assert outcome.raised
    assert outcome.error.type == kind
    assert len(outcome.error.message.encode()) <= TEXT_LIMIT
    assert len(outcome.traceback.encode()) <= TEXT_LIMIT


@pytest.mark.parametrize(
    "outcome",
    [
        o.Succeeded("[1]"),
        o.Snoozed(1.5),
        o.Snoozed(20, (("openai", 20), (ALL_LIMITS, 1.5))),
        o.Failed(TaskError("x", "y", 3), "tb", raised=True, permanent=True, retry_after=2, requested=True),
        o.Failed(TaskError("x", "y"), raised=True, names=("a.X", "builtins.Exception")),
    ],
)
def test_an_outcome_survives_the_border_of_a_process(outcome: o.HandlerOutcome) -> None:
    assert o.from_dict(json.loads(json.dumps(o.to_dict(outcome)))) == outcome


def test_the_outcomes_of_a_batch_survive_the_border_of_a_process() -> None:
    failed = o.Failed(TaskError("ValueError", "x"), "trace", raised=True, names=("ValueError",))
    outcomes: list[o.HandlerOutcome] = [o.Succeeded("[1]"), failed, o.Snoozed(2), o.Succeeded('"\\n"'), o.Unstarted()]
    told, results = o.to_dicts(outcomes)
    assert results == ["[1]", '"\\n"']
    told = json.loads(json.dumps(told))
    assert o.from_dicts(told, results) == outcomes
    with pytest.raises(ValueError, match="fewer results"):
        o.from_dicts(told, results[:1])
    with pytest.raises(ValueError, match="more results"):
        o.from_dicts(told, [*results, "1"])
