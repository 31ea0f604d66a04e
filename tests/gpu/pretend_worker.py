"""The worker processes of the tests. Their children import the handlers alone, and start sooner."""

import os

from gpu.handlers import handle, lifespan

from maas_backoff import (
    GpuConfig,
    SchedulerConfig,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    ThreadPoolConfig,
)


def scheduler() -> TaskBackoffScheduler:
    """The worker of the tests, as `maas-backoff worker gpu.pretend_worker:scheduler` has it; options by environment."""
    made = TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(host="127.0.0.1", port=int(os.environ["GPU_TEST_PORT"])),
            task=TaskConfig(biz_prefix="test", min_gpu_memory_gb=4, result_ttl=600, failed_ttl=600),
            threadpool=ThreadPoolConfig(concurrency=8, proc_mode="process", exec_timeout=30),
            scheduler=SchedulerConfig(interval=1, lease=3, shutdown_grace=5),
            gpu=GpuConfig(gpu_settle_time=float(os.environ.get("GPU_TEST_SETTLE", "0.1")), gpu_release_timeout=5),
        )
    )
    made.set_custom_task_handler(handle)
    made.set_worker_lifespan(lifespan)
    return made
