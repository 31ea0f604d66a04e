"""The commands that show the numbers of a queue."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from maas_backoff.commands.command import OK, Arguments, Options, at_least_one, on_store
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.text import moment, span, table
from maas_backoff.domain.history import Activity, gpu_memory_hint
from maas_backoff.domain.limit import rate_text
from maas_backoff.domain.shares import LimitStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker
from maas_backoff.language import sentence, t
from maas_backoff.logs import printable

if TYPE_CHECKING:  # see command.py
    from maas_backoff.store.queue_store import QueueStore


async def _stats(store: "QueueStore", options: Options) -> int:
    stats, why = await store.reader.stats(), await store.reader.explain()
    history = await store.reader.history(60)
    if options.json:
        counts = attrs.asdict(stats) | {"reason": why}
        print_json({**counts, "last_hour": activity_view(history.recent), "total": activity_view(history.total)})
        return OK
    due = stats.pending_count - stats.scheduled_count
    counts = {"due": due, "scheduled": stats.scheduled_count, "processing": stats.processing_count}
    counts |= {"completed": stats.completed_count, "failed": stats.failed_count, "cancelled": stats.cancelled_count}
    print(table(list(counts), [[f"{number:,}" for number in counts.values()]]))
    print("\n".join([printable(sentence(why)), *paused_lines(stats)]))
    if stats.oldest_pending_age:
        print(t("The oldest has been due for {age}.", age=span(stats.oldest_pending_age)))
    _print_activity(history.recent)
    return OK


def _print_activity(last: Activity) -> None:
    """Print the numbers of an hour."""
    minute = f"{last.completed / 60:.3g}"
    numbers = {name: f"{getattr(last, name):,}" for name in ("completed", "failed", "retried", "lost", "expired")}
    if last.expired:
        text = t(
            "Last hour: {completed} completed ({minute} a minute), {failed} failed, {retried} retried, {lost} lost, "
            "{expired} expired.",
            minute=minute,
            **numbers,
        )
    else:
        text = t(
            "Last hour: {completed} completed ({minute} a minute), {failed} failed, {retried} retried, {lost} lost.",
            minute=minute,
            **numbers,
        )
    print(text)
    for name, durations in (
        (t("waited"), last.waits),
        (t("ran"), last.runs),
        (t("settled in"), last.settles),
    ):
        half, most, worst = (span(durations.quantile(share)) for share in (0.5, 0.95, 0.99))
        quantiles = t("{half} (p50), {most} (p95), {worst} (p99)", half=half, most=most, worst=worst)
        print(t("  {name}: {quantiles} of {number}", name=name, quantiles=quantiles, number=f"{durations.count:,}"))
    if last.batch_sizes.count:
        median, highest = (f"{last.batch_sizes.quantile(share):.3g}" for share in (0.5, 0.95))
        count = f"{last.batch_sizes.count:,}"
        print(t("  batches: {half} tasks (p50), {most} (p95) of {number}", half=median, most=highest, number=count))
        half, most = (span(last.batch_waits.quantile(share)) for share in (0.5, 0.95))
        print(t("  batches waited: {half} (p50), {most} (p95)", half=half, most=most))
    for name, sizes in ((t("used of a GPU"), last.gpu_peaks), (t("asked for"), last.gpu_needs)):
        if sizes.count:
            half, most = (f"{sizes.quantile(share):.3g} GiB" for share in (0.5, 0.99))
            quantiles = t("{half} (p50), {most} (p99)", half=half, most=most)
            print(t("  {name}: {quantiles} of {number}", name=name, quantiles=quantiles, number=f"{sizes.count:,}"))
    if hint := gpu_memory_hint(last):
        print(sentence(hint))
    if last.errors:
        print(table(("error", "attempts"), most_frequent(last)))


def paused_lines(stats: QueueStats) -> list[str]:
    """Return a line that says who paused the queue, and since when; none if the queue is not paused."""
    if not stats.paused:
        return []
    since = moment(stats.paused_since)
    if stats.paused_by:
        return [t("Paused by {by} since {moment}.", by=printable(stats.paused_by), moment=since)]
    return [t("Paused since {moment}.", moment=since)]


def most_frequent(activity: Activity, most: int = 10) -> list[tuple[str, int]]:
    """Return the types of errors that were seen most, with their numbers."""
    return sorted(activity.errors.items(), key=lambda one: -one[1])[:most]


def activity_view(activity: Activity) -> dict[str, Any]:
    """Return numbers as values for JSON: durations in seconds, GPU memory in GiB."""
    view = attrs.asdict(activity, filter=lambda field, _: field.name != "start" and field.name not in _MEASURED)
    for name in _MEASURED:
        found = getattr(activity, name)
        view[name] = {"count": found.count, **{f"p{share}": found.quantile(share / 100) for share in (50, 95, 99)}}
    return {**view, "gpu_hint": gpu_memory_hint(activity)}


_MEASURED = ("waits", "runs", "settles", "gpu_peaks", "gpu_needs", "batch_sizes", "batch_waits")


async def _kinds(store: "QueueStore", options: Options) -> int:
    stats, fleet = await store.reader.stats(), await store.registry.fleet()
    names = {*stats.kinds, *(kind for worker in fleet for kind in worker.kinds if kind)}
    workers = {name: sum(name in worker.kinds for worker in fleet) for name in sorted(names)}
    if options.json:
        print_json([_kind_view(name, count, stats) for name, count in workers.items()])
        return OK
    rows = [
        (
            name,
            f"{stats.due_of(name):,}",
            _workers_of(name, fleet),
            moment(stats.paused_kinds.get(name)),
            stats.kinds_paused_by.get(name, "-"),
        )
        for name in workers
    ]
    print(table(("kind", "due", "workers", "paused since", "paused by"), rows))
    return OK


def _workers_of(kind: str, fleet: Sequence[Worker]) -> str:
    """Return in words how many live workers run a kind, and whether none of them claims its tasks."""
    quiet = [worker.quiet for worker in fleet if kind in worker.kinds]
    if not quiet:
        return t("no running worker has it")
    return t("{n}, all quiet", n=len(quiet)) if all(quiet) else f"{len(quiet)}"


def _kind_view(name: str, workers: int, stats: QueueStats) -> dict[str, object]:
    since, by = stats.paused_kinds.get(name), stats.kinds_paused_by.get(name, "")
    return {"kind": name, "due": stats.due_of(name), "workers": workers, "paused_since": since, "paused_by": by}


def _for_tenants(parser: Arguments) -> None:
    parser.add_argument("--limit", type=at_least_one, default=50, metavar="N", help="show N tenants (default: 50)")


async def _tenants(store: "QueueStore", options: Options) -> int:
    tenants = await store.shares.tenants()
    if options.json:
        print_json(
            [{"tenant": one.name, **attrs.asdict(one, filter=lambda field, _: field.name != "name")} for one in tenants]
        )
        return OK
    rows = [
        (one.name, f"{one.waiting:,}", f"{one.weight:g}", moment(one.paused_since), one.paused_by or "-")
        for one in tenants
    ]
    print(table(("tenant", "waiting", "weight", "paused since", "paused by"), rows[: options.limit]))
    if len(rows) > options.limit:
        print(t("There are {n} more: {command}", n=f"{len(rows) - options.limit:,}", command=f"--limit {len(rows)}"))
    return OK


async def _limits(store: "QueueStore", options: Options) -> int:
    limits = await store.shares.limits()
    if options.json:
        print_json({"limits": list(map(_limit_view, limits)), "more": limits.more})
        return OK
    head = ("limit", "in use", "rate", "tokens", "waiting tasks", "state")
    print(table(head, map(_limit_row, limits)))
    if limits.more:
        print(t("Up to {n} more names of classes are shut.", n=f"{limits.more:,}"))
    return OK


def _limit_view(one: LimitStats) -> dict[str, Any]:
    setting = one.limit and {"concurrency": one.limit.concurrency, "rate": one.limit.rate, "tokens": one.limit.tokens}
    return {"name": one.name, "limit": setting, **attrs.asdict(one, filter=lambda field, _: field.name not in _SET)}


_SET = ("name", "limit")


def _limit_row(one: LimitStats) -> Sequence[object]:
    setting = one.limit
    most = setting and setting.concurrency if one.is_class else one.most
    use = "-" if one.is_class else f"{one.in_use:,}"
    rate = setting and setting.rate and rate_text(setting.rate)
    tokens = setting and setting.tokens and rate_text(setting.tokens)
    shut = sentence(one.shut).partition(t(": "))[2]
    state = t("each name has its own") if one.is_class else shut or t("open")
    return (
        one.name,
        use if most is None else t("{number} of {most}", number=use, most=f"{most:,}"),
        rate or "-",
        tokens or "-",
        one.waiting_tasks,
        state,
    )


COMMANDS = {
    "stats": on_store(
        "Count the tasks of a queue by state, and show why nothing runs, or why tasks wait. Then show the ends, the "
        "durations and the errors of the last hour.",
        "maas-backoff stats --queue image-gen",
        _stats,
    ),
    "kinds": on_store(
        "List the kinds of tasks: due tasks, live workers that run the kind, since when it is paused, and by whom.",
        "maas-backoff kinds",
        _kinds,
    ),
    "tenants": on_store(
        "List the tenants with waiting tasks, a weight or a pause.",
        "maas-backoff tenants --limit 200",
        _tenants,
        _for_tenants,
    ),
    "limits": on_store(
        "List the limits that all workers share: their settings, their use, and until when they are shut.",
        "maas-backoff limits",
        _limits,
    ),
}
"""The commands by name."""
