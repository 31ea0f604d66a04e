"""The names of all commands: a command's module is imported when the command is used."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from maas_backoff.commands.command import Command


class Entry(NamedTuple):
    """The module of a command below `maas_backoff.commands`, and one line of help."""

    module: str
    help: str


CATALOGUE = {
    "demo": Entry("machine", "send the lines of a text file through a slow, overloaded model server, without set-up"),
    "worker": Entry("worker", "run a worker until SIGTERM, SIGHUP or Ctrl-C"),
    "map": Entry("mapping.command", "run a task for each line of a JSONL file, and write the results in order"),
    "gpus": Entry("machine", "show this machine's GPUs, and what is reserved on them"),
    "preview": Entry("preview", "show when a policy retries, as a table and a bar chart"),
    "doctor": Entry("machine", "find faults of server, queue and GPUs (1: there is one)"),
    "queues": Entry("machine", "list the queues of a server that have been used"),
    "dashboard": Entry("machine", "show and change a queue in a browser on this machine"),
    "metrics": Entry("machine", "serve /metrics for Prometheus, and /scale for an autoscaler"),
    "completion": Entry("completion", "print a script that completes this command in a shell"),
    "top": Entry("top", "show states, rates, workers, GPUs and errors, live"),
    "stats": Entry("counts", "count tasks by state, and show why nothing runs"),
    "history": Entry("history", "show ends, retries and durations of the last minutes, hours or days"),
    "kinds": Entry("counts", "list the kinds of tasks: due tasks, live workers, pauses"),
    "tenants": Entry("counts", "list the tenants: waiting tasks, weights, pauses"),
    "limits": Entry("counts", "list the limits: settings, use, and until when they are shut"),
    "list": Entry("reading", "list the tasks that match (without a condition: the pending ones)"),
    "count": Entry("reading", "count the tasks that match"),
    "get": Entry("reading", "show a task with its failed attempts (1: there is none)"),
    "watch": Entry("reading", "follow a task to its end (1: it did not complete)"),
    "check": Entry("reading", "check whether the server answers, for probes (1: not ready)"),
    "logs": Entry("logs", "show the lines that a task has logged (1: there is no such task)"),
    "create": Entry("steering", "create a task, and print its id"),
    "update": Entry("steering", "change the priority or the time of a pending task, or of all that match"),
    "cancel": Entry("steering", "cancel a task, or all that match"),
    "retry": Entry("steering", "make a failed or cancelled task, or all that match, pending again"),
    "delete": Entry("steering", "delete a task that is not running, or all that match"),
    "purge": Entry("steering", "delete all tasks in a state"),
    "pause": Entry("settings", "stop the claims of the queue's workers; running tasks go on"),
    "resume": Entry("settings", "let the queue's workers claim again"),
    "weight": Entry("settings", "set the share of a tenant"),
    "limit": Entry("settings", "set or remove a limit that all workers share"),
    "workers": Entry("fleet", "list the live workers and their tasks (1: none)"),
    "quiet": Entry("fleet", "tell a worker, or all of a host, to claim nothing more; --off undoes it"),
    "quarantine": Entry("fleet", "start no task on a GPU until it is released"),
    "release": Entry("fleet", "end the quarantine of a GPU"),
}
"""The commands by name, in the order of `--help`."""


def command(name: str) -> "Command":
    """Return a command by its name, and import its module."""
    found: Command = import_module(f"maas_backoff.commands.{CATALOGUE[name].module}").COMMANDS[name]
    return found
