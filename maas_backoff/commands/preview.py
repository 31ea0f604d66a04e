"""`maas-backoff preview`: when a policy would retry, before anything runs."""

import argparse
import json
from itertools import accumulate

from maas_backoff.commands.text import span, table
from maas_backoff.config import TaskConfig

BAR = 40
"""Characters of the longest bar."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, whose names are those of TaskConfig."""
    parser.add_argument("--backoff-strategy", metavar="NAME", help="fixed, linear or exponential")
    for option, help_ in (
        ("backoff_interval", "seconds"),
        ("backoff_multiplier", "for exponential"),
        ("max_backoff_interval", "seconds, the cap"),
        ("backoff_jitter", "share of the delay"),
    ):
        parser.add_argument(f"--{option.replace('_', '-')}", type=float, metavar="X", help=help_)
    parser.add_argument("--max-retry-count", type=int, metavar="N", help="how many retries")
    parser.add_argument("--id", default="", metavar="ID", help="the task whose jitter is drawn")
    parser.add_argument("--json", action="store_true", help="print JSON")


def preview(options: argparse.Namespace, config: TaskConfig) -> str:
    """Return the exact delays as a table with bars, or as JSON; options take the place of the configuration's."""
    told = {name: value for name, value in vars(options).items() if hasattr(config, name) and value is not None}
    for name, value in told.items():
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
