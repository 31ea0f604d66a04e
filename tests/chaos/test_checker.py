"""The checker finds each kind of violation in small histories made by hand, and none in a good one."""

from typing import Any

import pytest
from chaos.checker import Final, check, check_counts, mixture, needless_losses, returns
from chaos.history import Event
from chaos.setting import BACKOFF, LEASE


def made(kind: str = "plain", *, acked: bool = True, delay: float = 0, fails: int = 0) -> list[Event]:
    """A task that was created at 0, and acknowledged at 0.1."""
    invoke = {"event": "invoke", "id": "x", "time": 0.0, "kind": kind, "delay": delay, "fails": fails}
    return [invoke, {"event": "acked" if acked else "unknown", "id": "x", "time": 0.1}]


def run(
    token: int, begin: float, finish: float | None = None, *, retry: int = 0, lost: int = 0, worker: int = 1
) -> list[Event]:
    """A run of the handler under a token, which is also the attempt's number."""
    events: list[Event] = [
        {
            "event": "start",
            "id": "x",
            "time": begin,
            "token": token,
            "attempt": token,
            "retry": retry,
            "lost": lost,
            "worker": worker,
        }
    ]
    if finish is not None:
        events.append({"event": "end", "id": "x", "time": finish, "token": token})
    return events


def settled(
    token: int, status: str = "completed", *, answer: str = "ok", error: str | None = None, at: float = 9
) -> list[Event]:
    return [
        {"event": "settle", "id": "x", "time": at, "token": token, "status": status, "answer": answer, "error": error}
    ]


def done(token: int, **other: Any) -> Final:
    return Final(**{"status": "completed", "token": token, "attempt": token, "result": {"token": token}, **other})


def of_kind(invoked: str, ran: str, *there: str) -> list[Event]:
    """A task of one function, and its run by a function in a worker that has those of `there`."""
    invoke, acked = made()
    (start, end) = run(1, 0.2, 0.5)
    about = {"function": ran, "functions": there}
    return [{**invoke, "function": invoked}, acked, {**start, **about}, end, *settled(1)]


CANCELLED = Final("cancelled", 0, 0)
CANCEL: Event = {"event": "cancel", "id": "x", "time": 2.0, "answer": True}
RETRIED = settled(1, "pending", error="ConnectionError", at=1.5)

GOOD = {
    "one run": (made() + run(1, 0.2, 0.5) + settled(1), done(1)),
    "not acknowledged, and not there": (made(acked=False), None),
    "not acknowledged, and there": (made(acked=False) + run(1, 0.2, 0.5) + settled(1), done(1)),
    "a settlement whose answer died with its worker": (made() + run(1, 0.2, 0.5), done(1)),
    "a retry after its backoff": (
        made("flaky", fails=1) + run(1, 1, 1.4) + RETRIED + run(2, 1.4 + BACKOFF, 2, retry=1) + settled(2),
        done(2, retry=1, failed_attempts=(1,)),
    ),
    "a second run beside one that was lost": (
        made() + run(1, 1, 8) + settled(1, answer="lost") + run(2, 5, 6, lost=1) + settled(2),
        done(2, lost=1, failed_attempts=(1,)),
    ),
    "a hand-back": (
        made() + run(1, 1, 1.2) + settled(1, "pending") + run(2, 1.3, 1.4) + settled(2),
        done(2),
    ),
    "a hand-back whose answer was lost, and that was sent again": (
        made() + run(1, 1, 1.2) + run(2, 1.3, 1.4) + settled(2) + settled(1, "pending", answer="lost"),
        done(2),
    ),
    "a task that was cancelled in time": ([*made("regretted", delay=3), CANCEL], CANCELLED),
    "a task of a kind": (of_kind("one", "one", "one", "two"), done(1, function="one")),
    "a poison task, lost three times": (
        made("poison") + run(1, 1) + run(2, 5, lost=1) + run(3, 9, lost=2),
        Final("failed", 3, 3, lost=3, error="lease_lost", failed_attempts=(1, 2, 3)),
    ),
}

BAD = {
    "lost: acknowledged, and gone": (made(), None),
    "lost: it ran, and is gone": (made(acked=False) + run(1, 1, 2), None),
    "lost: nobody created it": (run(1, 1, 2) + settled(1), done(1)),
    "stuck: still pending": (made(), Final("pending", 0, 0)),
    "stuck: still processing": (made() + run(1, 1, 2), Final("processing", 1, 1)),
    "settled_once: token 1 settled twice": (made() + run(1, 1, 2) + settled(1) + settled(1), done(1)),
    "settled_once: token 1 started twice": (made() + run(1, 1, 2) + run(1, 3, 4) + settled(1), done(1)),
    "settled_once: ended 2 times": (
        made() + run(1, 1, 2) + settled(1) + run(2, 3, 4, lost=1) + settled(2),
        done(2, lost=1, failed_attempts=(1,)),
    ),
    "refused: completed under token 1, and its worker was told lost": (
        made() + run(1, 1, 2) + settled(1, answer="lost"),
        done(1),
    ),
    "highest_token: completed under token 1": (
        made() + run(1, 1, 8) + run(2, 5, lost=1) + settled(1),
        done(2, lost=1, failed_attempts=(1,)),
    ),
    "highest_token: completed was accepted, it is failed": (
        made() + run(1, 1, 2) + settled(1),
        done(1, status="failed"),
    ),
    "highest_token: started under token 2": (made() + run(1, 1, 2) + run(2, 3, 4, lost=1) + settled(1), done(1)),
    "highest_token: completed under token 2 with another run's result": (
        made() + run(1, 1, 8) + run(2, 5, lost=1),
        done(2, lost=1, failed_attempts=(1,), result={"token": 1}),
    ),
    "overlap: tokens 1 and 2": (made() + run(1, 1, 8) + run(2, 5, 6) + settled(2), done(2)),
    "early: attempt 1 started 2.500 s before its delay": (
        made("delayed", delay=3) + run(1, 0.5, 0.6) + settled(1),
        done(1),
    ),
    "early: attempt 2 started 0.100 s before its backoff": (
        made("flaky", fails=1) + run(1, 1, 1.4) + RETRIED + run(2, 1.3 + BACKOFF, 2, retry=1) + settled(2),
        done(2, retry=1, failed_attempts=(1,)),
    ),
    "foreign: attempt 1 of function 'one' ran in a worker that has ['', 'two']": (
        of_kind("one", "", "", "two"),
        done(1, function="one"),
    ),
    "foreign: attempt 1 of function 'one' was run by 'two'": (
        of_kind("one", "two", "one", "two"),
        done(1, function="one"),
    ),
    "foreign: created for function 'one', and read as one for ''": (of_kind("one", "one", "one"), done(1)),
    "bounded: 2 runs with 0 retries": (made() + run(1, 1, 2) + run(2, 3, 4) + settled(2), done(2)),
    "bounded: 4 retries of 3": (
        made("doomed"),
        Final("failed", 5, 5, retry=4, error="ConnectionError", failed_attempts=(1, 2, 3, 4, 5)),
    ),
    "bounded: two runs have the same number": (
        made() + run(1, 1, 2) + [{**run(2, 5, lost=1)[0], "attempt": 1}] + settled(2),
        done(2, lost=1, failed_attempts=(1,)),
    ),
    "bounded: attempt 2 of 1": (made() + run(2, 1, 2) + settled(2), done(2, attempt=1)),
    "bounded: 1 retries were accepted, 0 counted": (made() + run(1, 1, 1.4) + RETRIED, done(2)),
    "bounded: 0 failed attempts are kept, of 1": (made() + run(1, 1, 2), done(2, lost=1)),
    "bounded: an attempt has failed twice": (made(), done(2, lost=2, failed_attempts=(1, 1))),
    "right_end: a poison task ended as": (made("poison") + run(1, 1), done(1)),
    "right_end: a plain task ended as": (
        made() + run(1, 1),
        Final("failed", 3, 3, lost=3, error="lease_lost", failed_attempts=(1, 2, 3)),
    ),
    "right_end: a flaky task ended as": (made("flaky", fails=2) + run(1, 1, 2) + settled(1), done(1)),
    "right_end: a doomed task ended as": (made("doomed", fails=9) + run(1, 1, 2) + settled(1), done(1)),
    "cancelled: cancelled, and completed": ([*made("regretted"), CANCEL, *run(1, 1, 3), *settled(1)], done(1)),
    "cancelled: attempt 1 started after": ([*made("regretted"), CANCEL, *run(1, 3, 4)], done(1, status="cancelled")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_has_no_violation(name: str) -> None:
    events, final = GOOD[name]
    assert check(events, {} if final is None else {"x": final}) == []


@pytest.mark.parametrize("wanted", BAD)
def test_each_kind_of_violation_is_found(wanted: str) -> None:
    promise, text = wanted.split(": ", 1)
    events, final = BAD[wanted]
    found = check(events, {} if final is None else {"x": final})
    assert any(v.promise == promise and v.text.startswith(text) for v in found), found


def test_counts_that_differ_from_the_tasks_are_found() -> None:
    finals = {"x": done(1), "y": done(2)}
    assert check_counts(finals, {"completed": 2, "failed": 0}, "stats") == []
    assert [v.text for v in check_counts(finals, {"completed": 1}, "stats")] == ["stats: 1 completed, not 2"]
    assert [v.text for v in check_counts(finals, {"completed": 2, "pending": 1}, "stats")] == [
        "stats: 1 pending, not 0"
    ]


def test_the_way_back_of_a_lost_task_is_measured() -> None:
    died = {"event": "died", "time": 2.0, "worker": 1}
    events = [*made(), *run(1, 1), died, *run(2, 2 + LEASE, 6, lost=1, worker=2), *settled(2)]
    final = {"x": done(2, lost=1, failed_attempts=(1,))}
    assert returns(events, final) == returns(events, final, quiet=True) == [1]
    assert returns([*events, {"event": "outage", "time": 3.0}], final, quiet=True) == []
    assert needless_losses(events, final) == 0
    assert needless_losses([event for event in events if event is not died], final) == 1
    noted = {**died, "time": 2 + LEASE + 0.1}  # by the driver, after the next attempt had begun
    assert needless_losses([noted if event is died else event for event in events], final) == 0


def by_code(*codes: str) -> list[Event]:
    """Attempts of one task, which the first code has created, and of a task of each code."""
    invokes = [{"event": "invoke", "id": f"of {code}", "time": 0.0, "code": code} for code in codes]
    starts = [{"event": "start", "id": f"of {codes[0]}", "time": 1.0, "code": code} for code in codes]
    return invokes + starts


def test_a_run_is_mixed_if_both_codes_made_tasks_and_had_attempts_of_the_same_one() -> None:
    found = mixture(by_code("old", "new"), "old")
    assert (found.old_creations, found.creations, found.old_attempts, found.attempts) == (1, 2, 1, 2)
    assert found.in_both == 1
    assert found.check() == []


@pytest.mark.parametrize("codes", [("new", "new"), ("old", "old")])
def test_a_run_with_one_code_only_is_not_mixed(codes: tuple[str, ...]) -> None:
    assert [violation.promise for violation in mixture(by_code(*codes), "old").check()] == ["mixed"]
