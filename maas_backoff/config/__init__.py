"""The configuration: plain objects whose fields are checked at each assignment.

Durations are seconds, or a timedelta. A wrong value raises ConfigError, which names the option, the expected values
and the value.
"""

import os
from collections.abc import Mapping
from types import NoneType
from typing import Any, Self, TypeVar, cast, get_args

import attrs
from attrs import define, field

from maas_backoff.config.options import kind_of, must
from maas_backoff.config.storage import StorageConfig
from maas_backoff.config.task import TaskConfig
from maas_backoff.config.worker import GpuConfig, ProcMode, SchedulerConfig, ThreadPoolConfig
from maas_backoff.errors import ConfigError

__all__ = [
    "GpuConfig",
    "ProcMode",
    "SchedulerConfig",
    "StorageConfig",
    "TaskBackoffConfig",
    "TaskConfig",
    "ThreadPoolConfig",
]

_T = TypeVar("_T")


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
        """Return a copy that later assignments to this configuration do not change."""
        return attrs.evolve(self, **{name: attrs.evolve(getattr(self, name)) for name in _SECTIONS})

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return the configuration of `{"storage": {...}, "task": {...}, …}`; a missing option has its default."""
        sections: dict[str, Any] = {}
        for name, fields in values.items():
            if name not in _SECTIONS:
                raise ConfigError(name, "one of the sections " + ", ".join(_SECTIONS), name)
            if not isinstance(fields, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - the caller's data, often parsed from a file
                raise ConfigError(name, "a mapping of options", fields)
            for option in fields:
                if option not in _OPTIONS[name]:
                    raise ConfigError(f"{name}.{option}", "one of " + ", ".join(_OPTIONS[name]), option)
            sections[name] = _SECTIONS[name](**fields)
        return cls(**sections)

    @classmethod
    def from_env(cls, prefix: str = "MAAS_BACKOFF_", environ: Mapping[str, str] | None = None) -> Self:
        """Return the configuration of the environment: `MAAS_BACKOFF_<OPTION>`, for example MAAS_BACKOFF_URL,
        MAAS_BACKOFF_BIZ_PREFIX, MAAS_BACKOFF_CONCURRENCY. The options are the fields of all sections.
        An unknown name raises ConfigError.
        """  # noqa: D205 - one sentence and its examples
        values: dict[str, dict[str, Any]] = {}
        for variable, given in (os.environ if environ is None else environ).items():
            if not variable.startswith(prefix):
                continue
            option = variable.removeprefix(prefix).lower()
            section = next((name for name, options in _OPTIONS.items() if option in options), None)
            if section is None:
                known = ", ".join(name for options in _OPTIONS.values() for name in options)
                raise ConfigError(variable, f"{prefix} and one of {known}", option)
            values.setdefault(section, {})[option] = _parsed(given, _OPTIONS[section][option], variable)
        return cls.from_dict(values)


_SECTIONS: dict[str, type[Any]] = {
    "storage": StorageConfig,
    "task": TaskConfig,
    "threadpool": ThreadPoolConfig,
    "scheduler": SchedulerConfig,
    "gpu": GpuConfig,
}

_OPTIONS = {name: attrs.fields_dict(kind) for name, kind in _SECTIONS.items()}

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _parsed(text: str, option: "attrs.Attribute[Any]", variable: str) -> str | float | None:
    """Return the text of an environment variable as its option's type."""
    kind, types = kind_of(option), get_args(option.type)
    if text == "" and NoneType in types and str not in types:
        return None
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ConfigError(variable, "one of " + ", ".join(_WORDS), text)
        return _WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(variable, f"a number ({kind.__name__})", text) from None
