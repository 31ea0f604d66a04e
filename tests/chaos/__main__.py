"""A long chaos run: `PYTHONPATH=tests python -m chaos --minutes 10 --server valkey-9.1 --seed 1 [--mixed]`."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from chaos.driver import Driver
from chaos.durable import DurableServer
from chaos.releases import LAST_RELEASE, ReleaseMissingError, unpack
from support import SERVERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--server", choices=SERVERS, default=SERVERS[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", type=Path, help="where the history and the logs stay; else they are removed")
    mixed = f"half of the producers and workers have the code of release {LAST_RELEASE.version}"
    parser.add_argument("--mixed", action="store_true", help=mixed)
    options = parser.parse_args()
    beside = f", mixed with release {LAST_RELEASE.version}" if options.mixed else ""
    print(f"chaos for {options.minutes:g} minutes on {options.server}, seed {options.seed}{beside}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            old = unpack(LAST_RELEASE, Path(temporary) / "release") if options.mixed else None
        except ReleaseMissingError as error:
            parser.error(str(error))
        driver = Driver(DurableServer(options.server, folder), folder, options.seed, old)
        summary = driver.run(60 * options.minutes)
    for violation in summary.violations:
        print(violation)
    print(summary.line(options.server))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
