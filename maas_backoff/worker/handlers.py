"""The entry of the worker's half: the checks of users' functions, and the service that calls them.

A scheduler imports this module, and with it the worker and the gate, when it gets its first handler: a program that
only creates and reads tasks needs neither.
"""

from collections.abc import Callable

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.tracing import Tracing
from maas_backoff.errors import HandlerError
from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.sample import Probe
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.executors.base import ExceptionHandler, Executor, Handler
from maas_backoff.worker.executors.call import check_handler, check_takes, is_coroutine_handler
from maas_backoff.worker.executors.inline import InlineExecutor
from maas_backoff.worker.executors.lifespan import Lifespan
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.reference import HandlerReference
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.parts import Parts
from maas_backoff.worker.service import Service


def check_task_handler(handler: Callable[..., object], config: TaskBackoffConfig) -> None:
    """Raise HandlerError for a task handler that cannot be called, or that no child process would find."""
    check_handler("handler", handler, 1, 2)
    _check_reference(handler, config)


def check_lifespan(lifespan: Callable[..., object], config: TaskBackoffConfig) -> None:
    """Raise HandlerError for a worker_lifespan that cannot be called, or that no child process would find."""
    if not callable(lifespan):
        raise HandlerError(f"worker_lifespan: expected a function, got {type(lifespan).__name__}")
    check_takes("worker_lifespan", lifespan, 0, 1, one="the GPU that it was given")
    _check_reference(lifespan, config)


def check_exception_handler(handler: Callable[..., object]) -> None:
    """Raise HandlerError for an exception handler that cannot be called with a task."""
    check_handler("exception handler", handler, 1)


def _check_reference(function: Callable[..., object], config: TaskBackoffConfig) -> None:
    if config.threadpool.proc_mode == "process":
        HandlerReference.of(function, defined=False)


def service_of(
    config: TaskBackoffConfig,
    store: QueueStore,
    handler: Handler,
    *,
    lifespan: Lifespan | None,
    exception_handler: ExceptionHandler | None,
    probe: Probe | None,
    tracing: Tracing | None,
) -> Service:
    """Return a service that is not started. Without a `probe`, NVML is asked. Raises HandlerError."""
    check_handler("handler", handler, 1 if lifespan is None else 2)
    executor = _executor(config, handler, lifespan)
    return Service(Parts.of(config, store, executor, exception_handler, probe or NvmlProbe(), tracing))


def _executor(config: TaskBackoffConfig, handler: Handler, lifespan: Lifespan | None) -> Executor:
    limit, threadpool = config.task.max_payload_bytes, config.threadpool
    if threadpool.proc_mode == "process":
        needs_gpu = config.task.policy.demand is not None
        return ProcessExecutor(handler, threadpool, max_payload_bytes=limit, lifespan=lifespan, needs_gpu=needs_gpu)
    if is_coroutine_handler(handler):
        return InlineExecutor(handler, max_payload_bytes=limit, lifespan=lifespan)
    return ThreadExecutor(handler, max_payload_bytes=limit, lifespan=lifespan)
