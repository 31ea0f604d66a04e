"""The Lua scripts: loaded once, called by digest. Each file's header says what it takes and gives."""

import hashlib
import re
from importlib.resources import files

import attrs

_FOLDER = files("maas_backoff.store") / "lua"
_INCLUDE = re.compile(r"^--#include (\w+)\n", re.MULTILINE)
# Half of the text: it is sent where a server does not know the script, and all of it at the start of each process.
_COMMENTS = re.compile(r"--\[\[.*?\]\]\n|^ *--[^\n]*\n|^ +|^\n", re.DOTALL | re.MULTILINE)


@attrs.frozen
class Script:
    """One transition. `keys` and `args` are the names in the header of its file, in order."""

    name: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    text: str = attrs.field(repr=False)
    digest: str = attrs.field(repr=False)

    @classmethod
    def load(cls, name: str, keys: str, args: str) -> "Script":
        """Return the script of `lua/<name>.lua`; `keys` and `args` are names, separated by spaces."""
        text = _COMMENTS.sub("", _INCLUDE.sub(lambda match: _read(match[1]), _read(name)))
        digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - EVALSHA's name for a text, not a secret
        return cls(name, tuple(keys.split()), tuple(args.split()), text, digest)


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")


ENQUEUE = Script.load(
    "enqueue",
    "ready scheduled marker policies meta",
    "now prefix policy policy_text max_queue_size groups",
)
SETTLE = Script.load(
    "settle",
    "ready suspects scheduled leases external completed failed cancelled meta marker watched totals request",
    "now prefix settle_id worker lease_ms request_id claims suspicion max_finished fits tally groups",
)
RENEW = Script.load("renew", "leases workers info meta", "now prefix worker info lease_ms")
LEAVE = Script.load("leave", "workers info marker ready scheduled demands gpu_marker suspects", "worker")
REAP = Script.load("reap", "leases completed failed cancelled meta", "now prefix gap_ms grace_ms limit")
CANCEL = Script.load("cancel", "task call meta", "prefix id keep_ms call_ms")
PROGRESS = Script.load("progress", "meta watched", "prefix")
GET = Script.load("get", "task ready watched meta", "now id watch_ms")
LIST = Script.load("list", "meta", "now prefix limit index score skip reverse brief due_only")
STATS = Script.load("stats", "ready suspects scheduled leases external completed failed cancelled meta", "now prefix")
DELETE = Script.load(
    "delete", "task ready suspects scheduled external completed failed cancelled watched call", "prefix id call_ms"
)
PURGE = Script.load("purge", "meta watched call", "prefix status limit call_ms")
PAUSE = Script.load("pause", "meta marker gpu_marker call", "now prefix on call_ms")
UPCOMING = Script.load("upcoming", "scheduled meta", "now step_ms steps")
HISTORY = Script.load("history", "totals meta", "now prefix minutes")
DEMANDS = Script.load("demands", "demands ready hold meta", "now prefix suspicion")
HOLD = Script.load("hold", "hold meta", "now value lease_ms")
ORPHANS = Script.load(
    "orphans",
    "ready suspects scheduled leases external completed failed cancelled meta marker gpu_marker",
    "now prefix repair lease_ms result_ttl_s failed_ttl_s",
)
FLEET = Script.load("fleet", "workers meta", "now prefix limit")

QUEUE = (
    *(ENQUEUE, SETTLE, RENEW, LEAVE, REAP, CANCEL, PROGRESS, DEMANDS, HOLD),
    *(GET, LIST, STATS, FLEET, UPCOMING, HISTORY, DELETE, PURGE, PAUSE, ORPHANS),
)
"""Those that work on a queue."""

RESERVE = Script.load("reserve", "ledger", "now id mib free limit lease_ms settle_ms holder owner rest")
KEEP = Script.load("keep", "ledger", "now lease_ms seen_ms how")
LEDGER = Script.load("ledger", "ledger", "now")
POST = Script.load("post", "ledger", "now field lease_ms value")
DOUBT = Script.load("doubt", "ledger", "now task limit shut_ms reason queue")

DEVICE = (RESERVE, KEEP, LEDGER, POST, DOUBT)
"""Those that work on the ledger of a GPU, which is another place in a Cluster."""

ALL = QUEUE + DEVICE
