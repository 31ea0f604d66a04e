"""Histories of a whole fleet in virtual time keep the promises; faults that are put in are found."""

from collections import Counter
from collections.abc import Iterator

import attrs
import pytest
import redis
from chaos.functions import FUNCTIONS
from lanes import Lanes

from simulation import scenario
from simulation.__main__ import server
from simulation.mirror import Mirror
from simulation.mutants import MUTANTS
from simulation.network import RealServer
from simulation.plan import Plan, Step, shrink
from simulation.scenario import run
from simulation.streams import how_of

SEEDS = [f"{n}" for n in range(12)]
"""With each kind of fault among them. `nox -s simulate` runs any number."""


@pytest.fixture(scope="module")
def real() -> Iterator[RealServer]:
    with server() as one:
        yield one


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [*SEEDS[:3], *(pytest.param(seed, marks=pytest.mark.long) for seed in SEEDS[3:])])
def test_a_history_keeps_the_promises(seed: str, real: RealServer) -> None:
    outcome = run(Plan.of(seed), real)
    assert not outcome.violations
    assert sum(outcome.statuses.values()) >= 5


@pytest.mark.long
def test_half_of_the_seeds_have_tasks_of_kinds_and_workers_of_some_kinds(real: RealServer) -> None:
    """Some workers lack a kind, and each kind runs."""
    plans = [Plan.of(seed).without_batches() for seed in SEEDS]
    assert 0 < sum(bool(plan.homes) for plan in plans) < len(SEEDS)
    plan = next(plan for plan in plans if plan.homes and plan.workers > 1)
    starts = [event for event in run(plan, real).events if event["event"] == "start"]
    assert {start["function"] for start in starts} == set(FUNCTIONS)
    assert any(len(start["functions"]) < len(FUNCTIONS) for start in starts)


@pytest.mark.long
def test_half_of_the_seeds_have_tenants_and_limits(real: RealServer) -> None:
    """Tasks wait for limits, in some of these histories nothing goes wrong, and tenants are paused in others."""
    plans = [Plan.of(f"{seed}") for seed in range(40)]
    shared = [plan for plan in plans if plan.has_tenants]
    assert 10 < len(shared) < 30
    steps = [{step.what for step in plan.steps} for plan in shared]
    assert sum("flood" in whats for whats in steps) > 2 < sum("pause" in whats for whats in steps)
    plan = next(plan for plan in shared if any(step.what == "flood" for step in plan.steps))
    starts = [event for event in run(plan, real).events if event["event"] == "start"]
    assert {"a", "b", "c"} == {start["id"].split("-")[1] for start in starts if start["id"].startswith("flood")}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_many_seeds_have_batches(real: RealServer) -> None:
    """Some workers have nothing else. Batches of several sizes run, and some of them fail as a whole."""
    plans = [Plan.of(f"{seed}") for seed in range(60)]
    own = [plan for plan in plans if plan.batches is not None]
    assert 10 < len(own) < 30
    assert 0 < sum(plan.batches.alone for plan in own if plan.batches) < len(own)
    assert any(step.what == "pause_kind" for plan in own for step in plan.steps)
    events = [event for plan in own[:4] for event in run(plan, real).events]
    sizes = Counter(
        Counter(event["batch"] for event in events if event["event"] == "start" and "batch" in event).values()
    )
    assert {1, 2, 3, 4} <= sizes.keys()
    assert any(event.get("whole") for event in events if event["event"] == "end")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_some_seeds_have_streams(real: RealServer) -> None:
    """Tasks emit in several attempts. Readers have seen parts of all of them."""
    plans = [Plan.of(f"{seed}") for seed in range(60)]
    own = [plan for plan in plans if plan.has_streams and not plan.has_tenants]
    assert 5 < len(own) < 25
    starts = [event for event in run(own[0], real).events if event["event"] == "start"]
    emitting = Counter(start["id"] for start in starts if how_of(start["id"]))
    assert max(emitting.values()) > 1


@pytest.mark.long
def test_looks_see_the_keys_that_the_server_has(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is complete after each change, also when the server loses its newest writes."""
    read, seen = Mirror.read, list[int]()

    def compared(mirror: Mirror) -> Lanes:
        found = read(mirror)
        assert found == Lanes.read(client, "chaos")
        seen.append(len(found.tasks))
        return found

    monkeypatch.setattr(Mirror, "read", compared)
    plan = Plan.of("3")
    assert plan.has_tenants
    with redis.Redis(unix_socket_path=real.path, protocol=3) as client:
        outcome = run(attrs.evolve(plan, steps=(*plan.steps, Step(350, "lose_writes", "loss"))), real)
    assert not outcome.violations and outcome.faults["lose_writes"]
    assert max(seen) > 10


@pytest.mark.long
def test_a_task_that_waits_for_several_batches_is_not_stuck(real: RealServer) -> None:
    """With a `max_wait` of 20 s, a task fails four times in turn: no look falls between two of its waits."""
    assert not run(Plan.of("2907"), real).violations


@pytest.mark.long
def test_a_seed_is_one_history(real: RealServer) -> None:
    """The history that was run before changes nothing."""
    first, other, again = (run(Plan.of(seed), real).fingerprint for seed in "232")
    assert first == again != other


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_failing_history_is_shrunk(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox that forgets leaves one task stuck, whatever else happens."""
    monkeypatch.setattr(scenario, "PATIENCE", 500.0)  # for so few tasks

    def breaks(plan: Plan) -> bool:
        return any(one.promise == "stuck" for one in run(plan, real, "an outbox that forgets").violations)

    plan = attrs.evolve(Plan.of("1").without_batches(), workers=1, hosts=1, homes=(), has_tenants=False)
    steps = tuple(step for step in plan.steps if step.what != "deploy")
    plan = attrs.evolve(plan, steps=steps[:30])
    assert breaks(plan)
    small = shrink(plan, breaks)
    # The outbox forgets the 25th settlement: 16 tasks have so many.
    assert breaks(small) and len(small.steps) < len(plan.steps) * 2 / 3


def test_each_fault_can_be_put_in() -> None:
    """Its place in the library is still there: once."""
    for fault in MUTANTS.values():
        with fault():
            pass


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mutant", "first"),
    [
        ("no token fence", 0),
        ("an outbox that forgets", 0),
        ("a live neighbour that is taken for dead", 1),
        ("a claim of any kind of tasks", 0),
        ("a due task that forgets its kind", 0),
        ("a lost lease that keeps its places in limits", 2),
        ("a lane that is forgotten when its limit has room", 0),
        ("shares without weights", 5),
        ("a half that uses up a retry", 0),
        ("an outcome of another task of the batch", 0),
        ("a task that has failed alone and comes back in company", 0),
        ("an end that waits for no parts", 1),
    ],
)
def test_a_fault_is_found(mutant: str, first: int, real: RealServer) -> None:
    """One of 20 seeds finds it; `first` has done so lately. The others take up to 100 seeds: `--mutants`."""
    assert mutant in MUTANTS
    seeds = sorted(range(20), key=lambda seed: seed != first)
    assert any(run(Plan.of(f"{seed}"), real, mutant).violations for seed in seeds)
