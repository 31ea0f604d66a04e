"""The stream of one attempt in its process: what is joined, what is bounded, and what is sent when."""

import threading
from typing import Any

import pytest

from maas_backoff import PayloadError, StreamError, StreamFullError
from maas_backoff.domain.emission import (
    JSON,
    LARGE_PART,
    LONGEST_LINE,
    MERGED,
    MOST_LINES,
    OF_A_VALUE,
    TEXT,
    Emission,
    Part,
    checked_line,
    checked_part,
)

PLENTY = 10_000_000


def emission(most_bytes: int = PLENTY, earlier: tuple[Part, ...] = ()) -> tuple[Emission, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    return Emission(most_bytes, earlier, lambda form, text: told.append((form, text)), lambda: "7 "), told


def text(value: str) -> Part:
    return Part(TEXT, value)


def test_texts_that_wait_are_joined_and_values_are_not() -> None:
    made, told = emission()
    for part in (text("a"), text("b"), Part(JSON, "1"), Part(JSON, "2"), text("c"), text("d")):
        made.add(part)
    assert made.parts() == (text("ab"), Part(JSON, "1"), Part(JSON, "2"), text("cd"))
    assert told == [("t", "a"), ("t", "b"), ("j", "1"), ("j", "2"), ("t", "c"), ("t", "d")]
    assert [part.data for part in made.parts()] == ["ab", 1, 2, "cd"]


def test_a_joined_text_has_a_bound() -> None:
    made, _ = emission()
    for _ in range(3):
        made.add(text("x" * (MERGED // 2)))
    made.add(text("y" * 2 * MERGED))
    assert [len(part.text) for part in made.parts()] == [MERGED, MERGED // 2, 2 * MERGED]


def test_a_part_that_was_taken_never_changes() -> None:
    made, _ = emission()
    made.add(text("a"))
    unsent = made.take(PLENTY, at_end=False)
    assert unsent is not None and (unsent.place, unsent.parts) == (1, [text("a")])
    made.add(text("b"))
    assert made.parts() == (text("a"), text("b")) and not made.is_sent
    made.sent(unsent, 1)
    again = made.take(PLENTY, at_end=False)
    assert again is not None and (again.place, again.parts) == (2, [text("b")])
    made.sent(again, 2)
    assert made.is_sent and made.take(PLENTY, at_end=True) is None


def test_what_the_server_has_lost_is_taken_again() -> None:
    made, _ = emission()
    for number in range(5):
        made.add(Part(JSON, f"{number}"))
    unsent = made.take(PLENTY, at_end=False)
    assert unsent is not None
    made.sent(unsent, 2)
    again = made.take(PLENTY, at_end=False)
    assert again is not None and (again.place, [part.text for part in again.parts]) == (3, ["2", "3", "4"])
    made.sent(again, 0)
    whole = made.take(PLENTY, at_end=False)
    assert whole is not None and (whole.place, len(whole.parts)) == (1, 5)


def test_a_call_has_room_for_a_part_at_least() -> None:
    made, _ = emission()
    for number in range(3):
        made.add(Part(JSON, f"{number}" * 100))
    unsent = made.take(50, at_end=False)
    assert unsent is not None and len(unsent.parts) == 1
    unsent = made.take(101, at_end=False)
    assert unsent is not None and len(unsent.parts) == 2


def test_a_stream_has_a_bound_in_bytes() -> None:
    made, told = emission(10)
    made.add(text("日本"))
    with pytest.raises(StreamFullError, match="it may have 10 bytes"):
        made.add(text("12345"))
    made.add(text("1234"))
    assert made.parts() == (text("日本1234"),) and len(told) == 2
    small, _ = emission(OF_A_VALUE + 1)
    small.add(Part(JSON, "1"))
    with pytest.raises(StreamFullError):
        small.add(Part(JSON, "1"))


def test_a_stream_of_very_many_parts_sends_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt of days: the parts are bounded, too."""
    monkeypatch.setattr("maas_backoff.domain.emission.MANY_PARTS", 3)
    made, _ = emission()
    sent: list[int] = []
    for _ in range(5000):
        made.add(text("x"))
        unsent = made.take(PLENTY, at_end=False)
        if unsent is not None:
            made.sent(unsent, unsent.place + len(unsent.parts) - 1)
            sent.append(sum(len(part.text) for part in unsent.parts))
    assert sent == [1, 1, 1, *[LARGE_PART] * (4997 // LARGE_PART)]
    last = made.take(PLENTY, at_end=True)
    assert last is not None and sum(sent) + len(last.parts[0].text) == 5000


def test_earlier_parts_stay_until_the_first_new_one_unless_they_are_kept() -> None:
    earlier = (text("a"), Part(JSON, "1"))
    fresh, _ = emission(earlier=earlier)
    assert fresh.parts() == earlier and fresh.is_sent
    fresh.add(text("b"))
    assert fresh.parts() == (text("b"),)
    with pytest.raises(StreamError, match="before the first emit"):
        fresh.keep()
    kept, told = emission(earlier=earlier)
    kept.keep()
    kept.keep()
    assert told == [("k", "")] and not kept.is_sent, "the server is told, even if nothing follows"
    unsent = kept.take(PLENTY, at_end=True)
    assert unsent is not None and (unsent.continues, unsent.place, unsent.parts) == (True, 3, [])
    kept.sent(unsent, 2)
    assert kept.is_sent
    kept.add(text("b"))
    assert kept.parts() == (*earlier, text("b"))


def test_kept_parts_count_towards_the_bound() -> None:
    made, _ = emission(5, earlier=(text("1234"),))
    made.keep()
    made.add(text("5"))
    with pytest.raises(StreamFullError):
        made.add(text("6"))


def test_kept_parts_that_the_server_has_lost_come_again_as_new_ones() -> None:
    made, _ = emission(earlier=(text("a"), text("b")))
    made.keep()
    made.add(text("c"))
    unsent = made.take(PLENTY, at_end=False)
    assert unsent is not None
    made.sent(unsent, 1)
    again = made.take(PLENTY, at_end=False)
    assert again is not None and (again.continues, again.place) == (False, 1)
    assert again.parts == [text("a"), text("b"), text("c")]
    made.sent(again, 3)
    assert made.is_sent


def test_lines_are_sent_once_and_bounded_while_they_wait() -> None:
    made, _ = emission()
    for number in range(MOST_LINES + 5):
        made.log(f"{number}")
    unsent = made.take(PLENTY, at_end=False)
    assert unsent is not None and (unsent.line, len(unsent.lines)) == (6, MOST_LINES)
    assert unsent.lines[0] == "7 5"
    made.log("more")
    made.sent(unsent, 0)
    again = made.take(PLENTY, at_end=False)
    assert again is not None and (again.line, again.lines) == (MOST_LINES + 6, ["7 more"])


def test_after_a_fault_nothing_waits_and_no_part_is_taken() -> None:
    made, _ = emission()
    made.add(text("a"))
    made.log("line")
    made.drop("the server is gone")
    assert made.is_sent and made.take(PLENTY, at_end=True) is None
    with pytest.raises(StreamError, match="the server is gone"):
        made.add(text("b"))


def test_threads_may_emit_at_once() -> None:
    made, told = emission()

    def emit(number: int) -> None:
        for n in range(500):
            made.add(Part(JSON, f"[{number},{n}]"))

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = [part.data for part in made.parts()]
    assert sorted(data) == [[number, n] for number in range(4) for n in range(500)]
    assert [one for one in data if one[0] == 2] == [[2, n] for n in range(500)], "each thread's parts are in order"
    assert [text for _, text in told] == [part.text for part in made.parts()]


class Word(str):
    """A text of a class of its own."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("a", text("a")),
        ("", None),
        (Word("a"), text("a")),
        (None, Part(JSON, "null")),
        (["日", 1.5, True], Part(JSON, '["日",1.5,true]')),
        ({"b": 1, "a": 2}, Part(JSON, '{"a":2,"b":1}')),
    ],
)
def test_a_part_is_a_text_or_json(given: Any, part: Part | None) -> None:
    found = checked_part(given)
    assert found == part and (found is None or type(found.text) is str)


@pytest.mark.parametrize("wrong", ["\ud800", float("inf"), {1: 1}, {"a": object()}, b"a"])
def test_what_no_part_can_be_is_refused(wrong: Any) -> None:
    with pytest.raises(PayloadError):
        checked_part(wrong)


def test_a_line_is_cut() -> None:
    assert checked_line("x" * 5000) == "x" * LONGEST_LINE
