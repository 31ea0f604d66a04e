"""The configuration of a chaos run: one for its producers, its workers and its end."""

from maas_backoff import SchedulerConfig, StorageConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig

LEASE = 3.0
BACKOFF = 0.2
MAX_RETRY = 3
POISON_MAX_LOST = 3
"""The losses that a poison task is allowed; the others are lost with it, and to the driver, and must all end well."""


def setting(port: int, timeout: float = 10) -> TaskBackoffConfig:
    return TaskBackoffConfig(
        storage=StorageConfig(host="127.0.0.1", port=port, timeout=timeout),
        task=TaskConfig(
            biz_prefix="chaos",
            max_retry_count=MAX_RETRY,
            backoff_interval=BACKOFF,
            backoff_multiplier=2.0,
            max_lost=30,
            result_ttl=86_400,
            failed_ttl=86_400,
        ),
        threadpool=ThreadPoolConfig(exec_timeout=30),
        scheduler=SchedulerConfig(interval=1, lease=LEASE, shutdown_grace=2),
    )
