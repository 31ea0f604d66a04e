"""The plan of a history: what is created, what goes wrong and when, by a seed."""

import random
from collections.abc import Callable

import attrs
from chaos.functions import FUNCTIONS

from simulation.batches import Batches

LEASE = 30.0

SECONDS = 400.0
"""How long tasks are created and things go wrong."""

KINDS = {
    "plain": 60,
    "flaky": 20,
    "doomed": 5,
    "delayed": 8,
    "regretted": 5,
    "interrupted": 3,
    "poison": 1,
    "limited": 12,
}

FAULTS = {
    "kill": 4,
    "outage": 1,
    "poweroff": 1,
    "stop": 3,
    "drain": 2,
    "cut": 3,
    "slow": 1,
    "restart": 2,
    "flush": 1,
    "clock": 1,
    "deny": 1,
    "lose_writes": 0.25,
}


SHARE_STEPS = {"pause": 1, "limit": 1}
"""Changes of tenants and limits by a person."""


@attrs.frozen
class Step:
    """One thing that happens: a task that is created, or a fault."""

    at: float
    what: str
    seed: str


@attrs.frozen
class Plan:
    """All that a seed has happen."""

    seed: str
    workers: int
    hosts: int
    noise: float
    steps: tuple[Step, ...]
    homes: tuple[int, ...] = ()
    """For each function, the place whose worker has it at the end. Empty: no task has a kind."""
    has_tenants: bool = False
    """Whether tasks have tenants and limits."""
    batches: Batches | None = None
    """The kinds that run in batches; None: there are none."""
    has_streams: bool = False
    """Whether some tasks emit words, which readers read."""

    @classmethod
    def of(cls, seed: str) -> "Plan":
        choice = random.Random(f"plan {seed}")
        tasks = choice.randint(5, 60)
        found = [Step(choice.uniform(0, SECONDS), "create", f"{seed}-{n}") for n in range(tasks)]
        for n in range(choice.randint(0, 10)):
            what = choice.choices(list(FAULTS), list(FAULTS.values()))[0]
            found.append(Step(choice.uniform(0, SECONDS), what, f"{seed}-{n}"))
        noise = choice.choice([0, 0.005, 0.02, 0.1])
        workers = choice.randint(1, 4)
        hosts, homes = choice.randint(1, workers), ()
        of_kinds = random.Random(f"kinds {seed}")
        if of_kinds.random() < 0.5:
            homes = tuple(of_kinds.randrange(workers) for _ in FUNCTIONS)
            deploys = range(of_kinds.randint(0, 2))
            found += [Step(of_kinds.uniform(0, SECONDS), "deploy", f"{seed}-{n}") for n in deploys]
        of_shares = random.Random(f"shares {seed}")
        has_tenants = of_shares.random() < 0.5
        if has_tenants:
            if of_shares.random() < 0.4:  # nothing goes wrong: the shares can be known
                found, noise, homes = [step for step in found if step.what == "create"], 0, ()
                found.append(Step(of_shares.uniform(0, SECONDS), "flood", f"{seed}-flood"))
            else:
                for n in range(of_shares.randint(0, 4)):
                    what = of_shares.choices(list(SHARE_STEPS), list(SHARE_STEPS.values()))[0]
                    found.append(Step(of_shares.uniform(0, SECONDS), what, f"{seed}-{n}"))
            rush = of_shares.uniform(0, SECONDS)  # many tasks at once: tenants wait for their turns, and for limits
            for n in range(of_shares.randint(0, 60)):
                found.append(Step(rush + of_shares.uniform(0, 20), "create", f"{seed}-rush-{n}"))
        batches, of_batches = None, random.Random(f"batches {seed}")
        if of_batches.random() < 0.4 and all(step.what != "flood" for step in found):
            batches = Batches.of(of_batches, workers)
            if batches.alone:
                found, homes = [step for step in found if step.what != "create"], ()
            for n in range(of_batches.randint(3, 10 if has_tenants else 25)):
                found.append(Step(of_batches.uniform(0, SECONDS), "join", f"{seed}-join-{n}"))
            for n in range(of_batches.randint(0, 2)):
                found.append(Step(of_batches.uniform(0, SECONDS), "pause_kind", f"{seed}-{n}"))
        steps = tuple(sorted(found, key=lambda step: step.at))
        # A server that refuses all parts for a while makes a stream end early.
        has_streams = random.Random(f"streams {seed}").random() < 0.3 and all(step.what != "deny" for step in found)
        return cls(seed, workers, hosts, noise, steps, homes, has_tenants, batches, has_streams)

    def without_batches(self) -> "Plan":
        """Return this plan without all that is about batches."""
        steps = tuple(step for step in self.steps if step.what not in {"join", "pause_kind"})
        return attrs.evolve(self, batches=None, steps=steps)


def shrink(plan: Plan, breaks: Callable[[Plan], bool]) -> Plan:
    """Return a smaller plan that still breaks a promise: steps are left out as long as that holds."""
    size = len(plan.steps)
    while size:
        at = 0
        while at < len(plan.steps):
            smaller = attrs.evolve(plan, steps=plan.steps[:at] + plan.steps[at + size :])
            if breaks(smaller):
                plan = smaller
            else:
                at += size
        size //= 2
    simpler = [
        attrs.evolve(plan, **changes)
        for changes in ({"noise": 0.0}, {"homes": ()}, {"has_tenants": False}, {"has_streams": False})
    ]
    for smaller in (*simpler, plan.without_batches()):
        if smaller != plan and breaks(smaller):
            plan = smaller
    return plan
