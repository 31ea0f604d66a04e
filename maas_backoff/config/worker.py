"""The options of a worker: its slots, its leases, its GPUs."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

from attrs import define, field
from attrs.validators import optional

from maas_backoff.config.options import choice, described, duration, must, whole
from maas_backoff.domain.seconds import in_seconds

ProcMode = Literal["thread", "process"]


@described
@define(kw_only=True)
class ThreadPoolConfig:
    """How handlers run in a worker process.

    With `proc_mode="thread"`, plain functions run in threads, which nothing can stop from outside. A child process is
    killed on timeout and on cancel. `exec_timeout` is for tasks without an override. `start()` waits for the first of
    the `warm_children`. If tasks need a GPU, only that child is started before there is a task.
    """

    concurrency: int = field(
        default=10, validator=whole(1, 10_000), metadata={"help": "attempts at a time in one worker process"}
    )
    proc_mode: ProcMode = field(
        default="thread",
        validator=choice(*get_args(ProcMode)),
        metadata={"help": "where handlers run: thread (coroutines on the event loop), or process (in child processes)"},
    )
    exec_timeout: float = field(
        default=300,
        converter=in_seconds,
        validator=duration(0.001),
        metadata={"help": "seconds after which an attempt is stopped"},
    )
    max_tasks_per_process: int | None = field(
        default=None,
        validator=optional(whole(1, 1_000_000_000)),
        metadata={"help": "tasks after which a child process is replaced; None: never"},
    )
    start_timeout: float = field(
        default=300,
        converter=in_seconds,
        validator=duration(0.1),
        metadata={"help": "seconds in which a child process must import the handler and enter the worker_lifespan"},
    )
    warm_children: int | None = field(
        default=None,
        validator=optional(whole(1, 10_000)),
        metadata={"help": "child processes kept ready for tasks; None, or more than `concurrency`: one for each slot"},
    )


def _is_name(given: object) -> bool:
    return isinstance(given, str) and 1 <= len(given) <= 100 and not any(one.isspace() for one in given)


@described
@define(kw_only=True)
class SchedulerConfig:
    """The times of a worker.

    A worker sends a heartbeat every third of `lease`, and looks for lost tasks every quarter of it. A worker with a
    `worker_name`, such as that of a systemd instance or of a StatefulSet's pod, takes over the running tasks of the
    worker that had the name before. No two running workers of a queue may have the same one.
    """

    interval: float = field(
        default=10,
        converter=in_seconds,
        validator=duration(0.01, 3600),
        metadata={"help": "most seconds between two polls; new and due tasks wake a worker at once"},
    )
    lease: float = field(
        default=30,
        converter=in_seconds,
        validator=duration(3, 86_400),
        metadata={"help": "seconds for which a lease is valid without a heartbeat, at least 3"},
    )
    shutdown_grace: float = field(
        default=30,
        converter=in_seconds,
        validator=duration(0, 86_400),
        metadata={"help": "seconds for which running attempts may go on after a stop was requested"},
    )
    worker_name: str | None = field(
        default=None,
        validator=optional(must("1 to 100 characters without spaces", _is_name)),
        metadata={"help": "name by which a worker takes over from its predecessor at once; None: by the lease"},
    )


Gpus = Literal["all"] | tuple[int | str, ...]


def _as_gpus(given: str | Sequence[int | str]) -> Gpus:
    """Return the GPUs that an environment variable names: "all", or names with commas between them."""
    if given == "all":
        return "all"
    names = [name for name in given.split(",") if name] if isinstance(given, str) else given
    if not isinstance(names, list | tuple):
        return cast(Gpus, given)  # the validator refuses it
    return tuple(int(name) if isinstance(name, str) and name.isdecimal() else name for name in names)


def _are_gpus(given: object) -> bool:
    if given == "all":
        return True
    names = cast("tuple[object, ...]", given if isinstance(given, tuple) else ("",))
    return all(isinstance(name, int | str) and not isinstance(name, bool) and name != "" for name in names) and all(
        not isinstance(name, int) or name >= 0 for name in names
    )


@described
@define(kw_only=True)
class GpuConfig:
    """The GPUs of a worker. A GPU that CUDA_VISIBLE_DEVICES hides is not used."""

    gpus: Gpus = field(
        default="all",
        converter=_as_gpus,
        validator=must("'all', or a list of indices and UUIDs", _are_gpus),
        metadata={"help": "GPUs of the worker: all, or a list of indices (of NVML) and UUIDs; an empty list: none"},
    )
    tasks_per_gpu: int | None = field(
        default=None,
        validator=optional(whole(1, 10_000)),
        metadata={"help": "most tasks of all workers on a GPU at once; None: as many as fit"},
    )
    gpu_settle_time: float = field(
        default=5,
        converter=in_seconds,
        validator=duration(0, 3600),
        metadata={"help": "most seconds before others start on the GPU of a new child; fewer once its memory shows"},
    )
    gpu_release_timeout: float = field(
        default=30,
        converter=in_seconds,
        validator=duration(0, 3600),
        metadata={"help": "most seconds to wait until NVML shows the memory of a killed task as free"},
    )
    starvation_after: float = field(
        default=120,
        converter=in_seconds,
        validator=duration(0),
        metadata={"help": "seconds for which others may pass a task that does not fit; then a GPU is held for it"},
    )
    max_gpu_faults: int = field(
        default=3,
        validator=whole(1, 1000),
        metadata={
            "help": "tasks in a row that fail with errors of CUDA and put the GPU into quarantine for their queue"
        },
    )
    gpu_quarantine: float = field(
        default=300,
        converter=in_seconds,
        validator=duration(1),
        metadata={"help": "seconds of a quarantine; then one task tries the GPU"},
    )
