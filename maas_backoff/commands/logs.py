"""The command that shows what a task has logged."""

from maas_backoff.commands.command import OK, Arguments, Options, on_queue, task_id
from maas_backoff.commands.json_text import print_json_line
from maas_backoff.commands.text import moment
from maas_backoff.language import t
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


def _arguments(parser: Arguments) -> None:
    task_id(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="show further lines until the task is finished")
    parser.add_argument("--last", type=int, metavar="N", help="leave out all lines but the last N, 1 to 1000")


async def _logs(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async for line in scheduler.logs(options.task_id, last=options.last, follow=options.follow):
        if options.json:
            print_json_line({"id": line.id, "attempt": line.attempt, "at": line.at, "text": line.text})
        else:
            attempt = t("attempt {number}", number=line.attempt)
            print(f"{moment(line.at)}  {attempt}  {printable(line.text)}", flush=True)
    return OK


COMMANDS = {
    "logs": on_queue(
        "Show the lines that a task has logged. Exit code 1: there is no such task.",
        "maas-backoff logs img-1 --follow",
        _logs,
        _arguments,
    )
}
"""The command by its name."""
