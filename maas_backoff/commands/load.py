"""The import of the scheduler `module:scheduler` for `maas-backoff worker` and `map`."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from operator import attrgetter

from maas_backoff.commands.usage import UsageError
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler


def load_scheduler(reference: str, *, needs_handler: bool = True) -> TaskBackoffScheduler:
    """Return the scheduler that `module:attribute` names. Raises UsageError if there is none.

    `needs_handler`: refuse a scheduler with neither a handler nor a kind, which only creates tasks.
    """
    module, _, attribute = reference.partition(":")
    if not _is_dotted_name(module) or not _is_dotted_name(attribute):
        told = "expected module:scheduler, like my_service.tasks:scheduler, got {got}"
        raise UsageError(t(told, got=repr(reference)))
    found = _import(module, attribute)
    if not isinstance(found, TaskBackoffScheduler) and _is_kind(found):
        told = "{scheduler} is a kind of tasks: name the scheduler that declares it"
        raise UsageError(t(told, scheduler=repr(reference)))
    if not isinstance(found, TaskBackoffScheduler) and callable(found):
        found = _call(reference, found)
        if inspect.iscoroutine(found):
            found.close()  # avoids a warning of Python that the coroutine was never awaited
    if not isinstance(found, TaskBackoffScheduler):
        told = "{scheduler}: expected a TaskBackoffScheduler or a function giving it, got {got}"
        raise UsageError(t(told, scheduler=repr(reference), got=type(found).__name__))
    if needs_handler and not found.has_handler:
        told = (
            "{scheduler} has no handler, so it can run no tasks: call set_custom_task_handler in its module, "
            "or declare a kind with @scheduler.task"
        )
        raise UsageError(t(told, scheduler=repr(reference)))
    return found


def _is_kind(found: object) -> bool:
    from maas_backoff.kinds.kind import KindWithOptions  # a worker without kinds needs no import of them

    return isinstance(found, KindWithOptions)


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _import(module: str, attribute: str) -> object:
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds str
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as above; a console script has its own directory in sys.path instead
    try:
        loaded = importlib.import_module(module)
    except SystemExit:
        told = (
            "the module {module} calls sys.exit while it is imported: put what starts the program under "
            '`if __name__ == "__main__":`'
        )
        raise UsageError(t(told, module=repr(module))) from None
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            told = t("there is no module {module} here or among the installed ones", module=repr(error.name))
            raise UsageError(told) from error
        traceback.print_exc()  # the author of the module needs the place of the error
        told = t("the module {module} cannot be imported: {error}", module=repr(module), error=_in_words(error))
        raise UsageError(told) from error
    try:
        return attrgetter(attribute)(loaded)
    except AttributeError as error:
        told = t("the module {module} has no attribute {name}", module=repr(module), name=repr(attribute))
        raise UsageError(told) from error


def _call(reference: str, factory: Callable[[], object]) -> object:
    try:
        return factory()
    except Exception as error:
        traceback.print_exc()  # as above
        told = t("{scheduler} cannot be called: {error}", scheduler=repr(reference), error=_in_words(error))
        raise UsageError(told) from error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
