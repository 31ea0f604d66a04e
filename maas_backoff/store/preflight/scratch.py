"""The life of some tasks on scratch keys of a queue, in which every part of the scripts runs."""

from collections.abc import Iterator, Sequence

from maas_backoff.domain.kind import NAMELESS
from maas_backoff.store import scripts
from maas_backoff.store.keys import Keys
from maas_backoff.store.scripts import Script

_NOW = 1_700_000_000_000
"""The time of the trial, in ms: fixed, so that the key of its minute is known."""

_STEPS = (("h", 1), ("h10", 10), ("h60", 60), ("hk", 1), ("hk10", 10))
"""Hashes of the history, and the minutes of their steps."""
_OF_KINDS = ("ready", "suspects", "marker", "gpu_marker")
_OF_LANES = (
    *(
        "lanes",
        "laned",
        "waiting",
        "virtual",
        "tenants",
        "paused_tenants",
        "paused_by",
        "limits",
        "use",
        "held",
        "arrivals",
        "closed",
        "opens",
    ),
    *("ready|tenant|limit", "ready:turns", "ready:limited|tenant", "shut:limit", "shut_lanes:limit|tenant"),
)

_DEFAULTS = {
    "now": str(_NOW),
    "policy": "policy",
    "policy_text": "",
    "all_or_none": "1",
    "settle_id": "claim",
    "request_id": "",
    "lease_ms": "60000",
    "keep_ms": "60000",
    "call_ms": "60000",
    "watch_ms": "60000",
    "status": "pending",
    "repair": "1",
    "result_ttl_s": "60",
    "failed_ttl_s": "60",
    "step_ms": "60000",
    "steps": "10",
    "step": "1",
    "tally": "w1 1",
    "id": "a",
    "token": "",
    "kind": "",
    "tenant": "tenant",
    "weight": "",
    "on": "",
    "breakdown": "",
    "of": "k",
    "by": "",
    "name": "limit",
    "setting": "",
    "part": "tenants",
    "fits": "",
    "value": "value",
    "gap_ms": "0",
    "grace_ms": "0",
    "limit": "10",
    "claims": "0",
    "groups": "0",
    "suspicion": "1 -",
    "kinds": "- kind",
    "process": "boot/1/1/1",
    "cursor": "0",
    "max_finished": "1",
    "max_queue_size": "1000",
    "max_tenant_queue_size": "1000",
    "used": "",
    "index": "1",
    "score": "-inf",
    "skip": "0",
    "reverse": "0",
    "brief": "0",
    "due_only": "0",
}
"""Values of arguments by their names; each new argument of a script needs one here."""


class Scratch:
    """A queue of scratch keys within the queue, which no other process reads."""

    def __init__(self, keys: Keys) -> None:
        self._keys = Keys("")
        self._keys.prefix = f"{keys.prefix}check:"
        self._worker = "worker"
        self._own = {
            "request": self._keys.request(self._worker, 0),
            "info": self._keys.info(self._worker),
            "host": self._keys.host("", ""),
            "name": self._keys.name(""),
            "quiet": self._keys.quiet(self._worker),
        }
        self._defaults = {**_DEFAULTS, "prefix": self._keys.prefix, "worker": self._worker}

    def fill(self, word: str) -> str:
        """Return a word of a command, with a key or a channel in its place."""
        return {"$": self._keys("nothing"), "&": self._keys("nothing")}.get(word, word)

    def names(self) -> list[str]:
        """Return all keys that the scripts may write."""
        tasks = [self._keys.task(task_id) for task_id in "abcdefghijkl"]
        tasks += [
            self._keys.stream("a"),
            self._keys.log("a"),
            self._keys("deadlines"),
            self._keys("demands"),
            self._keys("gpu:1:0"),
            self._keys("gpu:kind/1:0"),
            self._keys("kinds"),
            *(self._keys(self._keys.of_kind(kind, name)) for kind in (NAMELESS, "kind") for name in _OF_KINDS),
            self._keys("errors"),
            *map(self._keys, _OF_LANES),
            *(self._keys(f"{name}:{_NOW // 60_000 // step}") for name, step in _STEPS),
        ]
        found = {key for _, own, _ in self.life() for key in own}
        return sorted({*found, *tasks, self._keys.control(self._worker)})

    def life(self) -> Iterator[tuple[Script[object], Sequence[str], list[str]]]:
        """Yield the steps of ten tasks from creation to end, so that every part of the scripts runs."""
        settle = scripts.SETTLE
        now, later, gpu = (
            ("policy 0 0 -", "", "", "2"),
            ("policy", "in 60000", "", "1"),
            ("policy 0 0 1:0", "", "", "1"),
        )
        made = [*now, "a", "{}", "c", "{}", *later, "b", "{}", *gpu, "d", "{}"]
        yield self._step(scripts.ENQUEUE, *made, groups="3", policy_text="{}")
        yield self._step(scripts.ENQUEUE, *made, groups="3")
        kinds = [*("policy 0 0 - kind", "", "", "1", "f", "{}"), *("policy 0 0 1:0 kind", "", "", "1", "g", "{}")]
        yield self._step(scripts.ENQUEUE, *kinds, groups="2")
        yield self._step(settle, claims="1", request_id="first", kinds="-")
        first_token = f"{_NOW * 1000 + 1}"
        yield self._step(scripts.RENEW, "a", first_token, "b", "2", info="{}")
        yield self._step(scripts.PROGRESS, "a", first_token, "50", "half", "b", "", "50", "")
        part, line = (
            ("a", first_token, "1", "0", "1", "1", "1", "0", "t", "x"),
            ("a", first_token, *"1021021", "j", "1", "x"),
        )
        yield self._step(scripts.EMIT, *part)
        yield self._step(scripts.EMIT, *line)
        yield self._step(scripts.STREAM, "parts", "a", "", "log", "a", "last 1", limit="1000")
        yield self._step(scripts.GET, "a", "b", limit="1000")
        yield self._step(settle, *_settled("a", "lease", "pending"), groups="1", settle_id="retry")
        yield self._step(settle, claims="2", request_id="second", kinds="-")
        yield self._step(settle, claims="1", request_id="third")
        for task_id in "kl":
            yield self._step(scripts.ENQUEUE, "policy 0 0 - kind  1", "", "", "1", task_id, "{}", groups="1")
            yield self._step(settle, claims="3 60000 9", request_id=f"batch {task_id}", kinds="kind")
        yield self._step(settle, claims="2 0 -", request_id="batch", kinds="kind")
        yield self._step(settle, *_settled("a", "expired", "pending"), groups="1", settle_id="reap")
        yield self._step(scripts.CANCEL, task="a", id="a")
        ended = [*_settled("a", "lease", "completed"), *_settled("c", "lease", "failed")]
        ended += _settled("b", "pending", "external")
        yield self._step(settle, *ended, groups="3", settle_id="end", breakdown="1 kind  5")
        yield self._step(settle, *_settled("c", "finished", "pending"), groups="1", settle_id="again")
        yield self._step(scripts.DEMANDS)
        yield self._step(scripts.HOLD)
        yield self._step(scripts.FLEET)
        yield self._step(settle, claims="1", request_id="gpu", fits="1:0 GPU-a 0 1")
        yield self._step(scripts.EXPIRE)
        yield self._step(scripts.REAP)
        yield self._step(scripts.LIST, keys=("ready", "completed"), id="a")
        for script in (scripts.STATS, scripts.HISTORY, scripts.BREAKDOWN):
            yield self._step(script)
        yield self._step(scripts.UPCOMING, now="")
        yield self._step(scripts.ORPHANS, "a", "b")
        yield self._step(scripts.PAUSE, on="1", by="ada")
        yield self._step(scripts.PAUSE, on="0")
        yield self._step(scripts.PAUSE, on="1", kind="kind", by="ada")
        yield self._step(scripts.PAUSE, on="0", kind="kind")
        yield self._step(scripts.ENQUEUE, "policy", "", "", "1", "e", "{}", groups="1")
        yield self._step(scripts.ENQUEUE, "policy", "", '{"@by":[0,0,1,1,60]}', "1", "h", "{}", groups="1")
        yield self._step(settle, claims="3", request_id="late", now=f"{_NOW + 1}")
        yield from self._life_in_lanes()
        yield self._step(scripts.PURGE, keys=("scheduled",))
        yield self._step(scripts.DELETE, "a", "", "", "b", "", "")
        yield self._step(scripts.LEAVE)

    def _life_in_lanes(self) -> Iterator[tuple[Script[object], Sequence[str], list[str]]]:
        lane = "policy 0 0 - - tenant|limit 1,1"
        yield self._step(scripts.LIMIT, setting="1 0 0 0 0")
        yield self._step(scripts.ENQUEUE, lane, "", "", "2", "i", "{}", "j", "{}", groups="1")
        yield self._step(scripts.TENANT, on="1", by="ada")
        yield self._step(scripts.TENANT, on="0", weight="2")
        yield self._step(scripts.SETTLE, claims="2", request_id="lanes")
        yield self._step(
            scripts.SETTLE, *_settled("i", "lease", "failed"), groups="1", settle_id="lanes", used="c 1 limit 1"
        )
        yield self._step(scripts.GET, "j", limit="1000")
        yield self._step(scripts.LIST, keys=("ready|tenant|limit",))
        for part in ("waiting", "limits", "opens", "shut:limit", "shut_lanes:limit|tenant"):
            yield self._step(scripts.SHARES, part=part)
        yield self._step(scripts.LIMIT)
        yield self._step(scripts.DELETE, "j", "", "")

    def _step(
        self, script: Script[object], *items: str, task: str = "a", keys: Sequence[str] = (), **given: str
    ) -> tuple[Script[object], Sequence[str], list[str]]:
        call = self._keys.call(f"{script.name} {' '.join((*given.values(), *items[:1]))}")
        names = self._keys.all((*script.keys, *keys), task=self._keys.task(task), call=call, **self._own)
        args = [given[name] if name in given else self._defaults[name] for name in script.args]
        return script, names, [*args, *items]


def _settled(task_id: str, precondition: str, status: str) -> tuple[str, ...]:
    """Return a group of one settle."""
    return precondition, status, "0", "60", "retried e:error", "1", "1", task_id, "", "k", "0 0 0 0"
