"""The findings of the preflight, and those that the server's INFO leads to."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

OLDEST = (6, 2)
"""The first release of Redis that has all commands. Valkey reports the release of Redis that it is compatible with."""


class Finding(NamedTuple):
    """One sentence: the fault of the server, and the remedy. Tasks are not safe if it is fatal."""

    text: str
    fatal: bool = False

    @classmethod
    def commands(cls, names: Iterable[str]) -> "Finding":
        """Return the finding that the user may not run these commands; a subcommand is written `client|setname`."""
        names = sorted(set(names))
        shown, rules = ", ".join(name.upper().replace("|", " ") for name in names), " ".join(f"+{n}" for n in names)
        return cls(
            f"the server's user may not run {shown}: grant it with ACL SETUSER <user> {rules.lower()}", fatal=True
        )

    @classmethod
    def keys(cls, prefix: str) -> "Finding":
        """Return the finding that the user may not use the queue's keys."""
        rule = f"~{prefix}*"
        return cls(
            f"the server's user may not use all keys {prefix}*: grant it with ACL SETUSER <user> {rule}", fatal=True
        )

    @classmethod
    def channels(cls, prefix: str) -> "Finding":
        """Return the finding that the user may not use the queue's channels."""
        does = f"may not use all channels {prefix}*, which report changes of a task to its watchers"
        return cls(f"the server's user {does}: grant it with ACL SETUSER <user> &{prefix}*", fatal=True)

    @classmethod
    def renamed(cls, names: Iterable[str]) -> "Finding":
        """Return the finding that the server does not have these commands."""
        shown = ", ".join(sorted(set(names)))
        return cls(f"the server does not know {shown}: remove rename-command from its configuration", fatal=True)


UNREADABLE = Finding(
    "the server's user may not run INFO, so that version, eviction, persistence and role of the server were not "
    "checked: grant it with ACL SETUSER <user> +info"
)


def judge(info: Mapping[str, object]) -> list[Finding]:
    """Return the findings about a server, from the fields of its INFO. Missing fields are not judged."""
    found = [_version(info), _role(info), _eviction(info), _persistence(info)]
    return [finding for finding in found if finding is not None]


def _version(info: Mapping[str, object]) -> Finding | None:
    version = str(info.get("redis_version", ""))
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)
    if numbers is None or (int(numbers[1]), int(numbers[2] or 0)) >= OLDEST:
        return None
    return Finding(f"the server is Redis {version}, which is too old: use Redis 6.2, Valkey 8 or newer", fatal=True)


def _role(info: Mapping[str, object]) -> Finding | None:
    if info.get("role") != "slave":
        return None
    master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
    return Finding(
        f"the server is a replica, and refuses writes: connect to its master, {master} (type 'sentinel' or 'cluster' "
        "finds it by itself)",
        fatal=True,
    )


def _eviction(info: Mapping[str, object]) -> Finding | None:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    # Without a limit nothing is evicted, whatever the policy.
    if policy == "noeviction" or info.get("maxmemory", 1) in {0, "0"}:
        return None
    if policy.startswith("allkeys-"):
        loss = "when its memory is full it deletes tasks that have not run"
    else:
        # Keys with a time to live are those of finished tasks, and answers that are kept for a repeated call.
        loss = (
            "when its memory is full it deletes finished tasks before their time, with their results and ids, and may "
            "let a task run twice"
        )
    return Finding(f"the server's maxmemory-policy is {policy}: {loss}; set it to noeviction")


def _persistence(info: Mapping[str, object]) -> Finding | None:
    # INFO does not show whether snapshots have a schedule, and CONFIG is often forbidden.
    if info.get("aof_enabled", 1) not in {0, "0"}:
        return None
    return Finding(
        "the server has no append-only file: when it restarts, all tasks since its last snapshot are lost, and all "
        "there are if it makes none; set appendonly to yes"
    )


def judge_schema(stored: str, ours: int) -> Finding | None:
    """Return the finding about a queue's stored schema; None if it is `ours`."""
    if stored == str(ours):
        return None
    newer = not stored.isdecimal() or int(stored) > ours
    what = "a newer release" if newer else "an older release that this one cannot read"
    remedy = "update this process, or use another biz_prefix" if newer else "use another biz_prefix"
    return Finding(f"this queue was written by {what} (schema {stored}, this one knows {ours}): {remedy}", fatal=True)
