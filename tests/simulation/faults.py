"""All that goes wrong in a history."""

import random
from functools import partial
from typing import TYPE_CHECKING

import attrs

from simulation.loop import Node
from simulation.plan import LEASE

if TYPE_CHECKING:
    from simulation.world import World


@attrs.frozen
class Faults:
    """A method for each fault in a plan."""

    world: "World"

    def _some_worker(self, choice: random.Random) -> Node | None:
        there = [node for node, _ in self.world.workers.values() if not node.dead and not node.still]
        return choice.choice(there) if there else None

    def kill(self, choice: random.Random) -> None:
        if (node := self._some_worker(choice)) is not None:
            self.world.die(node)

    def poweroff(self, choice: random.Random) -> None:
        """All workers of a host die at once."""
        if (one := self._some_worker(choice)) is not None:
            host = one.name.partition("/")[0]
            for node, _ in list(self.world.workers.values()):
                if node.name.partition("/")[0] == host and not node.dead:
                    self.world.die(node)

    def stop(self, choice: random.Random) -> None:
        """A worker stands still, mostly for longer than its leases, and often just until a reaper sees their end."""
        if (node := self._some_worker(choice)) is not None:
            node.still = True
            self.world.note("stop", worker=node.number)
            if choice.random() < 0.6:
                self.world.network.still_until_look[node] = self.world.renewed.get(node, self.world.loop.now) + LEASE
            self.world.outside(choice.uniform(0.2, 2.5) * LEASE, lambda: self.world.loop.go_on(node))

    def drain(self, choice: random.Random) -> None:
        """A worker drains, and another takes its place."""
        node = self._some_worker(choice)
        for place, (other, _) in list(self.world.workers.items()):
            if other is node:
                self.world.replace(place)

    def deploy(self, choice: random.Random) -> None:
        """All workers are replaced, one after the other, by workers that may have other kinds."""
        pause = choice.uniform(0, 0.5) * LEASE
        for n, place in enumerate(sorted(self.world.workers)):
            self.world.outside(n * pause, partial(self.world.replace, place))

    def cut(self, choice: random.Random) -> None:
        if (node := self._some_worker(choice)) is not None:
            self.world.network.cut.add(node)
            self.world.outside(choice.uniform(0.1, 2.5) * LEASE, lambda: self.world.network.cut.discard(node))

    def slow(self, choice: random.Random) -> None:
        self.world.network.slowness = choice.uniform(10, 200)
        self.world.outside(choice.uniform(1, 60), lambda: setattr(self.world.network, "slowness", 1.0))

    def outage(self, choice: random.Random) -> None:
        """The server is away, mostly for longer than a lease."""
        self.world.network.down = True
        self.world.network.reset_all()
        since = self.world.time()

        def up() -> None:
            if self.world.network.down:  # a restart in between would have ended the outage
                self.world.note("away", since=since)
            self.world.network.down = False

        self.world.outside(choice.uniform(0.5, 2.5) * LEASE, up)

    def restart(self, choice: random.Random) -> None:
        self.world.network.down = True
        self.world.network.reset_all()

        def up() -> None:
            self.world.server.forget_scripts()
            self.world.network.down = False

        self.world.outside(choice.choice([0.05, 2, 20]) * choice.random(), up)

    def lose_writes(self, choice: random.Random) -> None:
        """The server comes back as it was a moment ago."""
        self.world.loses = True
        before = self.world.server.snapshot()

        def down() -> None:
            self.world.server.restore(before)
            self.restart(choice)

        self.world.outside(choice.uniform(0.01, 1), down)

    def flush(self, choice: random.Random) -> None:
        self.world.server.forget_scripts()

    def clock(self, choice: random.Random) -> None:
        self.world.jumps = True
        self.world.network.offset_ms += choice.choice([-1, 1]) * choice.choice([50, 1500, 20_000, 200_000])

    def deny(self, choice: random.Random) -> None:
        self.world.network.denied = True
        self.world.outside(choice.uniform(0.1, 30), lambda: setattr(self.world.network, "denied", False))
