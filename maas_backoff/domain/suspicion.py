"""Suspects: the cohorts in which lost tasks come back, and the share that a loss counts.

A task in a worker's own process can end that process, and nothing shows which task did it. Mostly none did: the machine
was taken away. So a task that is lost for the first time comes back as any other. Tasks that are lost again come back
together, in two cohorts of half the size. Innocent tasks complete there. A task that ends its workers is alone after
log2(n) losses, and only then do its losses count fully.

The tasks of a failed batch come back in halves, too: see batching.py. They have ended no worker, and count here as any
other task.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maas_backoff.domain.outcome import LeaseExpired
from maas_backoff.domain.settlement import Counts


class Lost(NamedTuple):
    """An attempt whose lease ran out: its worker, its token, and the task's counts before."""

    worker: str
    token: int
    counts: Counts


class Losses(NamedTuple):
    """How many tasks a worker has lost: `suspects` of cohorts of lost tasks, and `fresh` ones, which are all others.

    Halves of failed batches are fresh. The `_left` numbers leave out tasks that have come back already. `again` counts
    fresh ones that were lost before.
    """

    fresh: int = 0
    fresh_left: int = 0
    suspects: int = 0
    suspects_left: int = 0
    again: int = 0


def judge(lost: Sequence[Lost], by_worker: Mapping[str, Losses]) -> list[LeaseExpired]:
    """Return for each lost attempt how many tasks share the blame, and the task's new cohort.

    Suspects share the whole blame for their worker, also with fresh tasks that were lost before: one of these may have
    ended both workers. Fresh tasks share it with all lost suspects.
    The result depends only on the arguments: two reapers at the same time agree.
    """
    order = sorted(range(len(lost)), key=lambda n: (lost[n].counts.cohort, lost[n].token))
    places: Counter[tuple[str, bool]] = Counter()
    found: dict[int, LeaseExpired] = {}
    for n in order:
        one = lost[n]
        known, suspect = by_worker.get(one.worker, Losses()), one.counts.lost_together
        of_kind, left = (known.suspects, known.suspects_left) if suspect else (known.fresh, known.fresh_left)
        place = of_kind - left + places[one.worker, suspect]
        places[one.worker, suspect] += 1
        # In turns, so that tasks that come back in several steps are halved as well.
        half = place % 2
        together = of_kind + known.again if suspect else known.fresh + known.suspects
        found[n] = LeaseExpired(max(1, together), _name(one, half), max(1, (of_kind + 1 - half) // 2))
    return [found[n] for n in range(len(lost))]


def _name(one: Lost, half: int) -> str:
    """Return the name of a new cohort: the same for all tasks of one half that one worker lost of one cohort."""
    origin = f"{one.worker}\n{one.counts.suspect}\n{one.counts.cohort}\n{half}"
    return hashlib.blake2s(origin.encode(), digest_size=6).hexdigest()
