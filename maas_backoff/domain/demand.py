"""A task's demand on a GPU, which must be met before the task starts."""

from typing import Self

import attrs

MIB_PER_GIB = 1024


@attrs.frozen
class Demand:
    """Free memory in MiB, and a utilisation in percent that the device must be below (0: no limit)."""

    memory: int
    ceiling: float = 0

    @property
    def name(self) -> str:
        """The stored name: "<MiB>:<percent>"."""
        return f"{self.memory}:{self.ceiling:g}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the demand with this name."""
        memory, _, ceiling = name.partition(":")
        return cls(int(memory), float(ceiling or 0))

    def __str__(self) -> str:
        needs: list[str] = []
        if self.memory:
            needs.append(f"{gib(self.memory)} free")
        if self.ceiling:
            needs.append(f"utilisation below {self.ceiling:g} %")
        return " and ".join(needs)


@attrs.frozen
class Waiting:
    """The tasks that wait with one demand: the rank of the first task, and the seconds since it was due.

    `name` is the name of their set, and `avoid` the device that the first task avoids if it can. `suspect` says whether
    the first task is one.
    """

    name: str
    demand: Demand
    rank: float
    age: float
    avoid: str = ""
    suspect: bool = False


def gib(mib: float) -> str:
    """Return an amount of memory in GiB, in words."""
    return f"{round(mib / MIB_PER_GIB, 2):g} GiB"
