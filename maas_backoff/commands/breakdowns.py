"""`maas-backoff history --by`, `--kind` and `--tenant`: the history by kind and by tenant."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from maas_backoff.commands.command import OK, Options
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.text import moment, span, table
from maas_backoff.domain.breakdown import Breakdown, SettledAttempts, added
from maas_backoff.errors import InvalidValueError
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler

_NUMBERS = ("completed", "failed", "cancelled", "retried", "ran, mean")


def is_broken_down(options: Options) -> bool:
    """Return whether the options ask for the history by kind or by tenant."""
    return any(value is not None for value in (options.by, options.kind, options.tenant))


async def show_breakdown(scheduler: TaskBackoffScheduler, options: Options) -> int:
    """Print the largest kinds or tenants, or the steps of one of them."""
    if options.days is not None:
        raise InvalidValueError("days", "--minutes or --hours with --by, --kind and --tenant", options.days)
    name = options.kind if options.tenant is None else options.tenant
    by = options.by or ("kind" if options.tenant is None else "tenant")
    found = await scheduler.get_breakdown(by, options.minutes, hours=options.hours, name=name)
    if options.json:
        print_json(_view(found))
        return OK
    if name is None:
        rows = [(one, *_cells(total)) for one, total in found.totals.items()]
        others = added(found.others)
        print(table((by, *_NUMBERS), [*rows, *([(t("all others"), *_cells(others))] if others.count else [])]))
        return OK
    steps = found.names.get(name, ())
    shown = [one for one in steps if options.empty or one.count]
    cells = [(moment(one.start)[:-4] + "Z", *_cells(one)) for one in shown]
    print(table(("from", *_NUMBERS), [*cells, (t("all"), *_cells(added(steps)))]))
    return OK


def _cells(one: SettledAttempts) -> Sequence[str]:
    numbers = (one.completed, one.failed, one.cancelled, one.retried)
    return (*(f"{number:,}" for number in numbers), span(one.mean_run_time))


def _view(found: Breakdown) -> Mapping[str, Any]:
    names = [
        {"name": name, **_sum_view(found.totals[name]), "steps": list(map(attrs.asdict, steps))}
        for name, steps in found.names.items()
    ]
    others = {**_sum_view(added(found.others)), "steps": list(map(attrs.asdict, found.others))}
    return {"by": found.by, "step": found.step.total_seconds(), "names": names, "others": others}


def _sum_view(total: SettledAttempts) -> Mapping[str, Any]:
    return attrs.asdict(total, filter=lambda field, _: field.name != "start")
