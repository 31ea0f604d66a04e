"""Only the grants change a grant; and how a grant follows its attempt and its child process."""

import ast
import asyncio
from pathlib import Path

from maas_backoff.config import GpuConfig
from maas_backoff.domain.demand import Demand
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.sample import GpuSample

PACKAGE = Path(__file__).parents[2] / "maas_backoff"
PID, OTHER_PID = 4711, 4712


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_grant(clock: Clock, mib: int = 10) -> Grant:
    context = GateContext(GpuConfig(), worker="w", queue="q", in_children=True, changed=asyncio.Event(), clock=clock)
    return Grant("w/1", context, GpuSample("GPU-a", 3, "Fake", 16, 16, 0), 0, Demand(mib))


def evictions(grant: Grant, pid: int = PID) -> list[int]:
    """Have a child use a grant; return a list that grows when the child is to end."""
    told: list[int] = []
    grant.used_by(pid, lambda: told.append(pid))
    return told


def assigned(path: Path) -> list[str]:
    """Return the attributes of a variable or an attribute with the name `grant` that a module assigns."""
    stored = (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
    )
    return [one for one in map(ast.unparse, stored) if "grant." in one]


def test_no_other_module_assigns_an_attribute_of_a_grant() -> None:
    found = {f"{path.relative_to(PACKAGE)}": assigned(path) for path in PACKAGE.rglob("*.py")}
    assert {name: them for name, them in found.items() if them} == {}


def test_a_child_keeps_the_memory_after_its_attempt() -> None:
    clock = Clock()
    grant = a_grant(clock)
    evicted = evictions(grant)
    grant.claimed("a task", Demand(4))
    assert (grant.mib, grant.reservation.task_id, grant.is_warm) == (10, "a task", False), "the child has all of it"
    clock.now = 5
    grant.attempt_ended()
    assert (grant.state, grant.since, grant.is_warm, grant.reservation.task_id) == ("idle", 5, True, "-")
    grant.end_child()
    assert (evicted, grant.state, grant.is_warm) == ([PID], "ending", False)
    grant.end_child()
    assert evicted == [PID], "once"


def test_without_a_child_a_task_gets_what_it_needs() -> None:
    grant = a_grant(Clock())
    grant.claimed("a task", Demand(4))
    assert (grant.mib, grant.owner) == (4, "-")


def test_only_the_end_of_its_own_child_counts() -> None:
    grant = a_grant(Clock())
    evictions(grant)
    evictions(grant, OTHER_PID)
    grant.process_ended(PID)
    assert (grant.owner, grant.child.ended) == (owner_of(OTHER_PID), False)
    grant.process_ended(OTHER_PID)
    assert (grant.state, grant.child.ended) == ("running", True), "its attempt has not ended"
    grant.attempt_ended()
    assert grant.state == "ending"


def test_the_ledger_is_told_before_the_memory_of_a_child_is_seen_free() -> None:
    grant = a_grant(Clock())
    evictions(grant)
    grant.child.shown(GpuSample("GPU-a", 3, "Fake", 16, 9, 1, {owner_of(PID): 7}), in_attempt=True)
    grant.written()
    assert (grant.reservation.seen, grant.child.peak, grant.changed, grant.child.reported) == (7, 7, False, True)
    grant.process_ended(PID)
    assert (grant.reservation.seen, grant.changed) == (0, True)


def test_the_next_task_of_a_warm_child_has_a_peak_of_its_own() -> None:
    grant = a_grant(Clock())
    evictions(grant)
    grant.child.shown(GpuSample("GPU-a", 3, "Fake", 16, 9, 1, {owner_of(PID): 7}), in_attempt=True)
    grant.attempt_ended()
    grant.take_for(Demand(12), 12)
    assert (grant.state, grant.mib, grant.demand, grant.child.peak, grant.child.kept) == (
        "running",
        12,
        Demand(12),
        0,
        12,
    )
