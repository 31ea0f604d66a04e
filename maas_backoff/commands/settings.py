"""The commands that change the settings of a queue: pauses, weights, limits."""

import getpass

from maas_backoff.commands.command import OK, Arguments, Options, on_queue
from maas_backoff.commands.json_text import print_json
from maas_backoff.domain.limit import rate_of
from maas_backoff.domain.pause import fitting_by
from maas_backoff.errors import InvalidValueError
from maas_backoff.language import t
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


def _done(options: Options, *, changed: bool, words: str, otherwise: str) -> int:
    """Print whether a setting has changed."""
    if options.json:
        print_json({"changed": changed})
    else:
        print(words if changed else otherwise)
    return OK


def _for_pause(parser: Arguments) -> None:
    parser.add_argument("--kind", metavar="NAME", help="only the tasks of this kind (default: the whole queue)")
    parser.add_argument("--tenant", metavar="NAME", help="only the tasks of this tenant")
    parser.add_argument("--by", metavar="NAME", help="who does it (default: the name of the user of this system)")


def _by(options: Options) -> str:
    """Return the name of who pauses or resumes."""
    if options.by is not None:
        return str(options.by)
    try:
        return fitting_by(getpass.getuser())
    except (ImportError, KeyError, OSError):  # a user id without a name, as in many containers
        return ""


def _part(options: Options) -> str:
    """Return in words what a pause is about."""
    if options.kind is not None:
        return t("kind {name}", name=printable(options.kind))
    return t("the queue") if options.tenant is None else t("tenant {name}", name=printable(options.tenant))


async def _pause(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.pause(kind=options.kind, tenant=options.tenant, by=_by(options))
    otherwise = t("{part} was paused already", part=_part(options))
    return _done(options, changed=done, words=t("paused"), otherwise=otherwise)


async def _resume(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.resume(kind=options.kind, tenant=options.tenant, by=_by(options))
    otherwise = t("{part} was not paused", part=_part(options))
    return _done(options, changed=done, words=t("goes on"), otherwise=otherwise)


def _for_weight(parser: Arguments) -> None:
    parser.add_argument("tenant", metavar="TENANT")
    parser.add_argument("weight", metavar="X", type=float, help="0.001 to 1000; it is 1 at first")


async def _weight(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.set_weight(options.tenant, options.weight)
    same = t("tenant {name} had this weight already", name=printable(options.tenant))
    return _done(options, changed=done, words=t("set"), otherwise=same)


def _for_limit(parser: Arguments) -> None:
    parser.add_argument("name", metavar="NAME", help="its name, or user:* for all names that begin with user:")
    parser.add_argument("--concurrency", type=int, metavar="N", help="most tasks that run at once")
    parser.add_argument("--rate", metavar="N/TIME", help="most tasks that start in a time, such as 500/1m")
    parser.add_argument("--tokens", metavar="X/TIME", help="most units that tasks use in a time, such as 120000/1m")
    parser.add_argument("--remove", action="store_true", help="remove the limit")


async def _limit(scheduler: TaskBackoffScheduler, options: Options) -> int:
    rate = None if options.rate is None else rate_of("rate", options.rate, whole=True)
    tokens = None if options.tokens is None else rate_of("tokens", options.tokens, whole=False)
    if options.remove == any(value is not None for value in (options.concurrency, rate, tokens)):
        expected = "--concurrency, --rate and --tokens, or --remove alone"
        raise InvalidValueError("limit", expected, "both" if options.remove else "none of them")
    if options.remove:
        done = await scheduler.remove_limit(options.name)
        unset = t("limit {name} was not set", name=printable(options.name))
        return _done(options, changed=done, words=t("removed"), otherwise=unset)
    done = await scheduler.set_limit(options.name, concurrency=options.concurrency, rate=rate, tokens=tokens)
    same = t("limit {name} had this setting already", name=printable(options.name))
    return _done(options, changed=done, words=t("set"), otherwise=same)


COMMANDS = {
    "pause": on_queue(
        "Stop the claims of a queue, of one kind, or of one tenant. Tasks that run go on; new tasks may be created.",
        "maas-backoff pause --kind render",
        _pause,
        _for_pause,
    ),
    "resume": on_queue(
        "Allow the claims of a queue, of one kind, or of one tenant again.",
        "maas-backoff resume --kind render",
        _resume,
        _for_pause,
    ),
    "weight": on_queue(
        "Set the share of a tenant: a tenant of weight 3 gets three times as much as one of weight 1.",
        "maas-backoff weight acme 3",
        _weight,
        _for_weight,
    ),
    "limit": on_queue(
        "Set or remove a limit that all workers share.",
        "maas-backoff limit openai --concurrency 64 --rate 500/1m --tokens 120000/1m",
        _limit,
        _for_limit,
    ),
}
"""The commands by name."""
