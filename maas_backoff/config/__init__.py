"""The configuration: plain objects whose fields can be assigned, and are checked when they are.

Durations are seconds, or a timedelta. A wrong value raises ConfigError, which names the option, what was expected
and what was got.
"""

import os
from collections.abc import Mapping
from typing import Any, Self, TypeVar, cast

import attrs
from attrs import define, field

from maas_backoff.config.options import must
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
