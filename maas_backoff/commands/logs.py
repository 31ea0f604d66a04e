"""The command that shows what a task has logged."""

import json

from maas_backoff.commands.command import OK, Arguments, Command, Options, task_id
from maas_backoff.commands.text import moment
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


def _arguments(parser: Arguments) -> None:
    task_id(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="show further lines until the task is finished")
    parser.add_argument("--last", type=int, metavar="N", help="leave out all lines but the last N, 1 to 1000")


async def _logs(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async for line in scheduler.logs(options.task_id, last=options.last, follow=options.follow):
        if options.json:
            about = {"id": line.id, "attempt": line.attempt, "at": line.at.isoformat(), "text": line.text}
            print(json.dumps(about, ensure_ascii=True), flush=True)
        else:
            print(f"{moment(line.at)}  attempt {line.attempt}  {printable(line.text)}", flush=True)
    return OK


COMMANDS = {
    "logs": Command(
        "show the lines that a task has logged (1: there is no such task)", _logs, _arguments, prints_json=True
    )
}
"""The commands by name."""
