"""GPU demands of a configuration on a machine that has no GPU."""

import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.gate.library import Library, NvmlError

log: Log = log_for("scheduler")


def without_missing_gpus(config: TaskBackoffConfig) -> TaskBackoffConfig:
    """Return a configuration that demands no GPU if NVML finds none here, as the original library did."""
    task = config.task
    why = _why_there_is_none() if task.min_gpu_memory_gb or task.max_gpu_utilization else ""
    if not why:
        return config
    log.warning("min_gpu_memory_gb and min_gpu_utilization are ignored: this machine has no GPU (%s)", why)
    return attrs.evolve(config, task=task.overridden({"min_gpu_memory_gb": 0, "max_gpu_utilization": 0}))


def _why_there_is_none() -> str:
    try:
        library = Library()
        library.initialise()
        try:
            return "" if library.count() else "there is no device"
        finally:
            library.shut_down()
    except (ImportError, NvmlError) as error:
        return str(error)
