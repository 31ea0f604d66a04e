"""The options of a worker: its slots, its leases, its GPUs."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

from attrs import define, field
from attrs.validators import optional

from maas_backoff.config.options import choice, duration, must, whole
from maas_backoff.domain.seconds import in_seconds

ProcMode = Literal["thread", "process"]


@define(kw_only=True)
class ThreadPoolConfig:
    """How handlers run in a worker process.

    `concurrency` attempts at a time. `proc_mode="thread"`: coroutine handlers run on the event loop, plain functions
    in threads, which nothing can stop from outside. `proc_mode="process"`: every handler runs in a child process,
    which is killed on timeout and on cancel. `exec_timeout` limits one attempt of a task without its own.
    `max_tasks_per_process` replaces a child after that many tasks; None keeps it. `start_timeout` is how long a child
    may take to import the handler's module and to enter the worker_lifespan. `warm_children` is how many children are
    kept ready for tasks, at most `concurrency`; None: as many as there are slots. `start()` waits for the first one.
    If tasks need a GPU, only that child is started before there is a task.
    """

    concurrency: int = field(default=10, validator=whole(1, 10_000))
    proc_mode: ProcMode = field(default="thread", validator=choice(*get_args(ProcMode)))
    exec_timeout: float = field(default=300, converter=in_seconds, validator=duration(0.001))
    max_tasks_per_process: int | None = field(default=None, validator=optional(whole(1, 1_000_000_000)))
    start_timeout: float = field(default=300, converter=in_seconds, validator=duration(0.1))
    warm_children: int | None = field(default=None, validator=optional(whole(1, 10_000)))


@define(kw_only=True)
class SchedulerConfig:
    """The rhythm of a worker.

    `interval` is the longest sleep between two polls; new and due tasks wake a worker at once. `lease` is how long
    a worker's claim on a task holds without a heartbeat: beats come every third of it, lost tasks are looked for
    every quarter of it. `shutdown_grace` is how long running attempts may go on after a stop was asked for.
    """

    interval: float = field(default=10, converter=in_seconds, validator=duration(0.01, 3600))
    lease: float = field(default=30, converter=in_seconds, validator=duration(3, 86_400))
    shutdown_grace: float = field(default=30, converter=in_seconds, validator=duration(0, 86_400))


Gpus = Literal["all"] | tuple[int | str, ...]


def _as_gpus(given: str | Sequence[int | str]) -> Gpus:
    """Return the GPUs that an environment variable names: "all", or names with commas between them."""
    if given == "all":
        return "all"
    names = [name for name in given.split(",") if name] if isinstance(given, str) else given
    if not isinstance(names, list | tuple):
        return cast(Gpus, given)  # the validator's business
    return tuple(int(name) if isinstance(name, str) and name.isdecimal() else name for name in names)


def _are_gpus(given: object) -> bool:
    if given == "all":
        return True
    names = cast("tuple[object, ...]", given if isinstance(given, tuple) else ("",))
    return all(isinstance(name, int | str) and not isinstance(name, bool) and name != "" for name in names) and all(
        not isinstance(name, int) or name >= 0 for name in names
    )


@define(kw_only=True)
class GpuConfig:
    """Which GPUs a worker uses, and how.

    `gpus` are "all" that it can see, or a list of indices (NVML's) and UUIDs; an empty one: none. At most
    `tasks_per_gpu` tasks of all workers run on a device at once; None: as many as fit. After the start of a child
    process on a device nothing else starts there until its memory shows, or for `gpu_settle_time`. What a killed task
    used is given to others when NVML shows it free, at the latest after `gpu_release_timeout`. A task that others have
    passed for `starvation_after` gets a device held for it. If `max_gpu_faults` tasks of a queue in a row fail
    on a device with errors of CUDA, that queue leaves it alone for `gpu_quarantine`; then one task tries it.
    """

    gpus: Gpus = field(
        default="all", converter=_as_gpus, validator=must("'all', or a list of indices and UUIDs", _are_gpus)
    )
    tasks_per_gpu: int | None = field(default=None, validator=optional(whole(1, 10_000)))
    gpu_settle_time: float = field(default=5, converter=in_seconds, validator=duration(0, 3600))
    gpu_release_timeout: float = field(default=30, converter=in_seconds, validator=duration(0, 3600))
    starvation_after: float = field(default=120, converter=in_seconds, validator=duration(0))
    max_gpu_faults: int = field(default=3, validator=whole(1, 1000))
    gpu_quarantine: float = field(default=300, converter=in_seconds, validator=duration(1))
