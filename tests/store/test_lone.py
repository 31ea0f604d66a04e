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


def everything(client: Any) -> dict[bytes, Any]:
    """Return all keys with their values and times to live."""
    read = {b"hash": client.hgetall, b"string": client.get, b"list": lambda key: client.lrange(key, 0, -1)}
    read[b"zset"] = lambda key: client.zrange(key, 0, -1, withscores=True)
    return {key: (read[client.type(key)](key), client.ttl(key)) for key in client.keys("*")}


def outcome(client: Any, text: str, keys: list[str], args: list[Any], before: list[list[Any]]) -> Any:
    """Return the answer, or the text of the error, and all keys afterwards."""
    client.flushall()
    for command in before:
        client.execute_command(*command)
    try:
        answer = client.eval(text, len(keys), *keys, *args)
    except redis.ResponseError as error:
        answer = str(error).partition(" script: ")[0].partition(" (call to")[0]
    return answer, everything(client)


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
        args = [f"{NOW}", KEYS.prefix, "policy", "", "0", "0", "1", "policy", when, "", "1", "a", "{}"]
        assert outcome(client, straight, KEYS.all(scripts.ENQUEUE.keys), args, before)[0] == answer


one_of = st.sampled_from
maybe = st.booleans()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    known=maybe,
    text=one_of(["", "{}"]),
    exists=one_of([None, b"1 policy\n{}", b'1 policy\n{"n":1}', b"of another type"]),
    meta=st.fixed_dictionaries(
        {}, optional={"paused": st.just("1"), "ahead": one_of(["5000", "-5000"]), "schema": st.just("1")}
    ),
    seen=one_of([None, NOW - 500.25, NOW + 9000.5]),
    broken=one_of(["", "ready", "marker"]),
    record=one_of(["policy", "policy 3 180000 -", "policy 0 0 512:0"]),
    when=one_of(["", "in 5000", f"at {NOW + 5000}"]),
    overrides=one_of(["", '{"max_retry":1}']),
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
    args = [f"{NOW}.625", KEYS.prefix, "policy", text, given["limit"], "0", "1", given["record"], given["when"]]
    args += [given["overrides"], "1", "a", "{}"]
    keys = KEYS.all(scripts.ENQUEUE.keys)
    both = [outcome(client, text, keys, args, before) for text in (scripts.ENQUEUE.text, paths(scripts.ENQUEUE)[1])]
    assert both[0] == both[1]
