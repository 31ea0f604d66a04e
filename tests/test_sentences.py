"""The sentences of the library in Chinese: reasons, findings about a server, troubles of workers and GPUs."""

import argparse
import re
from collections.abc import Iterator

import attrs
import pytest
import redis

from maas_backoff import InvalidValueError, Selection, TaskStatus
from maas_backoff import __main__ as program
from maas_backoff.commands.catalogue import CATALOGUE
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.reason import reason
from maas_backoff.domain.settlement import Counts
from maas_backoff.domain.shares import LimitStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import Paused, Place, waiting_for
from maas_backoff.domain.worker import Worker
from maas_backoff.errors import TaskNotFoundError
from maas_backoff.gate import listing
from maas_backoff.gate.library import _REMEDIES, DRIVER_NOT_LOADED, VERSION_MISMATCH
from maas_backoff.gate.sample import NO_DEVICE, NO_DRIVER
from maas_backoff.language import own_texts
from maas_backoff.language.sentences import in_chinese
from maas_backoff.language.sentences import sentences as catalogued
from maas_backoff.store.link import translated
from maas_backoff.store.preflight.findings import UNREADABLE, judge, judge_schema
from maas_backoff.store.preflight.rights import Rights
from maas_backoff.worker.setback import CANNOT_START

PATTERNS = {english[1:] for english in own_texts() if english.startswith("~")}
"""Sentences of the library that only the command line shows."""


def sentences() -> Iterator[str]:
    """Yield sentences of all forms."""
    demand, busy, idle = Demand(8 * 1024), Worker("a", slots=2, running=2), Worker("a", slots=2)
    batches = Worker("a", slots=2, kinds=("", "render"), batches={"render": (32, 10.0)})
    stats, kinds = QueueStats(5, 1, 2, 0, 0, 0, 0.0), {"render": 2}
    shut = LimitStats("openai", None, "openai", shut="limit openai: 2 of 2 in use", waiting_tasks=2)
    yield reason(QueueStats(0, 0, 0, 0, 0, 0, 0.0), [], None, [])
    yield reason(QueueStats(1, 1, 0, 0, 0, 0, 0.0), [], 3, [])
    yield reason(QueueStats(1, 1, 0, 0, 0, 0, 0.0), [idle], 3, [])
    yield reason(QueueStats(1, 1, 0, 0, 0, 0, 0.0), [idle], 3, [], paused_tenants={"acme": 2})
    yield reason(stats, [], 3, [])
    yield reason(stats, [attrs.evolve(idle, kinds=("render",))], 3, [])
    for fleet in ([busy], [idle], [idle, busy], [batches], [attrs.evolve(idle, quiet=True)]):
        yield reason(stats, fleet, 3, [])
        yield reason(attrs.evolve(stats, suspect_count=2), fleet, 3, [], 1)
        yield reason(attrs.evolve(stats, suspect_count=1), fleet, 3, [], 1)
        yield reason(attrs.evolve(stats, kinds=kinds), fleet, 3, [(demand, 4)])
        yield reason(attrs.evolve(stats, kinds=kinds), fleet, 3, [], shut=[shut])
        for place in (Place(), Place(0), Place(3), Place(2, 5, 3)):
            yield waiting_for(0, 1, None, fleet, place)
            yield waiting_for(0, 1, None, fleet, place, kind="render")
            yield waiting_for(0, 1, demand, fleet, place)
    yield waiting_for(0, 1, None, [busy], paused=Paused(queue=True))
    yield waiting_for(0, 1, None, [busy], paused=Paused(kinds=["render"]), kind="render")
    for cohort in ("w 1", "half 1"):
        for size in (1, 2, 8):
            yield waiting_for(0, 1, None, [busy], counts=Counts(lost=2, cohort=cohort, cohort_size=size))
    yield from ("limit openai: 2 of 2 in use", "limit openai: 2 of 2 in use, on trial after a task has closed it")
    yield from (
        "limit openai: closed by a task for 7 s more",
        "rate openai: room in 3 min",
        "tokens openai: room in 2 h",
    )


def findings() -> Iterator[str]:
    """Yield all findings of the preflight."""
    fit = {"redis_version": "7.2.0", "role": "master", "maxmemory": "1", "aof_enabled": "1"}
    for info in (
        fit | {"redis_version": "5.0.1"},
        fit | {"role": "slave", "master_host": "10.0.0.1", "master_port": "6379"},
        *(fit | {"maxmemory_policy": policy} for policy in ("allkeys-lru", "volatile-ttl")),
        fit | {"aof_enabled": "0"},
    ):
        yield from (one.text for one in judge(info))
    yield from (one.text for one in (judge_schema("99", 7), judge_schema("5", 7)) if one is not None)
    for error in ("no permissions to run this", "unknown command", "no access to the key", "no access to the channel"):
        rights = Rights("q:")
        for command in ("EVAL", "BZPOPMIN"):
            rights.add(command, f"permission: {error}" if "access" in error else error)
        yield from (one.text for one in rights.findings())
    yield UNREADABLE.text
    yield (
        "the server does not know a command that every connection begins with (ERR): use Redis 6.2, Valkey 8 or newer, "
        "without rename-command for HELLO, CLIENT and INFO"
    )
    yield "the script claim.lua does not run on this server (ERR): use Redis 6.2, Valkey 8 or newer"


def usages() -> Iterator[str]:
    """Yield errors of argparse."""
    for words in (
        ("get",),
        ("get", "a", "b", "--what"),
        ("list", "--limit"),
        ("list", "--limit", "x"),
        ("lst",),
        ("create", "{}", "--delay", "x"),
        ("history", "--days", "1", "--hours", "1"),
        ("list", "--reverse=x"),
        ("list", "--due"),
    ):
        made = program.parser(words[:1])
        with pytest.raises(argparse.ArgumentError) as raised, pytest.MonkeyPatch.context() as patch:

            def complain(_: object, message: str) -> None:
                raise argparse.ArgumentError(None, message)

            patch.setattr(type(made), "error", complain)
            made.parse_args(words)
        yield str(raised.value)


OF_GPUS = [
    "quarantine: by hand: Xid 79",
    "by hand",
    "ok, held for tasks of render that need 8 GiB free",
    "ok, held for acme",
    "the last GPU sample is 12 s old",
    "it is gone; quarantine: by hand",
    listing._PROHIBITED,
    listing._NO_SLICE,
    f"{NO_DRIVER}acme; {_REMEDIES[DRIVER_NOT_LOADED]}",
    NO_DEVICE,
    "NVML cannot list the devices: acme",
    f"NVML cannot be initialised: acme; {_REMEDIES[VERSION_MISMATCH]}",
    "it has not answered yet",
    "NVML has not answered for 12 s",
    "the probe has died: acme",
    "and no device is well (it is gone)",
]
OF_WORKERS = [
    "none of 2 GPUs can be used: the GPU samples are too old",
    "starting",
    "shutting down",
    "the worker has ended",
    "the worker stopped unexpectedly: acme",
    "worker acme has started under the same worker_name, and has taken this one's tasks",
    "the last heartbeat was 12 s ago: the server does not answer",
    "task 'render' ignores its timeout; 2 threads outlive their timeout and take a slot each",
    *(f"{text}: acme" for text in CANNOT_START.values()),
]
OF_THE_SERVER = [
    *(str(translated(error)) for error in (redis.ConnectionError("acme"), redis.AuthenticationError("acme"))),
    *(str(translated(error)) for error in (redis.OutOfMemoryError("acme"), redis.exceptions.BusyLoadingError("acme"))),
    *(str(translated(error)) for error in (EOFError("acme"), redis.ConnectionError("CERTIFICATE_VERIFY_FAILED"))),
    *(str(translated(redis.ConnectionError("acme"), name="openai")), str(translated(EOFError("acme"), name="openai"))),
    str(translated(redis.AuthenticationError("acme"), name="openai")),
    str(translated(TimeoutError(), 5)),
    str(TaskNotFoundError("acme")),
]
ALL = sorted({*sentences(), *findings(), *OF_GPUS, *OF_WORKERS, *OF_THE_SERVER})
STAY = re.compile(
    r"worker|GPU|GiB|render|acme|openai|Xid|NVML|MIG|nvidia|modprobe|smi|compute|mode|ACL|SETUSER|user|eval|bzpopmin|"
    r"EVAL\w*|BZPOPMIN|INFO|HELLO|CLIENT|Redis|Valkey|rename|command|type|sentinel|cluster|maxmemory|policy|"
    r"allkeys|lru|volatile|ttl|noeviction|AOF|appendonly|yes|schema|biz_prefix|ERR|claim|lua|ID|EOFError|"
    r"CERTIFICATE_VERIFY_FAILED|worker_name|min_gpu_memory_gb|info"
)
"""Names, and words of error messages."""


@pytest.mark.parametrize("text", ALL)
def test_each_sentence_of_the_library_has_a_translation(text: str) -> None:
    told = in_chinese(text)
    left = {word for word in re.findall(r"[A-Za-z_]{2,}", told) if not STAY.fullmatch(word)}
    assert re.search(r"[\u4e00-\u9fff]", told) and left == set(), told


@pytest.mark.parametrize("text", ["SyntaxError: a; b.", "a; b", "Error.", ""])
def test_a_foreign_text_stays_as_it_is(text: str) -> None:
    assert in_chinese(text) == text


def test_wrong_usage_is_told_in_chinese() -> None:
    """Names of commands, options and values stay."""
    for text in usages():
        told = in_chinese(text)
        left = (
            set(re.findall("[A-Za-z]{2,}", re.sub(r"'[^']*'|--?[a-z-]+", "", told)))
            - set(CATALOGUE)
            - {"ID", "command"}
        )
        assert re.search(r"[\u4e00-\u9fff]", told) and not left, told


def conditions() -> Iterator[str]:
    """Yield what an option that selects tasks expects."""
    for name, text in (
        *(("created_from", "x"), ("created_from", "99999d"), ("state", "x"), ("label", "")),
        *((name, "x" * 1001) for name in ("id_prefix", "kind", "tenant")),
    ):
        with pytest.raises(InvalidValueError) as raised:
            Selection.of_texts({name: [text]})
        yield raised.value.expected


def test_what_a_condition_expects_is_told_in_chinese() -> None:
    for text in conditions():
        left = set(re.findall("[A-Za-z]{2,}", in_chinese(text))) - {"ISO", "ASCII", "key", "value", *TaskStatus}
        assert not left and re.search(r"[\u4e00-\u9fff]", in_chinese(text)), text


def test_each_sentence_of_the_catalogue_is_one_of_the_library() -> None:
    known = [*ALL, *usages(), *conditions()]
    parts = {part for text in known for part in (text, *text.split("; "), *text.removesuffix(".").split("; "))}
    used: set[str] = set()
    todo = list(parts)
    while todo:
        text = todo.pop()
        for one in catalogued():
            if (values := one.values_in(text)) is not None:
                used.add(one.english)
                todo += [value for value in values.values() if value != text]
                break
    of_other_releases = {
        "expected at least one argument",
        "invalid choice: {got}, maybe you meant {other}? (choose from {choices})",
    }
    assert PATTERNS - used - of_other_releases == set()
