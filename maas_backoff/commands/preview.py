"""`maas-backoff preview`: the delays of a policy."""

from itertools import accumulate

from maas_backoff.commands.command import OK, Arguments, Command, Options, add_option, json_flag
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.text import span, table
from maas_backoff.config import TaskBackoffConfig, TaskConfig

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


def _arguments(parser: Arguments) -> None:
    for name in OPTIONS:
        add_option(parser, TaskConfig, name)
    parser.add_argument("--id", default="", metavar="ID", help="id of the task; the jitter depends on it")
    json_flag(parser)


def _preview(options: Options) -> int:
    config = TaskBackoffConfig.from_env().task
    for name in OPTIONS:
        if (value := getattr(options, name)) is not None:
            setattr(config, name, value)
    policy = config.policy
    delays = policy.backoff(config.custom_backoff).preview(policy.max_retry_count, options.id)
    ends = list(accumulate(delays))
    if options.json:
        steps = zip(range(1, len(delays) + 1), delays, ends, strict=True)
        print_json([{"retry": retry, "delay": delay, "after": after} for retry, delay, after in steps])
        return OK
    longest = max(delays, default=0) or 1
    rows = [
        (retry, f"{delay:g}", span(after), "#" * max(1, round(BAR * delay / longest)))
        for retry, (delay, after) in enumerate(zip(delays, ends, strict=True), 1)
    ]
    print(table(("retry", "delay s", "after first failure", ""), rows))
    return OK


COMMANDS = {
    "preview": Command(
        "Show the exact delays of a policy, without a server. The options replace those of the environment.",
        "maas-backoff preview --backoff-interval 5 --max-retry-count 6",
        _preview,
        _arguments,
    )
}
"""The command by its name."""
