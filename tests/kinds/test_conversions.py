"""Values of each supported type are JSON in the task, and themselves again in the handler."""

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, Optional, TypedDict
from uuid import UUID

import attrs
import pydantic
import pytest

from maas_backoff.errors import PayloadError
from maas_backoff.kinds.annotations import Conversions
from maas_backoff.kinds.conversion import UnsupportedTypeError


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int = 0


class Meta(TypedDict):
    author: str
    year: NotRequired[int]


@dataclasses.dataclass
class Image:
    url: str
    size: Size = Size.SMALL
    tags: list[str] = dataclasses.field(default_factory=list)
    parent: Optional["Image"] = None


@attrs.frozen
class Prompt:
    text: str
    _seed: int = 0


class Model(pydantic.BaseModel):
    name: str
    at: datetime | None = None


Name = NewType("Name", str)

MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)

GOOD: list[tuple[Any, object, object]] = [
    (None, None, None),
    (bool, True, True),
    (int, 3, 3),
    (float, 1.5, 1.5),
    (float, 2, 2.0),
    (str, "x", "x"),
    (Any, {"x": [1]}, {"x": [1]}),
    (object, 3, 3),
    (bytes, b"\0\xff", "AP8="),
    (datetime, MOMENT, "2026-05-04T03:02:01+00:00"),
    (date, date(2026, 5, 4), "2026-05-04"),
    (time, time(3, 2), "03:02:00"),
    (timedelta, timedelta(minutes=1.5), 90.0),
    (UUID, UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Decimal, Decimal("1.10"), "1.10"),
    (Path, Path("/a/b"), "/a/b"),
    (Size, Size.LARGE, "l"),
    (Level, Level.LOW, 1),
    (Literal["a", 1] | None, 1, 1),
    (Literal[Size.LARGE], Size.LARGE, "l"),
    (list[Size], [Size.LARGE], ["l"]),
    (list, [1, "x"], [1, "x"]),
    (Sequence[int], [1], [1]),
    (tuple[int, Size], (1, Size.LARGE), [1, "l"]),
    (tuple[int, ...], (1, 2), [1, 2]),
    (list[float], [0.5, 1e-5], [0.5, 1e-5]),
    (list[float], [0.5, 2], [0.5, 2.0]),
    (list[bool], [True, False], [True, False]),
    (tuple[float, ...], (0.5, 1.5), [0.5, 1.5]),
    (list[list[float]], [[0.5], []], [[0.5], []]),
    (tuple[()], (), []),
    (dict[str, date], {"x": date(2026, 5, 4)}, {"x": "2026-05-04"}),
    (Mapping[str, int], {"x": 1}, {"x": 1}),
    (int | None, None, None),
    (Size | int | list[int] | None, Size.LARGE, "l"),
    (int | float, 1.5, 1.5),
    (Annotated[int, "metres"], 3, 3),
    (Name, "x", "x"),
    (Point, Point(1), {"x": 1, "y": 0}),
    (Meta, {"author": "x"}, {"author": "x"}),
    (Prompt, Prompt("x", 7), {"text": "x", "seed": 7}),
    (Model, Model(name="x", at=MOMENT), {"name": "x", "at": "2026-05-04T03:02:01Z"}),
    (Model | None, Model(name="x"), {"name": "x", "at": None}),
    (
        Image,
        Image("a", Size.LARGE, ["t"], Image("b")),
        {
            "url": "a",
            "size": "l",
            "tags": ["t"],
            "parent": {"url": "b", "size": "s", "tags": [], "parent": None},
        },
    ),
]


@pytest.mark.parametrize(("annotation", "value", "stored"), GOOD, ids=[str(one[0]) for one in GOOD])
def test_a_value_is_itself_again(annotation: Any, value: object, stored: object) -> None:
    conversion = Conversions().of(annotation)
    dumped = conversion.dump(value, "x")
    assert dumped == stored
    again = conversion.load(json.loads(json.dumps(dumped)), "x")
    assert again == value
    assert type(again) is type(value) or annotation is float


WRONG: list[tuple[Any, object, str]] = [
    (str, 3, "x: expected text, got int"),
    (int, True, "x: expected a whole number, got bool"),
    (int, 1.0, "x: expected a whole number, got float"),
    (float, "1", "x: expected a number, got str"),
    (bool, 1, "x: expected a bool, got int"),
    (Size, "l", "x: expected a Size, got str"),
    (Literal["a", "b"], "secret", "x: expected 'a' or 'b', got str"),
    (date, MOMENT, "x: expected a date, got datetime"),
    (list[int], [1, "secret"], "x[1]: expected a whole number, got str"),
    (list[int], [1, True], "x[1]: expected a whole number, got bool"),
    (list[float], [0.5, True], "x[1]: expected a number, got bool"),
    (list[bool], [1, 2], "x[0]: expected a bool, got int"),
    (list[str], (1, 2), "x: expected a list, got tuple"),
    (tuple[int, int], (1,), "x: expected a tuple of 2, got tuple"),
    (dict[str, int], {"a": "secret"}, "x.a: expected a whole number, got str"),
    (dict[str, int], {1: 1}, "x: expected a dict with keys of text, got dict"),
    (int | None, "secret", "x: expected a whole number or None, got str"),
    (Image, Image("a", tags=[3]), "x.tags[0]: expected text, got int"),  # type: ignore[list-item] - wrong on purpose
    (Image | None, Image("a", tags=[3]), "x.tags[0]: expected text, got int"),  # type: ignore[list-item] - wrong on purpose
    (Image, {"url": "secret"}, "x: expected a Image, got dict"),
    (Meta, {"author": "a", "secret": 1}, "x.secret: expected no field but those of a Meta, got int"),
    (Meta, {}, "x.author: expected text, as it has no default, got nothing"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), WRONG, ids=[one[2] for one in WRONG])
def test_a_value_of_another_type_is_refused_by_its_place(annotation: Any, value: object, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Conversions().of(annotation).dump(value, "x")
    assert str(caught.value) == message


UNFIT: list[tuple[Any, object, str]] = [
    (datetime, "secret", "x: expected a datetime, got str"),
    (UUID, "secret", "x: expected a UUID, got str"),
    (Decimal, "secret", "x: expected a Decimal, got str"),
    (bytes, "secret", "x: expected bytes, got str"),
    (Size, "secret", "x: expected a Size, got str"),
    (timedelta, 1e300, "x: expected a timedelta, got float"),
    (int | None, "secret", "x: expected a whole number or None, got str"),
    (Image, {}, "x.url: expected text, as it has no default, got nothing"),
    (Image, {"url": "a", "colour": 1}, "x.colour: expected no field but those of a Image, got int"),
    (Model, {"name": 5}, "x.name: expected a valid field of a Model (string_type), got int"),
    (Model, [], "x: expected a Model, got list"),
    (Point, [1, 2], "x: expected a Point, got list"),
]


@pytest.mark.parametrize(("annotation", "stored", "message"), UNFIT, ids=[one[2] for one in UNFIT])
def test_json_that_does_not_fit_is_refused_by_its_place(annotation: Any, stored: object, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Conversions().of(annotation).load(stored, "x")
    assert str(caught.value) == message


def test_an_error_of_a_validator_is_a_misfit_and_does_not_show_its_text() -> None:
    @attrs.frozen
    class Even:
        number: int = attrs.field()

        @number.validator
        def _check(self, _: object, value: int) -> None:
            if value % 2:
                raise ValueError(f"{value} is a secret")

    with pytest.raises(PayloadError, match=r"^x: expected a Even \(ValueError\), got dict$"):
        Conversions().of(Even).load({"number": 3}, "x")


def test_a_struct_of_msgspec_is_converted_by_msgspec() -> None:
    msgspec = pytest.importorskip("msgspec")
    struct = msgspec.defstruct("Job", [("name", str), ("at", datetime | None, None)])
    conversion = Conversions().of(struct)
    value = struct("x", MOMENT)
    stored = conversion.dump(value, "x")
    assert stored == {"name": "x", "at": "2026-05-04T03:02:01Z"}
    assert conversion.load(stored, "x") == value
    with pytest.raises(PayloadError, match=r"^x\.at: expected a Job \(ValidationError\), got dict$"):
        conversion.load({"name": "x", "at": "secret"}, "x")


UNSUPPORTED: list[tuple[Any, str]] = [
    (set[int], "cannot be stored as JSON; use JSON's own types"),
    (complex, "complex cannot be stored as JSON"),
    (dict[int, str], "has keys of str, not of int"),
    (str | datetime, "JSON cannot tell text from a datetime"),
    (Image | Prompt, "JSON cannot tell a Image from a Prompt"),
    (type[int], "cannot be stored as JSON"),
    (list[complex], "complex cannot be stored as JSON"),
]


@pytest.mark.parametrize(("annotation", "why"), UNSUPPORTED, ids=[str(one[0]) for one in UNSUPPORTED])
def test_an_annotation_without_a_conversion_is_refused(annotation: Any, why: str) -> None:
    with pytest.raises(UnsupportedTypeError) as caught:
        Conversions().of(annotation)
    assert why in str(caught.value)


def test_a_field_of_such_a_type_is_named() -> None:
    @dataclasses.dataclass
    class Holder:
        inner: complex

    with pytest.raises(UnsupportedTypeError, match=r"^Holder\.inner: complex cannot be stored"):
        Conversions().of(list[Holder])
