"""The trial of the scripts on scratch keys of a queue: shows that the user has all rights, and that the scripts run.

One EVAL does both. First it tries every command of the scripts, with arguments that the server refuses, or on a missing
key. The answers name each missing right, and nothing is written. If no right is missing, the scripts run the life of
ten tasks. The EVAL removes their keys at its end: no other process sees them, and none is left if this process dies.
The first write frees memory, because a full server would refuse another one.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.store.keys import Keys
from maas_backoff.store.preflight.scratch import Scratch

SCHEMA = 1
"""The form of the data, as _schema.lua writes it. The number grows if an older release would misread new data."""

_WORKERS_ONLY = (
    scripts.RENEW,
    scripts.EXPIRE,
    scripts.REAP,
    scripts.LEAVE,
    scripts.EMIT,
    scripts.DEMANDS,
    scripts.HOLD,
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
            "XADD $ NOMKSTREAM 1-1 field value",
            "XLEN $",
            "XRANGE $ - +",
            "XREVRANGE $ + -",
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
if not schema and broken == '' and ours ~= '' then redis.pcall('HSET', KEYS[1], 'schema', ours) end
return { schema or ours, errors, broken, why }
"""
_PARTS = "\n".join(f"scripts.{script.name} = function(KEYS, ARGV)\n{script.text}\nend" for script in scripts.QUEUE)
TEXT = f"local scripts = {{}}\n{_PARTS}\n{_MAIN}"


class Trial(NamedTuple):
    """The result of a trial: error texts by command, the script that failed and why, the schema of the queue's data."""

    errors: dict[str, str]
    broken: str
    why: str
    schema: str


async def try_scripts(client: Client, keys: Keys, *, worker: bool, marks: bool = True) -> Trial:
    """Try the scripts of a producer, or all of a `worker`. Raises StorageError and its subclasses.

    `marks` writes the schema of a queue that has none: from then on, the queue has been used.
    """
    scratch = Scratch(keys)
    used = [script for script in scripts.QUEUE if worker or script not in _WORKERS_ONLY]
    commands = sorted({command for script in used for command in _COMMAND.findall(script.text)})
    steps = [step for step in scratch.life() if step[0] in used]
    args = _counted([str(SCHEMA) if marks else "", str(len(commands)), str(len(steps))])
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
