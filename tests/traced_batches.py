"""A batch that child processes import, whose handler makes a span. The scheduler's configuration is set by the test."""

from handlers_for_children import makes_a_span_for_a_batch

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_dict({"task": {"biz_prefix": "test"}}))


@scheduler.batch(max_size=3, max_wait=0.05)
def embed(paths: list[str]) -> list[int]:
    return makes_a_span_for_a_batch(paths)
