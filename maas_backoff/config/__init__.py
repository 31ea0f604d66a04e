"""The configuration: plain objects whose fields can be assigned, and are checked when they are.

Durations are seconds, or a timedelta. A wrong value raises ConfigError, which names the option, what was expected
and what was got.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, cast, get_args

import attrs
from attrs import define, field
from attrs.validators import optional

from maas_backoff.config.options import YEAR, choice, duration, must, number, whole
from maas_backoff.config.storage import StorageConfig
from maas_backoff.domain.backoff import Backoff, BackoffCallable, BackoffStrategy
from maas_backoff.domain.policy import CUSTOM_STRATEGY, Policy
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.errors import ConfigError

ProcMode = Literal["thread", "process"]

_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_T = TypeVar("_T")


def _is_strategy(value: object) -> bool:
    return callable(value) or (isinstance(value, str) and value in list(BackoffStrategy))


def _mirror(mine: str, other: str) -> Callable[[Any, "attrs.Attribute[Any]", Any], Any]:
    def hook(owner: object, attribute: "attrs.Attribute[Any]", value: object) -> object:
        if attribute.validator is not None:
            attribute.validator(owner, attribute, value)
        assert attribute.name == mine
        object.__setattr__(owner, other, value)
        return value

    return hook


@define(kw_only=True)
class TaskConfig:
    """The policy of the tasks of one queue; `create_task` may say otherwise for one of them.

    A task keeps the values of the process that creates it; every worker decides by those.

    `max_retry_count` is retries, so at most one attempt more. Delays: `Backoff`. A `backoff_interval` above
    `max_backoff_interval` is refused when the configuration is used; the default gives way to a lower cap.
    `backoff_jitter` is a share of the delay. `backoff_strategy` may be a callable from the retry's number (from 1)
    to seconds; it lives in the workers, and where there is none the exponential formula stands in. A step of
    `priority` is worth a head start of `priority_step` seconds. A task whose worker died `max_lost` times fails; a
    loss counts 1/n where n tasks were lost together. `result_ttl` is how long completed and cancelled tasks are
    kept, `failed_ttl` how long failed ones are. `max_payload_bytes` limits params and results.
    With `max_queue_size` tasks that are not finished, new ones are refused (QueueFullError); None: no limit.
    A task starts only on a GPU with `min_gpu_memory_gb` GiB free and a utilisation below `max_gpu_utilization`
    percent (0: no matter). `min_gpu_utilization` is the old name of `max_gpu_utilization`. A task that runs out of a
    GPU's memory comes back for `oom_growth` times as much, or for what it was seen to use if that is more, at most
    `max_ooms` times without using a retry.
    """

    biz_prefix: str = field(
        default="",
        validator=must(
            "1 to 64 of A-Z a-z 0-9 _ . -",
            lambda value: isinstance(value, str) and (not value or _PREFIX.fullmatch(value) is not None),
        ),
    )
    batch_size: int = field(default=100, validator=whole(1, 100))
    max_retry_count: int = field(default=3, validator=whole(0, 1_000_000))
    backoff_strategy: str | BackoffCallable = field(
        default="exponential", validator=must("'fixed', 'linear', 'exponential' or a callable", _is_strategy)
    )
    backoff_interval: float = field(default=30, converter=in_seconds, validator=duration(0))
    backoff_multiplier: float = field(default=2.0, validator=number(1, 1000))
    max_backoff_interval: float = field(default=3600, converter=in_seconds, validator=duration(0))
    backoff_jitter: float = field(default=0.0, validator=number(0, 1, "a share"))
    priority_step: float = field(default=60, converter=in_seconds, validator=duration(0, 86_400))
    max_lost: int = field(default=3, validator=whole(1, 1000))
    max_snoozes: int = field(default=1000, validator=whole(0, 1_000_000))
    max_queue_size: int | None = field(default=None, validator=optional(whole(1, 1_000_000_000)))
    max_finished: int = field(default=1_000_000, validator=whole(1, 100_000_000))
    result_ttl: float = field(default=86_400, converter=in_seconds, validator=duration(1, 10 * YEAR))
    failed_ttl: float = field(default=604_800, converter=in_seconds, validator=duration(1, 10 * YEAR))
    max_payload_bytes: int = field(default=1_048_576, validator=whole(2, 64 * 1_048_576))
    min_gpu_memory_gb: float = field(default=0, validator=number(0, 100_000, "GiB"))
    max_gpu_utilization: float = field(
        default=0,
        validator=number(0, 100, "percent"),
        on_setattr=_mirror("max_gpu_utilization", "min_gpu_utilization"),
    )
    min_gpu_utilization: float = field(
        default=0,
        repr=False,
        eq=False,
        validator=number(0, 100, "percent"),
        on_setattr=_mirror("min_gpu_utilization", "max_gpu_utilization"),
    )

    oom_growth: float = field(default=1.5, validator=number(1, 100))
    max_ooms: int = field(default=3, validator=whole(0, 1000))

    def __attrs_post_init__(self) -> None:
        ceiling, old = self.max_gpu_utilization, self.min_gpu_utilization
        if ceiling and old and ceiling != old:
            raise ConfigError("task.min_gpu_utilization", f"the value of max_gpu_utilization, {ceiling}", old)
        self.max_gpu_utilization = ceiling or old

    def check(self) -> None:
        """Raise ConfigError for options that do not go together.

        Not done on assignment, as one option is assigned after the other: `policy`, `backoff` and the first use of a
        scheduler do it.
        """
        interval, most = self.backoff_interval, self.max_backoff_interval
        # A callable needs no interval, and the default gives way to a lower cap.
        given = isinstance(self.backoff_strategy, str) and interval != attrs.fields(TaskConfig).backoff_interval.default
        if given and interval > most:
            expected = f"at most task.max_backoff_interval, which is {most:g} s (raise that one, or lower this one)"
            raise ConfigError("task.backoff_interval", expected, interval)

    @property
    def policy(self) -> Policy:
        """The part that travels with each task. Raises ConfigError as `check` does."""
        self.check()
        strategy = self.backoff_strategy
        return Policy(
            backoff_strategy=strategy if isinstance(strategy, str) else CUSTOM_STRATEGY,
            **{name: getattr(self, name) for name in _POLICY_FIELDS if name != "backoff_strategy"},
        )

    @property
    def backoff(self) -> Backoff:
        """The delays of this configuration; `backoff.preview(n)` tells them before anything runs."""
        return self.policy.backoff(self.custom_backoff)

    @property
    def custom_backoff(self) -> BackoffCallable | None:
        """The callable backoff, if there is one."""
        return None if isinstance(self.backoff_strategy, str) else self.backoff_strategy


_POLICY_FIELDS = tuple(f.name for f in attrs.fields(Policy))


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


def _section(kind: type[_T]) -> _T:
    def is_section(value: object) -> bool:
        return isinstance(value, kind)

    return cast(_T, field(factory=kind, validator=must(f"a {kind.__name__}", is_section)))


@define(kw_only=True)
class TaskBackoffConfig:
    """The whole configuration of one scheduler, in five sections."""

    storage: StorageConfig = _section(StorageConfig)
    task: TaskConfig = _section(TaskConfig)
    threadpool: ThreadPoolConfig = _section(ThreadPoolConfig)
    scheduler: SchedulerConfig = _section(SchedulerConfig)
    gpu: GpuConfig = _section(GpuConfig)

    def copy(self) -> Self:
        """Return a copy that later assignments to this one do not reach."""
        return attrs.evolve(self, **{name: attrs.evolve(getattr(self, name)) for name in _SECTIONS})

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return the configuration of `{"storage": {...}, "task": {...}, …}`; what is missing has its default."""
        sections: dict[str, Any] = {}
        for name, fields in values.items():
            if name not in _SECTIONS:
                raise ConfigError(name, "one of the sections " + ", ".join(_SECTIONS), name)
            if not isinstance(fields, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - the caller's data, often parsed from a file
                raise ConfigError(name, "a mapping of options", fields)
            known = _options(_SECTIONS[name])
            for option in fields:
                if option not in known:
                    raise ConfigError(f"{name}.{option}", "one of " + ", ".join(known), option)
            sections[name] = _SECTIONS[name](**fields)
        return cls(**sections)

    @classmethod
    def from_env(cls, prefix: str = "MAAS_BACKOFF_", environ: Mapping[str, str] | None = None) -> Self:
        """Return the configuration of the environment: `MAAS_BACKOFF_<OPTION>`, for example MAAS_BACKOFF_URL,
        MAAS_BACKOFF_BIZ_PREFIX, MAAS_BACKOFF_CONCURRENCY. The names of the options are those of the sections' fields.
        An unknown name is refused.
        """  # noqa: D205 - one sentence and its examples
        values: dict[str, dict[str, Any]] = {}
        for variable, given in (os.environ if environ is None else environ).items():
            if not variable.startswith(prefix):
                continue
            option = variable.removeprefix(prefix).lower()
            section = next((name for name, kind in _SECTIONS.items() if option in _options(kind)), None)
            if section is None:
                known = ", ".join(name for kind in _SECTIONS.values() for name in _options(kind))
                raise ConfigError(variable, f"{prefix} and one of {known}", option)
            values.setdefault(section, {})[option] = _parsed(given, _SECTIONS[section], option, variable)
        return cls.from_dict(values)


_SECTIONS: dict[str, type[Any]] = {
    "storage": StorageConfig,
    "task": TaskConfig,
    "threadpool": ThreadPoolConfig,
    "scheduler": SchedulerConfig,
    "gpu": GpuConfig,
}


def _options(section: type[Any]) -> list[str]:
    return [attribute.name for attribute in attrs.fields(section)]


_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _parsed(text: str, section: type[Any], option: str, variable: str) -> str | float | None:
    """Return the text of an environment variable as its option's type."""
    annotation = str(getattr(attrs.fields(section), option).type)
    if "str" in annotation or "Literal" in annotation:
        return text
    if text == "" and "None" in annotation:
        return None
    if "bool" in annotation:
        if text.lower() not in _WORDS:
            raise ConfigError(variable, "one of " + ", ".join(_WORDS), text)
        return _WORDS[text.lower()]
    number = float if "float" in annotation else int
    try:
        return number(text)
    except ValueError:
        raise ConfigError(variable, f"a number ({number.__name__})", text) from None
