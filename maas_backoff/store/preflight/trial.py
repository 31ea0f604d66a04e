"""The trial of the scripts on scratch keys of a queue: shows that the user has all rights, and that the scripts run.

One EVAL does both. First it tries every command of the scripts, with arguments that the server refuses, or on a missing
key. The answers name each missing right, and nothing is written. If no right is missing, the scripts run the life of
ten tasks. The EVAL removes their keys at its end: no other process sees them, and none is left if this process dies.
The first write frees memory, because a full server would refuse another one.
"""

import re
from collections.abc import Iterator, Sequence

import attrs

from maas_backoff.domain.kind import NAMELESS
from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.store.keys import Keys
from maas_backoff.store.scripts import Script

SCHEMA = 1
"""The form of the data, as _schema.lua writes it. The number grows if an older release would misread new data."""

_NOW = 1_700_000_000_000
"""The time of the trial, in ms: fixed, so that the key of its minute is known."""

_WORKERS_ONLY = (scripts.RENEW, scripts.EXPIRE, scripts.REAP, scripts.LEAVE, scripts.DEMANDS, scripts.HOLD)
_OF_KINDS = ("ready", "suspects", "marker", "gpu_marker")
_OF_LANES = (
    *(
        "lanes",
        "laned",
        "waiting",
        "virtual",
        "tenants",
        "paused_tenants",
        "limits",
        "use",
        "held",
        "arrivals",
        "closed",
        "opens",
    ),
    *("ready|tenant|limit", "ready:turns", "ready:limited|tenant", "shut:limit", "shut_lanes:limit|tenant"),
)
_COMMAND = re.compile(r"redis\.p?call\('([A-Z]+)'")
# None of these changes anything: the server refuses a value, or the key is missing. `$` is a key, `&` a channel.
_HARMLESS = {
    command: rest.split()
    for command, _, rest in (
        line.partition(" ")
        for line in (
            "EXISTS $",
            "EXPIRE $ 1",
            "GET $",
            "HDEL $ field",
            "HEXISTS $ field",
            "HGET $ field",
            "HGETALL $",
            "HINCRBY $ field none",
            "HKEYS $",
            "HLEN $",
            "HMGET $ field",
            "HSCAN $ 0",
            "HSET $ field value alone",
            "PERSIST $",
            "PUBLISH & nothing",
            "SET $ value PX 0",
            "TIME",
            "UNLINK $",
            "ZADD $ none member",
            "ZCARD $",
            "ZCOUNT $ 0 0",
            "ZMSCORE $ member",
            "ZRANGE $ 0 0",
            "ZRANGEBYSCORE $ 0 0",
            "ZRANK $ member",
            "ZREM $ member",
            "ZREMRANGEBYSCORE $ 0 0",
            "ZSCAN $ 0",
            "ZSCORE $ member",
        )
    )
}

_MAIN = """
local at = 1
local function take()
  local list = {}
  for i = at + 1, at + ARGV[at] do list[#list + 1] = ARGV[i] end
  at = at + 1 + ARGV[at]
  return list
end

local ours, commands, steps = unpack(take())
local errors, good = {}, true
for n = 1, commands do
  local answer = redis.pcall(unpack(take()))
  errors[n] = type(answer) == 'table' and answer.err or ''
  for _, sign in ipairs({ 'ermission', "can't run", "can't access", "can't publish", 'Unknown', 'unknown' }) do
    good = good and not string.find(errors[n], sign, 1, true)
  end
end
local schema = redis.pcall('HGET', KEYS[1], 'schema')
if type(schema) == 'table' then schema = '' end
if not good then return { schema or '', errors, '', '' } end

local scratch, broken, why = {}, '', ''
for k = 2, #KEYS do scratch[#scratch + 1] = KEYS[k] end
redis.pcall('UNLINK', unpack(scratch))  -- a first write that a full memory does not refuse
for _ = 1, steps do
  local name, keys, args = take()[1], take(), take()
  local ran, failure = pcall(scripts[name], keys, args)
  if not ran then
    broken, why = name, type(failure) == 'table' and failure.err or tostring(failure)
    break
  end
end
redis.pcall('UNLINK', unpack(scratch))
if not schema and broken == '' then redis.pcall('HSET', KEYS[1], 'schema', ours) end
return { schema or ours, errors, broken, why }
"""
_PARTS = "\n".join(f"scripts.{script.name} = function(KEYS, ARGV)\n{script.text}\nend" for script in scripts.QUEUE)
TEXT = f"local scripts = {{}}\n{_PARTS}\n{_MAIN}"


@attrs.frozen
class Trial:
    """The result of a trial: error texts by command, the script that failed and why, the schema of the queue's data."""

    errors: dict[str, str]
    broken: str
    why: str
    schema: str


async def try_scripts(client: Client, keys: Keys, *, worker: bool) -> Trial:
    """Try the scripts of a producer, or all of a `worker`. Raises StorageError and its subclasses."""
    scratch = _Scratch(keys)
    used = [script for script in scripts.QUEUE if worker or script not in _WORKERS_ONLY]
    commands = sorted({command for script in used for command in _COMMAND.findall(script.text)})
    steps = [step for step in scratch.life() if step[0] in used]
    args = _counted([str(SCHEMA), str(len(commands)), str(len(steps))])
    for command in commands:
        args += _counted([command, *(scratch.fill(word) for word in _HARMLESS[command])])
    for script, own, given in steps:
        args += [*_counted([script.name]), *_counted(own), *_counted(given)]
    written = [keys("meta"), *scratch.names()]
    schema, errors, broken, why = await client.execute("EVAL", TEXT, len(written), *written, *args)
    texts = {command: error.decode() for command, error in zip(commands, errors, strict=True)}
    return Trial(texts, broken.decode(), why.decode(), schema.decode())


def _counted(words: Sequence[str]) -> list[str]:
    return [str(len(words)), *words]


class _Scratch:
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
        }

    def fill(self, word: str) -> str:
        """Return a word of a command, with a key or a channel in its place."""
        return {"$": self._keys("nothing"), "&": self._keys("nothing")}.get(word, word)

    def names(self) -> list[str]:
        """Return all keys that the scripts may write."""
        tasks = [self._keys.task(task_id) for task_id in "abcdefghij"]
        tasks += [
            self._keys("deadlines"),
            self._keys("demands"),
            self._keys("gpu:1:0"),
            self._keys("gpu:kind/1:0"),
            self._keys("kinds"),
            *(self._keys(self._keys.of_kind(kind, name)) for kind in (NAMELESS, "kind") for name in _OF_KINDS),
            self._keys("errors"),
            *map(self._keys, _OF_LANES),
            self._keys(f"h:{_NOW // 60_000}"),
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
        yield self._step(scripts.GET, "a", "b", limit="1000")
        yield self._step(settle, *_settled("a", "lease", "pending"), groups="1", settle_id="retry")
        yield self._step(settle, claims="2", request_id="second", kinds="-")
        yield self._step(settle, claims="1", request_id="third")
        yield self._step(settle, *_settled("a", "expired", "pending"), groups="1", settle_id="reap")
        yield self._step(scripts.CANCEL, task="a", id="a")
        ended = [*_settled("a", "lease", "completed"), *_settled("c", "lease", "failed")]
        yield self._step(settle, *ended, *_settled("b", "pending", "external"), groups="3", settle_id="end")
        yield self._step(settle, *_settled("c", "finished", "pending"), groups="1", settle_id="again")
        yield self._step(scripts.DEMANDS)
        yield self._step(scripts.HOLD)
        yield self._step(scripts.FLEET)
        yield self._step(settle, claims="1", request_id="gpu", fits="1:0 GPU-a 0 1")
        yield self._step(scripts.EXPIRE)
        yield self._step(scripts.REAP)
        yield self._step(scripts.LIST, keys=("ready", "completed"), id="a")
        yield self._step(scripts.STATS)
        yield self._step(scripts.UPCOMING, now="")
        yield self._step(scripts.HISTORY)
        yield self._step(scripts.ORPHANS, "a", "b")
        yield self._step(scripts.PAUSE, on="1")
        yield self._step(scripts.PAUSE, on="0")
        yield self._step(scripts.PAUSE, on="1", kind="kind")
        yield self._step(scripts.PAUSE, on="0", kind="kind")
        yield self._step(scripts.ENQUEUE, "policy", "", "", "1", "e", "{}", groups="1")
        yield self._step(scripts.ENQUEUE, "policy", "", '{"@by":[0,0,1,1,60]}', "1", "h", "{}", groups="1")
        yield self._step(settle, claims="3", request_id="late", now=f"{_NOW + 1}")
        yield from self._life_in_lanes()
        yield self._step(scripts.PURGE, keys=("scheduled",))
        yield self._step(scripts.DELETE, task="a", id="a")
        yield self._step(scripts.LEAVE)

    def _life_in_lanes(self) -> Iterator[tuple[Script[object], Sequence[str], list[str]]]:
        lane = "policy 0 0 - - tenant|limit 1,1"
        yield self._step(scripts.LIMIT, setting="1 0 0 0 0")
        yield self._step(scripts.ENQUEUE, lane, "", "", "2", "i", "{}", "j", "{}", groups="1")
        yield self._step(scripts.TENANT, on="1")
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
        yield self._step(scripts.DELETE, task="j", id="j")

    def _step(
        self, script: Script[object], *items: str, task: str = "a", keys: Sequence[str] = (), **given: str
    ) -> tuple[Script[object], Sequence[str], list[str]]:
        call = self._keys.call(f"{script.name} {' '.join(given.values())}")
        names = self._keys.all((*script.keys, *keys), task=self._keys.task(task), call=call, **self._own)
        args = [given[name] if name in given else self._default(name) for name in script.args]
        return script, names, [*args, *items]

    def _default(self, name: str) -> str:
        """Return a value for an argument by its name; each new argument of a script needs one here."""
        return {
            "now": str(_NOW),
            "prefix": self._keys.prefix,
            "policy": "policy",
            "policy_text": "",
            "all_or_none": "1",
            "worker": self._worker,
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
            "minutes": "2",
            "tally": "w1 1",
            "id": "a",
            "kind": "",
            "tenant": "tenant",
            "weight": "",
            "on": "",
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
        }[name]


def _settled(task_id: str, precondition: str, status: str) -> tuple[str, ...]:
    """Return a group of one settle."""
    return precondition, status, "0", "60", "retried e:error", "1", "1", task_id, "", "k", "0 0 0 0"
