"""The summary of a chaos run."""

from collections import Counter

import attrs
from chaos.checker import Mixture, Violation


@attrs.frozen
class Summary:
    """The numbers of a run, and every promise that was not kept."""

    seed: int
    statuses: Counter[str]
    poisoned: int
    violations: list[Violation]
    faults: Counter[str]
    longest_return: float
    longest_quiet_return: float
    needless_losses: int
    mixture: Mixture | None = None

    def broken(self, *promises: str) -> int:
        return sum(violation.promise in promises for violation in self.violations)

    def line(self, server: str) -> str:
        """Return the run in one line."""
        faults = " ".join(f"{name}={count}" for name, count in sorted(self.faults.items()))
        states = " ".join(f"{name}={self.statuses[name]}" for name in ("completed", "failed", "cancelled"))
        return (
            f"{server} seed={self.seed}: created={self.statuses.total()} {states} poison={self.poisoned} "
            f"lost={self.broken('lost')} settled_twice={self.broken('settled_once', 'highest_token')} "
            f"stuck={self.broken('stuck')} violations={len(self.violations)} | {faults} | "
            f"longest return {self.longest_return:.1f} leases, {self.longest_quiet_return:.1f} with the server up; "
            f"{self.needless_losses} needless losses" + (f" | {self.mixture}" if self.mixture else "")
        )
