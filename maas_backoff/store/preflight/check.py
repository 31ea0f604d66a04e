"""The steps of the preflight: INFO, rights, and the trial of the scripts."""

import re
from collections.abc import Mapping

from redis.exceptions import ResponseError

from maas_backoff.common.guard import Log, log_for
from maas_backoff.errors import StorageDeniedError, StorageError, StorageUnavailableError, StorageUnfitError
from maas_backoff.store.connect import Client
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.keys import Keys
from maas_backoff.store.link import translated
from maas_backoff.store.preflight.findings import UNREADABLE, Finding, judge, judge_schema
from maas_backoff.store.preflight.rights import Rights
from maas_backoff.store.preflight.trial import SCHEMA, Trial, try_scripts

log: Log = log_for("worker")

_RIGHT = re.compile(r"run the '([a-z|]+)' command")
_PASSING = re.compile(r"READONLY|MISCONF|NOREPLICAS|LOADING|MASTERDOWN")
_logged: set[tuple[str, str]] = set()


async def check_queue(queue: QueueConnection, *, worker: bool, marks: bool = True) -> list[Finding]:
    """Run the preflight of a queue's server and return its warnings. `worker`: check the rights of a worker, too.

    `marks` notes in a new queue that it has been used.

    Raises StorageError if the server does not answer in time, or if tasks are not safe on it.
    """
    strict = queue.config.storage.strict
    return await queue.server.patiently(
        lambda client: check(client, queue.keys, worker=worker, strict=strict, marks=marks)
    )


async def check(client: Client, keys: Keys, *, worker: bool, strict: bool, marks: bool = True) -> list[Finding]:
    """Return the warnings. Each is logged once in a process for each server. The options are those of `check_queue`.

    Raises StorageUnfitError for a fatal finding, or, if `strict`, for any finding. Raises StorageUnavailableError if
    the server cannot answer now, and StorageDeniedError if it refuses the credentials.
    """
    found, server = await _check(client, keys, worker=worker, marks=marks)
    if any(finding.fatal or strict for finding in found):
        raise StorageUnfitError([finding.text for finding in found])
    for finding in found:
        if (server, finding.text) not in _logged:
            _logged.add((server, finding.text))
            log.warning("%s", finding.text)
    return found


async def _check(client: Client, keys: Keys, *, worker: bool, marks: bool) -> tuple[list[Finding], str]:
    try:
        info = await _info(client)
    except StorageDeniedError as error:
        right = _RIGHT.search(str(error))
        if right is None:
            raise  # the credentials, or the certificate
        if right[1] != "info":  # a command that is sent when a connection is made
            return [Finding.commands(["client|setname" if right[1] == "client" else right[1]])], ""
        found, server = [UNREADABLE], ""
    except StorageError as error:
        if "unknown command" not in str(error):
            raise
        old = "use Redis 6.2, Valkey 8 or newer, without rename-command for HELLO, CLIENT and INFO"
        return [
            Finding(
                f"the server does not know a command that every connection begins with ({error}): {old}", fatal=True
            )
        ], ""
    else:
        found, server = judge(info), str(info.get("run_id", ""))
        if any(finding.fatal for finding in found):
            return found, server  # too old, or a replica: further failures would come from that
    rights = Rights(keys.prefix)
    if await _may_run_scripts(client, keys, rights):
        found += await _try_scripts(client, keys, rights, worker=worker, marks=marks)
    if worker:
        # The server refuses this timeout: the command neither waits nor takes a marker.
        await rights.ask(client, "BZPOPMIN", keys("marker"), keys.control("check"), "-1")
    await rights.subscribe(client, keys.changed_channel)
    return [*found, *rights.findings()], server


async def _info(client: Client) -> Mapping[str, object]:
    text = (await client.execute("INFO")).decode()
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if info.get("role") == "slave" and client.deposed():
        raise StorageUnavailableError("the server is a replica now: the master is asked for again")
    return info


async def _may_run_scripts(client: Client, keys: Keys, rights: Rights) -> bool:
    before = rights.count
    await rights.ask(client, "EVALSHA", "0" * 40, 1, keys("check"))
    await rights.ask(client, "EVAL", "return 1", 1, keys("check"))
    return rights.count == before


async def _try_scripts(client: Client, keys: Keys, rights: Rights, *, worker: bool, marks: bool) -> list[Finding]:
    try:
        trial = await try_scripts(client, keys, worker=worker, marks=marks)
    except StorageDeniedError as error:
        rights.add("EVAL", str(error))
        return []
    for command, text in trial.errors.items():
        rights.add(command, text)
    schema = judge_schema(trial.schema, SCHEMA) if trial.schema else None
    return [finding for finding in (schema, _broken(trial)) if finding is not None]


def _broken(trial: Trial) -> Finding | None:
    if not trial.broken:
        return None
    if _PASSING.search(trial.why) or isinstance(translated(ResponseError(trial.why)), StorageUnavailableError):
        raise StorageUnavailableError(f"the server cannot answer now: {trial.why}")
    return Finding(
        f"the script {trial.broken}.lua does not run on this server ({trial.why}): use Redis 6.2, Valkey 8 or newer",
        fatal=True,
    )
