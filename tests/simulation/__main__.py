"""Run many histories: `python -m simulation --seeds 1000`, in the folder tests. Exit code 1: one broke a promise."""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from support import USUAL, Server

from simulation.mutants import MUTANTS
from simulation.network import RealServer
from simulation.plan import Plan, shrink
from simulation.scenario import Outcome, run


@contextmanager
def server() -> Iterator[RealServer]:
    """Start a server of its own for one process."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        one = Server(USUAL, Path(folder), "--unixsocket", path)
        real = RealServer(path)
        gc.freeze()  # the collection at the end of each history then looks at nothing older
        try:
            yield real
        finally:
            gc.unfreeze()
            real.close()
            one.stop()


def several(seeds: list[str]) -> list[Outcome]:
    with server() as real:
        return [run(Plan.of(seed), real) for seed in seeds]


def found(mutant: str, seeds: int) -> tuple[str, str]:
    """Return what finds a mutant first, of so many seeds."""
    with server() as real:
        for seed in range(seeds):
            outcome = run(Plan.of(f"{seed}"), real, mutant)
            if outcome.violations:
                return mutant, f"found by seed {seed}: {outcome.violations[0]}"
    return mutant, f"NOT FOUND by {seeds} seeds"


def shrunk(seed: str) -> None:
    """Print the smallest part of a seed's plan that breaks a promise."""
    with server() as real:
        plan = shrink(Plan.of(seed), lambda plan: bool(run(plan, real).violations))
        print(plan, *run(plan, real).violations, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--mutants", action="store_true", help="show that each fault in mutants.py is found")
    parser.add_argument("--shrink", metavar="SEED", help="show the smallest part of a seed that breaks a promise")
    options = parser.parse_args()
    if options.shrink:
        shrunk(options.shrink)
        return
    with ProcessPoolExecutor(options.processes) as pool:
        sys.exit(_mutants(pool, options.seeds) if options.mutants else _seeds(pool, options))


def _mutants(pool: ProcessPoolExecutor, seeds: int) -> bool:
    missed = False
    for one in as_completed([pool.submit(found, mutant, seeds) for mutant in MUTANTS]):
        mutant, how = one.result()
        print(f"{mutant}: {how}", flush=True)
        missed = missed or how.startswith("NOT")
    return missed


def _seeds(pool: ProcessPoolExecutor, options: argparse.Namespace) -> bool:
    seeds = [f"{n}" for n in range(options.first, options.first + options.seeds)]
    size = max(1, min(50, len(seeds) // options.processes))
    began = time.perf_counter()
    statuses, faults = Counter[str](), Counter[str]()
    seconds, broken = 0.0, 0
    for outcomes in pool.map(several, [seeds[n : n + size] for n in range(0, len(seeds), size)]):
        for one in outcomes:
            seconds += one.worker_seconds
            statuses += one.statuses
            faults += one.faults
            for violation in one.violations:
                print(f"seed {one.plan.seed}: {violation}", flush=True)
            broken += bool(one.violations)
    took = time.perf_counter() - began
    hours = seconds / 3600
    print(f"{len(seeds)} seeds, {broken} broke a promise; {hours:.1f} worker-hours in {took:.0f} s", end="; ")
    print(f"{hours / took * 60:.1f} a minute; {dict(statuses)}; {dict(faults)}")
    return bool(broken)


if __name__ == "__main__":
    main()
