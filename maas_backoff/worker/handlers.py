"""The entry of the worker's half: the checks of users' functions, and the service that calls them.

A scheduler imports this module, and with it the worker and the gate, when it gets its first handler: a program that
only creates and reads tasks needs neither.
"""

from collections.abc import Callable, Sequence

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.kind import NAMELESS, Kinds
from maas_backoff.domain.tracing import Tracing
from maas_backoff.errors import HandlerError
from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.sample import Probe
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.executors.base import ExceptionHandler, Handler
from maas_backoff.worker.executors.call import check_handler, check_no_generator, check_takes
from maas_backoff.worker.executors.hooks import AttemptHook, check_fits, check_hook
from maas_backoff.worker.executors.lifespan import Lifespan
from maas_backoff.worker.executors.reference import HandlerReference
from maas_backoff.worker.handled import HandledKind, executor_of
from maas_backoff.worker.parts import Parts
from maas_backoff.worker.service import Service


def check_task_handler(handler: Callable[..., object], config: TaskBackoffConfig) -> None:
    """Raise HandlerError for a task handler that cannot be called, or that no child process would find."""
    check_handler("handler", handler, 1, 2)
    _check_reference(handler, config)


def check_kind_function(what: str, function: Callable[..., object], config: TaskBackoffConfig) -> None:
    """Raise HandlerError for the function of a kind that is a generator, or that no child process would find."""
    check_no_generator(what, function)
    _check_reference(function, config)


def check_lifespan(what: str, lifespan: Callable[..., object], config: TaskBackoffConfig) -> None:
    """Raise HandlerError for a lifespan that cannot be called, or that no child process would find."""
    if not callable(lifespan):
        raise HandlerError(f"{what}: expected a function, got {type(lifespan).__name__}")
    check_takes(what, lifespan, 0, 1, one="the GPU that it was given")
    _check_reference(lifespan, config)


def check_attempt_hook(hook: Callable[..., object], config: TaskBackoffConfig) -> None:
    """Raise HandlerError for a hook that cannot be called, or that no child process would find."""
    check_hook(hook)
    _check_reference(hook, config)


def check_exception_handler(handler: Callable[..., object]) -> None:
    """Raise HandlerError for an exception handler that cannot be called with a task."""
    check_handler("exception handler", handler, 1)


def _check_reference(function: Callable[..., object], config: TaskBackoffConfig) -> None:
    if config.threadpool.proc_mode == "process":
        HandlerReference.of(function, defined=False)


def service_of(
    config: TaskBackoffConfig,
    store: QueueStore,
    handled: Sequence[HandledKind],
    *,
    exception_handler: ExceptionHandler | None,
    probe: Probe | None,
    tracing: Tracing | None,
) -> Service:
    """Return a service that is not started. Without a `probe`, NVML is asked."""
    for kind in handled:
        check_fits(kind.hooks, [kind.handler])
    timeouts = {kind.name: kind.exec_timeout for kind in handled if kind.exec_timeout is not None}
    batches = {kind.name: kind.batching for kind in handled if kind.batching is not None}
    kinds = Kinds(tuple(kind.name for kind in handled), timeouts, batches)
    executor = executor_of(handled, config)
    return Service(Parts.of(config, store, executor, exception_handler, probe or NvmlProbe(), tracing, kinds))


def handled_task_handler(
    handler: Handler, lifespan: Lifespan | None, hooks: Sequence[AttemptHook], config: TaskBackoffConfig
) -> HandledKind:
    """Return the task handler as what runs the tasks without a kind. Raises HandlerError."""
    check_handler("handler", handler, 1 if lifespan is None else 2)
    return HandledKind(NAMELESS, handler, lifespan, config.task.policy.demand, hooks=tuple(hooks))
