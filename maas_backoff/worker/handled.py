"""The executors of the kinds that a worker runs: kinds that run in the same way, with the same lifespan, share one."""

from collections.abc import Iterable, Sequence

import attrs

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.batching import Batching
from maas_backoff.domain.demand import Demand
from maas_backoff.worker.executors.base import Executor, ExecutorGroup, Handler
from maas_backoff.worker.executors.by_kind import ExecutorByKind
from maas_backoff.worker.executors.call import is_coroutine_handler
from maas_backoff.worker.executors.handlers import joined
from maas_backoff.worker.executors.hooks import AttemptHook, hooked
from maas_backoff.worker.executors.inline import InlineExecutor
from maas_backoff.worker.executors.lifespan import InThisProcess, Lifespan
from maas_backoff.worker.executors.process import ProcessExecutor, SharedByChildren
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.executors.thread_pool import ThreadPool


@attrs.frozen
class HandledKind:
    """A kind of tasks that a worker runs. `demand` is that of its tasks without options of their own."""

    name: str
    handler: Handler
    lifespan: Lifespan | None
    demand: Demand | None
    exec_timeout: float | None = None
    """The timeout of its tasks without one of their own, in seconds; None: the worker's."""
    hooks: tuple[AttemptHook, ...] = ()
    """The hooks around each attempt, the outermost first: those of the scheduler, for all of its kinds."""
    batching: Batching | None = None
    """The way its tasks run in batches; None: each runs alone."""


def executor_of(kinds: Iterable[HandledKind], config: TaskBackoffConfig) -> Executor:
    """Return the executor of all kinds: the only one if they can share it."""
    in_children = config.threadpool.proc_mode == "process"
    groups: dict[tuple[Lifespan | None, bool], list[HandledKind]] = {}
    for kind in kinds:
        # A child calls both coroutine functions and plain functions.
        way = kind.lifespan, in_children or is_coroutine_handler(kind.handler)
        groups.setdefault(way, []).append(kind)
    executors = _in_children(groups.values(), config) if in_children else _in_this_process(groups.values(), config)
    if len(executors) == 1:
        return executors[0]
    pairs = zip(groups.values(), executors, strict=True)
    return ExecutorByKind({kind.name: executor for group, executor in pairs for kind in group})


def _in_children(groups: Iterable[Sequence[HandledKind]], config: TaskBackoffConfig) -> Sequence[ExecutorGroup]:
    limit, shared = config.task.max_payload_bytes, SharedByChildren(config.task.max_stream_bytes)
    return [
        ProcessExecutor(
            joined({kind.name: kind.handler for kind in group}),  # a child puts the hooks around each handler
            config.threadpool,
            max_payload_bytes=limit,
            lifespan=group[0].lifespan,
            demand=_demand_of(group),
            hooks=group[0].hooks,
            largest_batch=max(1 if kind.batching is None else kind.batching.max_size for kind in group),
            shared=shared,
        )
        for group in groups
    ]


def _demand_of(group: Sequence[HandledKind]) -> Demand | None:
    """Return the largest demand of kinds that all need a GPU; None if one of them needs none."""
    demands = [kind.demand for kind in group if kind.demand is not None]
    return max(demands, key=lambda demand: demand.memory) if len(demands) == len(group) else None


def _in_this_process(groups: Iterable[Sequence[HandledKind]], config: TaskBackoffConfig) -> Sequence[ExecutorGroup]:
    limit, threads = config.task.max_payload_bytes, ThreadPool()
    # Coroutine functions and plain functions have executors of their own. A lifespan may be that of both.
    lifespans = {group[0].lifespan: InThisProcess(group[0].lifespan) for group in groups}
    made: list[ExecutorGroup] = []
    for group in groups:
        handler = joined({kind.name: hooked(kind.handler, kind.hooks) for kind in group})
        lifespan = lifespans[group[0].lifespan]
        if is_coroutine_handler(group[0].handler):
            made.append(InlineExecutor(handler, max_payload_bytes=limit, lifespan=lifespan))
        else:
            made.append(ThreadExecutor(handler, max_payload_bytes=limit, lifespan=lifespan, threads=threads))
    return made
