"""The straight path of a task that comes alone does the same as the general one: same keys, same answers."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.straight import paths
from support import Server

from maas_backoff.store import scripts
from maas_backoff.store.keys import Keys

KEYS = Keys("lone")
NOW = 1_800_000_000_000


EVERYTHING = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, value = redis.call('TYPE', key).ok, ''
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  found[#found + 1] = { key, kind, value, redis.call('TTL', key) }
end
return found
"""


def outcome(client: Any, text: str, keys: list[str], args: list[Any], before: list[list[Any]]) -> Any:
    """Return the answer, or the text of the error, and all keys afterwards, with their values and times to live."""
    pipeline = client.pipeline(transaction=False)
    for command in [["FLUSHALL"], *before]:
        pipeline.execute_command(*command)
    pipeline.eval(text, len(keys), *keys, *args)
    pipeline.eval(EVERYTHING, 0)
    *_, answer, found = pipeline.execute(raise_on_error=False)
    if isinstance(answer, redis.ResponseError):
        answer = str(answer).partition(" script: ")[0].partition(" (call to")[0]
    return answer, sorted((key, kind, _pairs(kind, value), ttl) for key, kind, value, ttl in found)


def _pairs(kind: bytes, value: Any) -> Any:
    return dict(zip(value[::2], value[1::2], strict=True)) if kind == b"hash" else value


@pytest.fixture(scope="module")
def client(servers: Any) -> Iterator[Any]:
    server: Server = servers("redis-7.0")
    yield server.client
    server.client.flushall()


def test_the_straight_path_is_taken(client: Any) -> None:
    """A plain create ends in it, and one with a delay does not."""
    straight = paths(scripts.ENQUEUE)[0] + "return 'general'"
    before = [["HSET", KEYS("policies"), "policy", "{}"]]
    for when, answer in (("", [b"created"]), ("in 5000", b"general")):
        args = [f"{NOW}", KEYS.prefix, "policy", "", "0", "0", "0", "1", "policy", when, "", "1", "a", "{}"]
        assert outcome(client, straight, KEYS.all(scripts.ENQUEUE.keys), args, before)[0] == answer


one_of = st.sampled_from
maybe = st.booleans()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    known=maybe,
    text=one_of(["", "{}"]),
    exists=one_of([None, b"1 policy\n{}", b'1 policy\n{"n":1}', b"of another type"]),
    meta=st.fixed_dictionaries(
        {}, optional={"paused": st.just("1"), "ahead": one_of(["5000", "-5000"]), "schema": st.just("1")}
    ),
    seen=one_of([None, NOW - 500.25, NOW + 9000.5]),
    broken=one_of(["", "ready", "marker", "k:kind:ready", "k:kind:marker", "kinds"]),
    record=one_of(
        [
            "policy",
            "policy 3 180000 -",
            "policy 0 0 512:0",
            "policy 0 0 - kind",
            "policy 3 180000 - kind",
            "policy 0 0 - kind acme 1",
            "policy 0 0 - - acme 1",
        ]
    ),
    known_kind=one_of([None, "", f"{NOW}"]),
    when=one_of(["", "in 5000", f"at {NOW + 5000}"]),
    overrides=one_of(["", '{"max_retry":1}', '{"@by":[0,0,500,0,60],"max_retry":1}']),
    limit=one_of(["0", "1", "5"]),
)
def test_a_create_by_both_paths(client: Any, known: bool, text: str, exists: bytes | None, **given: Any) -> None:
    meta, seen, broken = given["meta"], given["seen"], given["broken"]
    before: list[list[Any]] = [["HSET", KEYS("policies"), "policy", "{}"]] if known else []
    if exists == b"of another type":
        before.append(["SET", KEYS.task("a"), "mine"])
    elif exists:
        before.append(["HSET", KEYS.task("a"), "p", exists])
    if seen is not None:
        meta["reaped_at"] = seen
    before += [["HSET", KEYS("meta"), name, value] for name, value in meta.items()]
    before += [["SET", KEYS(broken), "mine"]] if broken else []
    before += [["HSET", KEYS("kinds"), "kind", given["known_kind"]]] if given["known_kind"] is not None else []
    args = [f"{NOW}.625", KEYS.prefix, "policy", text, given["limit"], "0", "0", "1", given["record"], given["when"]]
    args += [given["overrides"], "1", "a", "{}"]
    keys = KEYS.all(scripts.ENQUEUE.keys)
    both = [outcome(client, text, keys, args, before) for text in (scripts.ENQUEUE.text, paths(scripts.ENQUEUE)[1])]
    assert both[0] == both[1]


TOKEN = NOW * 1000 + 5
MINUTE = f"h:{NOW // 60_000}"


def _hset(key: str, fields: dict[str, Any]) -> list[Any]:
    return ["HSET", key, *(part for pair in fields.items() for part in pair)]


PLAIN = {"p": "1 policy\n{}"}
OLD = [["ZADD", KEYS("completed"), NOW + 9000, "old"], _hset(KEYS.task("old"), {**PLAIN, "s": "completed"})]
SUSPECT = {**PLAIN, "k": "0 2 0 1", "c": "1 x 1"}

LIMITED = [{"o": f'{{"@by":[{moment},0,500,0,60]}}'} for moment in (NOW - 5, NOW + 500)]

UNUSUAL: dict[str, list[Any]] = {
    "state": ["pending", "completed"],
    "field": [{"x": "1"}, {"d": f"{TOKEN}:w"}, {"g": "5", "m": "half"}, {"b": f"{TOKEN} {TOKEN} l"}],
    "meta": [{"paused": 1}, {"ahead": 5000}, {"ahead": -5000}, {"reaped_at": NOW + 9000.5}, {"token": 7}, {"lanes": 1}],
    "ready": [
        {"k": "1 0 0 0", "n": 3, "u": NOW - 50},
        {"n": 1, "b": "5 5"},
        {"n": 1},
        {"k": "0 2 0 1", "c": "1 x 1", "o": "{}"},
        *LIMITED,
    ],
    "hash": [False],
    "beside": [
        [["ZADD", KEYS("scheduled"), NOW + 500, "later"]],
        [["ZADD", KEYS("scheduled"), NOW - 500, "due"], _hset(KEYS.task("due"), {**PLAIN, "u": NOW - 500})],
        [["ZADD", KEYS("suspects"), 1, "s"], _hset(KEYS.task("s"), SUSPECT)],
        [["ZADD", KEYS("watched"), NOW + 9000, "a", NOW + 9000, "r0"]],
        OLD,
        [["ZADD", KEYS("completed"), NOW - 9000, "old"]],
        [_hset(KEYS.request("w", 0), {"id": "7", "claims": "a", "first_token": TOKEN, "fits": ""})],
        [_hset(KEYS.request("w", 0), {"id": "6", "claims": "a", "first_token": TOKEN, "fits": ""})],
        [_hset(KEYS(MINUTE), {"completed": 5}), ["EXPIRE", KEYS(MINUTE), 999]],
    ],
    "broken": [
        "ready",
        "k:kind:ready",
        "leases",
        "completed",
        "meta",
        "marker",
        "scheduled",
        "suspects",
        MINUTE,
        "totals",
        "kinds",
        "t:a",
        "t:r0",
    ],
    "has minute": [False],
    "limit": ["1"],
    "tally": ["", "e:ValueError 2"],
    "call": ["call"],
    "suspicion": ["0 -", "1 x"],
    "kind has paused": ["", f"{NOW}"],
    "fits": ["1:0 GPU-a 0 1"],
    "kinds": ["kind", "- kind", "other"],
    "kind": ["expired", "pending"],
    "status": ["failed", "pending"],
    "names": ["e:Boom"],
    "breakdown": ["1 kind  25", "1  acme 25", "k kind 1 0 0 0 25"],
    "token": [TOKEN - 1, ""],
}


def settle_by_both_paths(client: Any, unusual: dict[str, Any], groups: int, wanted: int, ready: int) -> None:
    """Settle the running task "a", if there is a group, and claim up to `wanted` of `ready` tasks."""

    def pick(name: str, usual: Any) -> Any:
        return unusual.get(name, usual)

    running = {"s": pick("state", "processing"), "t": TOKEN, "n": 1, "y": "1 w", **PLAIN, **pick("field", {})}
    before: list[list[Any]] = [_hset(KEYS.task("a"), running), ["ZADD", KEYS("leases"), NOW + 5000, "a"]]
    if pick("has minute", "broken" not in unusual):
        before.append(_hset(KEYS(MINUTE), {"completed": 1}))
    before.append(_hset(KEYS("meta"), {"token": TOKEN, "completed": 3, **pick("meta", {})}))
    for n in range(ready):
        before.append(["ZADD", KEYS("k:kind:ready" if pick("kinds", "-") == "kind" else "ready"), n, f"r{n}"])
        if pick("hash", True):
            before.append(_hset(KEYS.task(f"r{n}"), {**PLAIN, **pick("ready", {})}))
    if "kind has paused" in unusual:
        unusual = {"kinds": "kind", **unusual}
        before.append(["HSET", KEYS("kinds"), "kind", unusual["kind has paused"]])
    before += pick("beside", [])
    if "limit" in unusual and "beside" not in unusual:
        before += OLD
    if "broken" in unusual:
        before += [["DEL", KEYS(unusual["broken"])], ["SET", KEYS(unusual["broken"]), "mine"]]
    args = [f"{NOW}.625", KEYS.prefix, "w", "w", "30000", pick("call", "7"), wanted]
    args += [pick("suspicion", "1 -"), pick("limit", "1000000"), pick("fits", ""), pick("tally", "w0 1\nr1 1")]
    args += [pick("kinds", "-"), "", pick("breakdown", ""), groups]
    if groups:
        args += [pick("kind", "lease"), pick("status", "completed"), "0", "60", pick("names", ""), "1", "1"]
        args += ["a", pick("token", TOKEN), "r", '{"a":1}']
    keys = KEYS.all(scripts.SETTLE.keys, request=KEYS.request("w", 0))
    both = [outcome(client, text, keys, args, before) for text in (scripts.SETTLE.text, paths(scripts.SETTLE)[1])]
    assert both[0] == both[1]


@pytest.mark.parametrize("name", ["", *UNUSUAL])
def test_a_settle_and_claims_by_both_paths(client: Any, name: str) -> None:
    """Each unusual thing by itself."""
    for value in UNUSUAL.get(name, [None]):
        for groups, wanted, ready in [
            (0, 1, 1),
            (0, 2, 3),
            (1, 0, 1),
            (1, 1, 0),
            (1, 1, 1),
            (1, 2, 1),
            (1, 2, 2),
            (1, 2, 3),
        ]:
            settle_by_both_paths(client, {name: value} if name else {}, groups, wanted, ready)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), groups=st.integers(0, 1), wanted=st.integers(0, 3), ready=st.integers(0, 3))
def test_several_unusual_things_by_both_paths(client: Any, data: st.DataObject, **numbers: int) -> None:
    names = data.draw(st.sets(one_of(sorted(UNUSUAL)), min_size=2, max_size=3))
    settle_by_both_paths(client, {name: data.draw(one_of(UNUSUAL[name])) for name in sorted(names)}, **numbers)


def test_the_straight_path_of_a_settle_is_taken(client: Any) -> None:
    """A completed settle that claims the next task ends in it. A failed one, and the first of a minute, do not."""
    straight = paths(scripts.SETTLE)[0] + "return 'general'"
    task = {"s": "processing", "t": TOKEN, "p": "1 policy\n{}"}
    before = [
        _hset(KEYS.task("a"), task),
        ["ZADD", KEYS("ready"), 1, "b"],
        _hset(KEYS.task("b"), {"p": "1 policy\n{}"}),
    ]
    minute = [_hset(KEYS(MINUTE), {"completed": 1})]
    for status, beside, is_straight in (
        ("completed", minute, True),
        ("failed", minute, False),
        ("completed", [], False),
    ):
        args = [NOW, KEYS.prefix, "w", "w", "30000", "7", "2", "1 -", "1000", "", "", "-", "", "", "1"]
        args += ["lease", status, "0", "60", "", "1", "1", "a", TOKEN, "r", "1"]
        keys = KEYS.all(scripts.SETTLE.keys, request=KEYS.request("w", 0))
        assert (outcome(client, straight, keys, args, before + beside)[0] != b"general") == is_straight
