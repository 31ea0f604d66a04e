"""`maas-backoff preview`: the delays of a policy."""

import argparse
import json
from itertools import accumulate

from maas_backoff.commands.command import add_option
from maas_backoff.commands.text import span, table
from maas_backoff.config import TaskConfig

OPTIONS = (
    "backoff_strategy",
    "backoff_interval",
    "backoff_multiplier",
    "max_backoff_interval",
    "backoff_jitter",
    "max_retry_count",
)
BAR = 40
"""The number of characters of the longest bar."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option of TaskConfig on which the delays depend."""
    for name in OPTIONS:
        add_option(parser, TaskConfig, name)
    parser.add_argument("--id", default="", metavar="ID", help="id of the task; the jitter depends on it")
    parser.add_argument("--json", action="store_true", help="print JSON")


def preview(options: argparse.Namespace, config: TaskConfig) -> str:
    """Return the exact delays as a table with bars, or as JSON; `options` replace those of `config`."""
    for name in OPTIONS:
        if (value := getattr(options, name)) is not None:
            setattr(config, name, value)
    policy = config.policy
    delays = policy.backoff(config.custom_backoff).preview(policy.max_retry_count, options.id)
    ends = list(accumulate(delays))
    if options.json:
        steps = zip(range(1, len(delays) + 1), delays, ends, strict=True)
        return json.dumps([{"retry": retry, "delay": delay, "after": after} for retry, delay, after in steps])
    longest = max(delays, default=0) or 1
    rows = [
        (retry, f"{delay:g}", span(after), "#" * max(1, round(BAR * delay / longest)))
        for retry, (delay, after) in enumerate(zip(delays, ends, strict=True), 1)
    ]
    return table(("retry", "delay s", "after first failure", ""), rows)
