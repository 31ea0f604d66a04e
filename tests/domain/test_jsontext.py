"""JSON is taken, and other values are refused with the path of the offending one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_backoff import PayloadError, PayloadTooLargeError
from maas_backoff.domain import jsontext

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_a_json_value_comes_back_as_it_was(value: object) -> None:
    assert jsontext.parse(jsontext.canonical(value, "x", 10**7)) == value


def test_equal_values_have_equal_texts() -> None:
    assert jsontext.canonical({"b": [1, 2], "a": "é"}, "x", 100) == jsontext.canonical(
        {"a": "é", "b": (1, 2)}, "x", 100
    )


def deep(levels: int, value: object = 1) -> object:
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, b"bytes"]}, "task_params.a[1]"),
        ({"a": {1, 2}}, "task_params.a"),
        ({"a": object()}, "task_params.a"),
        ({"a": float("nan")}, "task_params.a"),
        ({"a": float("-inf")}, "task_params.a"),
        ({"a": 10**400}, "task_params.a"),
        ({"a": {1: 2, "1": 3}}, "task_params.a"),
        ({"a": "\ud800"}, "task_params.a"),
        ({"\udfff": 1}, "task_params"),
        ({"a": deep(2000)}, "task_params.a" + "[0]" * 99),
        ({"a": deep(99, {})}, "task_params.a" + "[0]" * 99),
    ],
)
def test_what_is_not_json_is_refused_by_its_path(value: object, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        jsontext.canonical(value, "task_params", 10**6)
    assert caught.value.option == path
    assert str(caught.value).startswith(f"{path}: expected ")


def test_the_limit_is_in_bytes_of_utf_8() -> None:
    """Exactly the limit is accepted; one byte more is refused, with size and limit in the text."""
    text = "é" * 10
    size = len(json.dumps(text, ensure_ascii=False).encode())
    assert jsontext.canonical(text, "x", size) == f'"{text}"'
    with pytest.raises(PayloadTooLargeError, match=f"at most {size - 1} bytes of JSON, got {size}"):
        jsontext.canonical(text, "x", size - 1)


SECRET = "what nobody may read"


class Sly(str):
    """Passes the check, and cannot be written."""

    __slots__ = ()

    def isascii(self) -> bool:
        return True


@pytest.mark.parametrize(
    "value",
    [
        {"a": SECRET.encode()},
        {"a": [f"{SECRET} \ud800"]},
        {"a": {SECRET}},
        {(SECRET,): 1},
        {"a": {f"\ud800 {SECRET}": 1}},
        {"a": type(SECRET.replace(" ", ""), (), {"__repr__": lambda self: SECRET})()},
        {"a": Sly(f"{SECRET} \ud800")},
        SECRET * 100,
    ],
)
def test_no_part_of_a_value_is_in_the_error(value: object) -> None:
    """Nor in what it was raised because of: a UnicodeEncodeError has the whole text."""
    with pytest.raises(PayloadError) as caught:
        jsontext.canonical(value, "x", 1000)
    assert SECRET not in f"{caught.value!r} {vars(caught.value)} {caught.value.__cause__!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_path_is_bounded() -> None:
    with pytest.raises(PayloadError) as caught:
        jsontext.canonical({"k" * 10_000: {"b": b""}}, "x", 1000)
    assert caught.value.option == f"x.{'k' * 80}.b"
