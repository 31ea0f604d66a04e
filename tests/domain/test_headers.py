"""The time that an HTTP answer asks its client to wait."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from maas_backoff import InvalidValueError, RateLimited, Retry

TEN_YEARS = 315_360_000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "20"}, 20),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"RETRY-AFTER": "0"}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "9" * 400}, TEN_YEARS),
        ({"retry-after-ms": "1234.5", "retry-after": "2"}, 1.2345),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0),
        ({"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT"}, 0),
        ({"Retry-After": "Sun Nov  6 08:49:37 1994"}, 0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, TEN_YEARS),
        (httpx.Headers({"Retry-After": "20"}), 20),
        (httpx.Headers([("Retry-After", "20"), ("Retry-After", "30")]), 1),
    ],
)
def test_retry_after_is_read_in_all_of_its_forms(headers: Mapping[str, str], seconds: float) -> None:
    """Milliseconds first, as services send both; and never less than 0 or more than ten years."""
    assert Retry.from_headers(headers).after == seconds
    assert RateLimited.from_headers(headers).after == seconds


def test_a_date_is_read_by_the_clock_of_this_machine() -> None:
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    after = RateLimited.from_headers({"Retry-After": format_datetime(in_an_hour, usegmt=True)}).after
    assert 3590 < after <= 3600


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms"}, 0.012),
        ({"X-RateLimit-Remaining-Tokens": "0", "X-RateLimit-Reset-Tokens": "6m0s"}, 360),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m59.56s"}, 3779.56),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "7.66s",
            },
            7.66,
        ),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            2,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s", "retry-after": "3"}, 3),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "9s"}, 1),
        ({"x-ratelimit-reset-requests": "9s"}, 1),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "60"}, 1),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2030-01-01T00:00:00Z"}, 1),
    ],
)
def test_resets_count_if_nothing_remains_and_their_unit_is_known(headers: dict[str, str], seconds: float) -> None:
    """A plain number may be seconds, milliseconds or a moment: it is not read."""
    assert RateLimited.from_headers(headers).after == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Retry-After": ""},
        {"Retry-After": "soon"},
        {"Retry-After": "nan"},
        {"Retry-After": "inf"},
        {"Retry-After": "1_000"},
        {"Retry-After": "٣"},
        {"Retry-After": "5, 10"},
        {"Retry-After": "Mon, 99 Foo 2030 99:99:99 GMT"},
        {"Retry-After": ", ,"},
        {"Retry-After": 5},
        {5: "Retry-After"},
        {b"Retry-After": b"5"},
    ],
    ids=repr,
)
def test_without_a_header_that_can_be_read_the_other_time_counts(headers: Any) -> None:
    assert Retry.from_headers(headers).after == 1
    assert Retry.from_headers(headers, otherwise=30).after == 30
    assert RateLimited.from_headers(headers, otherwise=timedelta(minutes=1)).after == 60


def test_the_other_arguments_are_those_of_the_signal() -> None:
    retry = Retry.from_headers({"Retry-After": "3"}, "busy", params={"model": "small"})
    assert (retry.after, retry.reason, retry.params) == (3, "busy", {"model": "small"})
    assert RateLimited.from_headers({}, limit="openai").limit == "openai"
    assert RateLimited.from_headers({}).limit is None


class Openai(RateLimited):
    limit = "openai"


def test_a_subclass_makes_one_of_its_own() -> None:
    limited = Openai.from_headers({"Retry-After": "3"})
    assert (type(limited), limited.after, limited.limit) == (Openai, 3, "openai")


def test_headers_of_the_standard_library_are_read() -> None:
    message = Message()
    message["Retry-After"] = "3"
    assert Retry.from_headers(message).after == 3  # type: ignore[arg-type] # no Mapping, but it has items


@pytest.mark.parametrize("otherwise", [-1, "1", None, float("nan"), TEN_YEARS + 1])
def test_a_wrong_other_time_is_refused_whatever_the_headers_say(otherwise: Any) -> None:
    with pytest.raises(
        InvalidValueError, match="otherwise: expected seconds from 0 to ten years, or a timedelta, got "
    ):
        Retry.from_headers({"Retry-After": "3"}, otherwise=otherwise)


@pytest.mark.parametrize("headers", [None, "Set-Cookie: secret", [("Set-Cookie", "secret")]])
def test_what_has_no_headers_is_refused_and_not_shown(headers: Any) -> None:
    with pytest.raises(InvalidValueError, match="headers: expected a mapping of names to texts, got ") as caught:
        RateLimited.from_headers(headers)
    assert "secret" not in str(caught.value)
