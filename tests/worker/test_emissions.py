"""Parts of a worker's attempts wait to be sent, and settlements wait for the parts."""

import asyncio
from typing import Any

import attrs
import pytest

from maas_backoff.domain.emission import Emission, Part
from maas_backoff.worker import emissions as module
from maas_backoff.worker.emissions import Emissions
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.wake_ups import WakeUps

pytestmark = pytest.mark.anyio


@attrs.define(slots=False, eq=False)
class Stub:
    """An attempt, as far as emissions look at it."""

    token: int
    over: bool = False
    emission: Emission | None = attrs.field(default=None, init=False)
    earlier: tuple[Part, ...] = ()
    now_ms: float = 5.0
    attempt: int = 1
    batch: object = None

    def __attrs_post_init__(self) -> None:
        del self.__dict__["emission"]  # a field of the class, which is set with the first part

    @property
    def task(self) -> "Stub":
        return self

    @property
    def task_id(self) -> str:
        return f"task {self.token}"


Stub.emission = None  # type: ignore[misc] - as the field of an attempt


class Rig:
    """The emissions of a worker with these attempts."""

    def __init__(self, *attempts: Stub) -> None:
        self.slots = Slots(10, WakeUps())
        for attempt in attempts:
            self.slots.take(attempt)  # type: ignore[arg-type] - a stub
        self.released: list[tuple[object, object]] = []
        self.emissions = Emissions(self.slots, 1000, lambda settle, attempt: self.released.append((settle, attempt)))

    def emit(self, token: int, *texts: str) -> None:
        emission = self.emissions.of(token)
        assert emission is not None
        for text in texts:
            emission.add(Part("t", text))

    async def woken(self) -> tuple[bool, bool]:
        """Return whether there is something to send, and whether that is urgent."""
        for _ in range(3):
            await asyncio.sleep(0)
        return self.emissions.waiting.is_set(), self.emissions.urgent.is_set()

    def take(self) -> Any:
        return self.emissions.take()

    @staticmethod
    def sent(call: Any) -> list[tuple[str, list[str]]]:
        return [(one.task_id, [part.text for part in one.unsent.parts]) for one in call.emitted]


async def test_the_parts_of_all_attempts_go_together_and_the_first_at_once() -> None:
    rig = Rig(Stub(1), Stub(2), Stub(3))
    assert await rig.woken() == (False, False) and rig.take() is None
    rig.emit(1, "a", "b")
    rig.emit(2, "c")
    assert await rig.woken() == (True, True)
    call = rig.take()
    assert rig.sent(call) == [("task 1", ["ab"]), ("task 2", ["c"])]
    assert await rig.woken() == (False, False)
    rig.emit(1, "d")
    assert await rig.woken() == (True, False), "further parts gather for a while"
    rig.emissions.answered(call, [1, 1])
    rig.emit(3, "e")
    assert await rig.woken() == (True, True)
    assert rig.sent(rig.take()) == [("task 1", ["d"]), ("task 3", ["e"])]


async def test_an_attempt_without_parts_has_nothing_of_this() -> None:
    one, ended = Stub(1), Stub(2, over=True)
    rig = Rig(one, ended)
    assert "emission" not in vars(one)
    assert rig.emissions.of(2) is None and rig.emissions.of(99) is None
    assert not rig.emissions.hold(one, "settle")  # type: ignore[arg-type] - a stub
    first = rig.emissions.of(1)
    assert first is not None and rig.emissions.of(1) is first and vars(one)["emission"] is first


async def test_a_settlement_waits_for_the_parts_of_its_attempt() -> None:
    """For those that are not sent yet, those on their way, and those that the server has lost."""
    one, two = Stub(1), Stub(2)
    rig = Rig(one, two)
    rig.emit(1, "a")
    call = rig.take()
    one.over = True
    assert rig.emissions.hold(one, "settle 1")  # type: ignore[arg-type] - on its way
    assert await rig.woken() == (True, True)
    rig.emit(2, "b")
    two.over = True
    assert rig.emissions.hold(two, "settle 2")  # type: ignore[arg-type] - not sent yet
    rig.emissions.answered(call, [0])
    assert rig.released == [], "the server has lost it"
    call = rig.take()
    assert rig.sent(call) == [("task 1", ["a"]), ("task 2", ["b"])]
    rig.emissions.answered(call, [1, 1])
    assert rig.released == [("settle 1", one), ("settle 2", two)]
    assert rig.take() is None and rig.released == [("settle 1", one), ("settle 2", two)]


async def test_a_settlement_does_not_wait_for_what_is_there() -> None:
    one = Stub(1)
    rig = Rig(one)
    rig.emit(1, "a")
    rig.emissions.answered(rig.take(), [1])
    one.over = True
    assert not rig.emissions.hold(one, "settle")  # type: ignore[arg-type] - a stub


async def test_what_is_kept_is_told_before_the_end() -> None:
    one = Stub(1, earlier=(Part("t", "earlier"),))
    rig = Rig(one)
    emission = rig.emissions.of(1)
    assert emission is not None
    emission.keep()
    one.over = True
    assert rig.emissions.hold(one, "settle")  # type: ignore[arg-type] - a stub
    call = rig.take()
    assert (call.emitted[0].unsent.continues, call.emitted[0].unsent.parts) == (True, [])
    rig.emissions.answered(call, [1])
    assert rig.released == [("settle", one)]


@pytest.mark.parametrize("how", ["of another attempt", "refused"])
async def test_parts_that_cannot_be_sent_hold_up_no_settlement(how: str) -> None:
    one, two = Stub(1), Stub(2)
    rig = Rig(one, two)
    rig.emit(1, "a")
    rig.emit(2, "b")
    call = rig.take()
    rig.emit(1, "c")
    one.over = True
    assert rig.emissions.hold(one, "settle")  # type: ignore[arg-type] - a stub
    if how == "refused":
        rig.emissions.refused(call, "no right")
    else:
        rig.emissions.answered(call, [None, None])
    assert rig.released == [("settle", one)]
    assert rig.take() is None
    emission = rig.emissions.of(2)
    assert emission is not None and emission.fault


async def test_a_lost_lease_sends_nothing_more() -> None:
    one = Stub(1)
    rig = Rig(one)
    rig.emit(1, "a")
    one.over = True
    rig.emissions.drop(one)  # type: ignore[arg-type] - a stub
    assert rig.take() is None


async def test_a_call_is_bounded_and_the_rest_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ATTEMPTS", 2)
    rig = Rig(*(Stub(token) for token in range(1, 6)))
    for token in range(1, 6):
        rig.emit(token, f"{token}")
    sent: list[str] = []
    while (call := rig.take()) is not None:
        sent += [task_id for task_id, _ in rig.sent(call)]
        assert len(call.emitted) <= 2
        rig.emissions.answered(call, [1] * len(call.emitted))
        assert len(sent) == 5 or await rig.woken() == (True, True)
    assert sent == [f"task {token}" for token in range(1, 6)], "the first come first"
    monkeypatch.setattr(module, "MOST_CHARACTERS", 10)
    rig.emit(1, "x" * 8)
    rig.emit(2, "y" * 8)
    rig.emit(3, "z" * 8)
    call = rig.take()
    assert [task_id for task_id, _ in rig.sent(call)] == ["task 1", "task 2"]


async def test_threads_may_emit_while_calls_are_made() -> None:
    """Nothing is left behind, whoever comes first."""
    rig = Rig(*(Stub(token) for token in range(1, 5)))
    sent = dict.fromkeys(range(1, 5), 0)

    def emit(token: int) -> None:
        for _ in range(100):
            rig.emit(token, "x")

    threads = [asyncio.create_task(asyncio.to_thread(emit, token)) for token in sent]
    while True:
        done = all(thread.done() for thread in threads)
        call = rig.take()
        if call is None:
            if done:
                break
            await asyncio.sleep(0)
            continue
        lengths = []
        for one in call.emitted:
            sent[one.token] += sum(len(part.text) for part in one.unsent.parts)
            lengths.append(one.unsent.place + len(one.unsent.parts) - 1)
        rig.emissions.answered(call, lengths)
        await asyncio.sleep(0)
    assert sent == dict.fromkeys(range(1, 5), 100)
