"""The delays before retries."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_backoff import Backoff, BackoffStrategy, TaskConfig


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
