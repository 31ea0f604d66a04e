"""The delays before retries."""

import functools
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_backoff import Backoff, BackoffStrategy, TaskConfig, TaskError


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        ("fixed", [30, 30, 30, 30, 30]),
        ("linear", [30, 60, 90, 120, 150]),
        ("exponential", [30, 60, 120, 240, 480]),
    ],
)
def test_the_delays_are_those_of_the_readme(strategy: str, delays: list[float]) -> None:
    assert Backoff(strategy, interval=30, multiplier=2.0).preview(5) == delays


@given(
    strategy=st.sampled_from(list(BackoffStrategy)),
    interval=st.floats(0, 1e6),
    multiplier=st.floats(1, 1000),
    cap=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    retry=st.integers(1, 10**6),
)
def test_a_delay_is_between_zero_and_the_cap(
    strategy: str, interval: float, multiplier: float, cap: float, jitter: float, retry: int
) -> None:
    """Whatever the numbers: no overflow, no negative delay, never above the cap."""
    assert 0 <= Backoff(strategy, interval, multiplier, cap, jitter).delay(retry, "id") <= cap


def test_the_cap_comes_before_the_power() -> None:
    assert Backoff("exponential", interval=30, max_interval=3600).delay(2000) == 3600


def test_jitter_spreads_tasks_and_can_be_told_in_advance() -> None:
    """Jitter is a share of the delay, different from task to task, and the same each time it is asked for."""
    backoff = Backoff("fixed", interval=100, jitter=0.2)
    delays = [backoff.delay(1, f"task-{n}") for n in range(200)]
    assert all(80 <= delay <= 120 for delay in delays)
    assert len(set(delays)) == 200
    assert max(delays) > 110
    assert min(delays) < 90
    assert backoff.preview(3, "a") == backoff.preview(3, "a") == [backoff.delay(n, "a") for n in (1, 2, 3)]


def test_the_configuration_tells_its_delays() -> None:
    assert TaskConfig(backoff_interval=2, backoff_strategy="linear").backoff.preview(3) == [2, 4, 6]
    assert TaskConfig(backoff_strategy=lambda retry: retry * 7).backoff.preview(3) == [7, 14, 21]


def test_a_callable_replaces_the_formula_and_is_capped() -> None:
    backoff = Backoff(custom=lambda retry: timedelta(seconds=retry * 1000), max_interval=2500)
    assert backoff.preview(3) == [1000, 2000, 2500]


BUSY = TaskError("failed", "busy", 429)


def _with_error(retry: int, error: TaskError | None) -> float:
    return 60 if error == BUSY else retry


def _by_name(retry: int, *, base: float = 1, error: TaskError | None = None) -> float:
    return 60 if error == BUSY else retry * base


def _with_a_default(retry: int, base: float = 1) -> float:
    return retry * base


class Waits:
    def __call__(self, number: int, why: TaskError | None, /) -> timedelta:
        return timedelta(minutes=1) if why == BUSY else timedelta(seconds=number)


@pytest.mark.parametrize(
    "function",
    [
        _with_error,
        _by_name,
        Waits(),
        functools.partial(_by_name, base=1),
        lambda retry, why: 60 if why == BUSY else retry,
    ],
)
def test_a_callable_gets_the_error(function: Any) -> None:
    backoff = TaskConfig(backoff_strategy=function).backoff
    assert backoff.delay(1, "id", BUSY) == 60
    assert backoff.delay(2, "id", TaskError("ValueError", "")) == 2
    assert backoff.preview(3) == [1, 2, 3], "nothing has failed"


@pytest.mark.parametrize(
    "function", [_with_a_default, float, lambda *numbers: numbers[0], lambda retry, **more: retry + len(more)]
)
def test_a_callable_that_takes_no_error_gets_none(function: Any) -> None:
    """A second parameter with a default had a meaning before callables got errors."""
    assert Backoff(custom=function).delay(3, "id", BUSY) == 3


def test_a_callable_with_too_many_parameters_leaves_the_formula(caplog: pytest.LogCaptureFixture) -> None:
    function: Any = lambda retry, error, more: 1  # noqa: E731 - as a user writes it
    assert Backoff(custom=function, interval=30).delay(1, "id", BUSY) == 30
    assert "the backoff callable failed for retry 1" in caplog.text


@pytest.mark.parametrize(
    "backoff",
    [
        Backoff("exponential", interval=30, max_interval=60, jitter=0.5),
        Backoff("fixed", interval=60, max_interval=60, jitter=0.5),
        Backoff(custom=lambda retry: 1000 * retry, max_interval=60, jitter=0.5),
    ],
)
def test_jitter_spreads_at_the_cap(backoff: Backoff) -> None:
    """Downwards only: an outage that ends must not be followed by all tasks in one moment."""
    delays = [backoff.delay(9, f"task-{n}") for n in range(300)]
    assert all(30 <= delay <= 60 for delay in delays)
    assert len(set(delays)) == 300
    assert min(delays) < 35 and max(delays) > 55


def test_jitter_below_the_cap_is_cut_without_a_heap_at_it() -> None:
    backoff = Backoff("fixed", interval=55, max_interval=60, jitter=0.5)
    delays = [backoff.delay(1, f"task-{n}") for n in range(300)]
    assert all(27.5 <= delay <= 60 for delay in delays)
    assert len(set(delays)) == 300


def test_what_a_handler_asks_for_gets_jitter_upwards_only() -> None:
    """A server that says Retry-After: 10 is not asked before; and not by all at once."""
    backoff = Backoff(jitter=0.5, max_interval=5)
    delays = [backoff.spread(10, f"task-{n}", "1") for n in range(300)]
    assert all(10 <= delay <= 15 for delay in delays)
    assert len(set(delays)) == 300
    assert backoff.spread(10, "a", "1") == backoff.spread(10, "a", "1") != backoff.spread(10, "a", "2")
    assert backoff.spread(0, "a", "1") == 0
    assert Backoff().spread(10, "a", "1") == 10


def test_intervals_may_be_timedeltas() -> None:
    backoff = Backoff("linear", timedelta(minutes=1), max_interval=timedelta(seconds=90))
    assert backoff == Backoff("linear", 60, max_interval=90)
    assert backoff.preview(2) == [60, 90]
