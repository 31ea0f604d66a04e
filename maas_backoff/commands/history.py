"""`maas-backoff history`: the numbers of a queue in steps."""

from collections.abc import Sequence

from maas_backoff.commands.breakdowns import is_broken_down, show_breakdown
from maas_backoff.commands.command import OK, Arguments, Options, on_queue
from maas_backoff.commands.counts import activity_view, most_frequent
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.text import moment, span, table
from maas_backoff.domain.histogram import Durations
from maas_backoff.domain.history import Activity
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler


def _for_history(parser: Arguments) -> None:
    spans = parser.add_mutually_exclusive_group()
    spans.add_argument("--minutes", type=int, metavar="N", help="the last 1 to 120 minutes, one a line (default: 60)")
    spans.add_argument("--hours", type=int, metavar="N", help="the last 1 to 24 hours, ten minutes a line")
    spans.add_argument("--days", type=int, metavar="N", help="the last 1 to 7 days, one hour a line")
    parser.add_argument("--empty", action="store_true", help="also show lines in which nothing happened")
    parts = parser.add_mutually_exclusive_group()
    of_names = "the twenty kinds or tenants with most ends and retries"
    parts.add_argument("--by", choices=["kind", "tenant"], help=of_names)
    parts.add_argument("--kind", metavar="NAME", help="only the tasks of this kind")
    parts.add_argument("--tenant", metavar="NAME", help="only the tasks of this tenant")


async def _history(scheduler: TaskBackoffScheduler, options: Options) -> int:
    if is_broken_down(options):
        return await show_breakdown(scheduler, options)
    history = await scheduler.get_history(options.minutes, hours=options.hours, days=options.days)
    if options.json:
        steps = [{"start": one.start, **activity_view(one)} for one in history.steps]
        about = {"step": history.step.total_seconds(), "steps": steps}
        print_json({**about, "recent": activity_view(history.recent), "total": activity_view(history.total)})
        return OK
    head = ("from", "completed", "failed", "cancelled", "retried", "lost", "waited p50 p95 p99", "ran p50 p95 p99")
    shown = [one for one in history.steps if options.empty or one != Activity(one.start)]
    rows = [(moment(one.start)[:-4] + "Z", *_ends(one)) for one in shown]
    print(table(head, [*rows, (t("all"), *_ends(history.recent))]))
    if history.recent.errors:
        print(table(("error", "attempts"), most_frequent(history.recent)))
    return OK


def _ends(one: Activity) -> Sequence[str]:
    numbers = (one.completed, one.failed, one.cancelled, one.retried, one.lost)
    return (*(f"{number:,}" for number in numbers), _quantiles(one.waits), _quantiles(one.runs))


def _quantiles(durations: Durations) -> str:
    return t(", ").join(span(durations.quantile(share)) for share in (0.5, 0.95, 0.99)) if durations.count else "-"


COMMANDS = {
    "history": on_queue(
        "Show ends, retries, losses and durations of the last minutes, hours or days, and the errors of that time. "
        "Lines in which nothing happened are left out. --by, --kind and --tenant are about "
        "kinds and tenants.",
        "maas-backoff history --hours 24",
        _history,
        _for_history,
    ),
}
"""The command by its name."""
