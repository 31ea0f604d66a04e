"""The text of a traceback is Python's own, however often the same place is told."""

import traceback
from collections.abc import Callable

import pytest

from maas_backoff.domain import tracebacks


def plainly() -> None:
    raise ValueError("boom")


def with_a_cause() -> None:
    try:
        plainly()
    except ValueError as error:
        raise RuntimeError("because") from error


def with_a_context() -> None:
    try:
        plainly()
    finally:
        raise RuntimeError("then")


def without_its_context() -> None:
    try:
        plainly()
    except ValueError:
        raise RuntimeError("alone") from None


def with_a_note() -> None:
    error = ValueError("boom")
    error.add_note("and so on")
    raise error


def in_two_lines() -> None:
    number = 0
    raise ValueError(
        f"{1 / number}",
    )


def in_a_group() -> None:
    raise ExceptionGroup("many", [ValueError("one"), KeyError("two")])


def in_text() -> None:
    compile("a =", "<text>", "exec")


@pytest.mark.parametrize(
    "fail",
    [plainly, with_a_cause, with_a_context, without_its_context, with_a_note, in_two_lines, in_a_group, in_text],
)
def test_it_is_what_python_prints(fail: Callable[[], None]) -> None:
    for _ in range(3):
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - any
            fail()
        assert tracebacks.text_of(caught.value) == "".join(traceback.format_exception(caught.value))


def test_an_error_that_was_not_raised_has_no_places() -> None:
    assert tracebacks.text_of(KeyError("x")) == "KeyError: 'x'\n"


def test_a_deep_traceback_is_told_from_its_end() -> None:
    def sink(depth: int) -> None:
        if depth == 0:
            raise ValueError("deep")
        sink(depth - 1)

    with pytest.raises(ValueError, match="deep") as caught:
        sink(200)
    lines = tracebacks.text_of(caught.value).splitlines()
    assert len([line for line in lines if line.startswith("  File")]) == tracebacks.FRAMES
    assert lines[-1] == "ValueError: deep"


def test_what_is_kept_is_bounded() -> None:
    for number in range(3 * tracebacks._KEPT):
        with pytest.raises(ZeroDivisionError) as caught:
            exec(compile("1 / 0", f"<{number}>", "exec"))
        assert f'File "<{number}>"' in tracebacks.text_of(caught.value)
    assert len(tracebacks._texts) <= tracebacks._KEPT
