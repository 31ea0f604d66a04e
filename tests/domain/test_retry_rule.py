"""Names, types and codes of an error, and the option by which it ends its task."""

import json
from typing import Any

import pytest

from maas_backoff import Discard, ResultEntity, Retry, Snooze, TaskError
from maas_backoff.domain import raised
from maas_backoff.domain.handler_outcome import outcome_of_error, outcome_of_value
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.retry_rule import ended_by, in_filters


class Upstream(ConnectionError):
    class Busy(Exception): ...


def _gives_up(outcome: object, *filters: Any) -> bool:
    assert isinstance(outcome, Failed)
    option = ended_by(outcome, (), in_filters(filters))
    assert option in {"", "give_up_on"}
    # The same filters as `retry_on` let the task be retried.
    assert (ended_by(outcome, in_filters(filters), ()) == "retry_on") == (
        not option and bool(filters) and not outcome.requested
    )
    return option == "give_up_on"


@pytest.mark.parametrize(
    "one",
    [
        *("Upstream", f"{__name__}.Upstream", Upstream),
        *("ConnectionError", "builtins.ConnectionError", ConnectionError, "OSError", "Exception", BaseException),
    ],
)
def test_an_error_has_the_names_of_its_class_and_of_all_base_classes(one: Any) -> None:
    outcome = outcome_of_error(Upstream("busy"))
    assert _gives_up(outcome, one) and _gives_up(outcome, "ValueError", one)


@pytest.mark.parametrize("one", ["object", "stream", "upstream", "x.Upstream", "builtins.Upstream", "Upstream.x", 1, 0])
def test_an_error_has_no_other_name(one: Any) -> None:
    assert not _gives_up(outcome_of_error(Upstream("busy")), one)


def test_the_package_of_a_class_may_stand_for_its_module() -> None:
    """Users import `requests.ConnectionError`, which is `requests.exceptions.ConnectionError`."""
    outcome = outcome_of_error(json.JSONDecodeError("no", "", 0))
    for name in ("json.decoder.JSONDecodeError", "json.JSONDecodeError", "JSONDecodeError"):
        assert _gives_up(outcome, name)
    for name in ("js.JSONDecodeError", "decoder.JSONDecodeError", "json.dec.JSONDecodeError"):
        assert not _gives_up(outcome, name)
    inner = outcome_of_error(Upstream.Busy())
    for name in ("Busy", f"{__name__}.Upstream.Busy", f"{__name__}.Busy"):
        assert _gives_up(inner, name)
    assert not _gives_up(inner, "Upstream")


def test_a_group_has_the_names_of_its_members() -> None:
    group = ExceptionGroup("both", [ValueError(), ExceptionGroup("inner", [Upstream(), Snooze(5)])])
    for name in ("ExceptionGroup", "ValueError", "Upstream", "OSError"):
        assert _gives_up(outcome_of_error(group), name)
    assert not _gives_up(outcome_of_error(group), "KeyError")


def test_a_failure_without_an_exception_has_its_type_and_its_code() -> None:
    failed = outcome_of_value(ResultEntity.fail(503, "busy"), 100)
    assert _gives_up(failed, 503) and _gives_up(failed, "failed") and _gives_up(failed, "503")
    assert not _gives_up(failed, 500) and not _gives_up(failed, "Exception")
    assert not _gives_up(outcome_of_value(ResultEntity.fail(1, "x"), 100), 10)
    assert not _gives_up(Failed(TaskError("x", "y")), 0, -1)


def test_signals_are_no_errors() -> None:
    assert not _gives_up(outcome_of_error(Retry(5)), "Retry", "Exception")
    assert outcome_of_error(Discard()) == Failed(TaskError("discarded", Discard.reason), permanent=True)


def test_without_the_options_every_error_is_retried() -> None:
    assert ended_by(Failed(TaskError("x", "y")), (), ()) == ""


class Meta(type):
    def __hash__(cls) -> int:
        raise RuntimeError

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError


class Hostile(Exception, metaclass=Meta):
    __module__ = 5  # type: ignore[assignment] # pyright: ignore[reportAssignmentType] - wrong on purpose


def test_names_are_bounded_and_ask_no_class_of_a_user() -> None:
    assert raised.class_names([Exception.__new__(Hostile)])[0] == "Hostile"
    many = [type(f"{n}x" * 1000, (Exception,), {})() for n in range(100)]
    names = raised.class_names(many)
    assert len(names) == raised.MOST_NAMES and max(map(len, names)) <= 2 * raised.LONGEST_NAME + 1
    one: type[Exception] = Exception
    for n in range(100):
        one = type(f"x{n}", (one,), {})
    assert len(raised.class_names([one()])) == raised.MOST_NAMES


def test_a_class_with_the_id_of_an_earlier_one_has_its_own_names() -> None:
    for n in range(3000):  # some have the id of a class that is gone
        assert raised.class_names([type(f"x{n}", (Exception,), {})()])[0].endswith(f".x{n}")


def test_the_name_of_a_class_is_the_same_in_all_processes() -> None:
    """The program is `__main__` in a worker, and `__mp_main__` in its child processes."""
    for module in ("__main__", "__mp_main__"):
        for place in ("X", "Outer.X"):
            one = type("X", (Exception,), {"__module__": module, "__qualname__": place})
            assert raised.stable_name(one) == "X"
    assert raised.stable_name(json.JSONDecodeError) == "json.decoder.JSONDecodeError"
