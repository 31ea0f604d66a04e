"""Metrics by the conventions; the server, the wait and the GPU on spans; an attempt in the caller's trace."""

import json
import logging
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import eventually

from maas_backoff import InvalidValueError, StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.config.peer import peer_of
from maas_backoff.domain.tracing import Peer
from maas_backoff.logs import JsonFormatter, TaskLogFilter
from maas_backoff.otel import OpenTelemetry
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("continues", [False, True])
async def test_spans_metrics_and_logs(
    config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture, continues: bool
) -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = OpenTelemetry(provider, MeterProvider([reader]), continue_trace=continues)
    worker = TaskBackoffScheduler(config, tracing=tracing, gpu_probe=FakeGpuProbe([FakeGpu("GPU-a", total_gb=8)]))
    own = logging.getLogger("my.service")
    caplog.handler.addFilter(TaskLogFilter())
    caplog.set_level(logging.INFO)

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        own.info("一只猫")
        if task.task_params["fails"]:
            raise ValueError("没有模型")

    async with worker:
        for fails in (False, True):
            made = await worker.create_task({"fails": fails}, max_retry_count=0, min_gpu_memory_gb=2)
            await worker.wait_task(made, 20)
        await eventually(lambda: len(spans.get_finished_spans()) == 6, "all spans have ended")

        def told() -> list[Any]:
            return [record for record in list(caplog.records) if getattr(record, "event", "") == "failed"]

        await eventually(told, "the failure is told")
        worker_name = (await worker.workers())[0].name
    where = {"server.address": "127.0.0.1", "server.port": config.storage.port}
    created = [span for span in spans.get_finished_spans() if span.name == "create test"]
    attempts = [span for span in spans.get_finished_spans() if span.name == "process test"]
    for one, attempt in zip(created, attempts, strict=True):
        assert where.items() <= one.attributes.items() and where.items() <= attempt.attributes.items()
        assert attempt.attributes["maas_backoff.gpu.uuid"] == "GPU-a"
        assert attempt.attributes["maas_backoff.gpu.memory_gb"] == 2
        assert attempt.attributes["maas_backoff.wait_seconds"] >= 0
        assert attempt.attributes["messaging.client.id"] == worker_name
        together = attempt.context.trace_id == one.context.trace_id
        parent = attempt.parent.span_id if attempt.parent else None
        assert (together, parent, len(attempt.links)) == (
            (True, one.context.span_id, 0) if continues else (False, None, 1)
        )

    common = {"messaging.system": "maas_backoff", "messaging.destination.name": "test", **where}
    create = {**common, "messaging.operation.name": "create", "messaging.operation.type": "send"}
    process = {**common, "messaging.operation.name": "process", "messaging.operation.type": "process"}
    failed = {**process, "error.type": "ValueError"}
    settle = {**common, "messaging.operation.name": "settle", "messaging.operation.type": "settle"}
    assert measured(reader) == {
        "messaging.client.sent.messages": [(create, 2)],
        "messaging.client.operation.duration": [(create, 2), (settle, 2)],
        "messaging.client.consumed.messages": [(process, 1), (failed, 1)],
        "messaging.process.duration": [(process, 1), (failed, 1)],
    }

    ids = [(f"{one.context.trace_id:032x}", f"{one.context.span_id:016x}") for one in attempts]
    lines = {
        name: [json.loads(JsonFormatter().format(one)) for one in caplog.records if one.name == name]
        for name in ("my.service", "maas_backoff.worker")
    }
    assert [(line["trace_id"], line["span_id"]) for line in lines["my.service"]] == ids
    (last,) = [line for line in lines["maas_backoff.worker"] if line.get("event") == "failed"]
    assert (last["trace_id"], last["span_id"]) == ids[1]
    assert (last["level"], last["queue"], last["worker"], last["error_type"]) == (
        "ERROR",
        "test",
        worker_name,
        "ValueError",
    )
    assert last["duration"] >= 0 and last["traceback"].endswith("ValueError: 没有模型")
    assert "一只猫" in JsonFormatter().format(next(one for one in caplog.records if one.name == "my.service"))


def measured(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, Any], float]]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: [
            (dict(point.attributes), getattr(point, "count", None) or point.value) for point in metric.data.data_points
        ]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }


async def test_durations_have_buckets_for_seconds_and_kinds(config: TaskBackoffConfig) -> None:
    """The default buckets of an SDK are for milliseconds."""
    reader = InMemoryMetricReader()
    worker = TaskBackoffScheduler(config, tracing=OpenTelemetry(meter_provider=MeterProvider([reader])))

    @worker.task()
    async def render(prompt: str) -> int:
        return 1

    async with worker:
        await (await render.create("a cat")).result(20)
    bounds = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        if metric.name.endswith("duration"):
            (*_, point) = metric.data.data_points
            bounds[metric.name] = point.explicit_bounds
            kind = point.attributes.get("maas_backoff.kind")
            assert kind == ("render" if metric.name == "messaging.process.duration" else None)
    short, long = bounds["messaging.client.operation.duration"], bounds["messaging.process.duration"]
    assert (short[0], short[-1], len(short)) == (0.005, 10, 14)
    assert long[:14] == short and long[-1] == 7200


@pytest.mark.parametrize(
    ("storage", "peer"),
    [
        (StorageConfig(host="redis.internal", port=1), Peer("redis.internal", 1)),
        (StorageConfig(url="rediss://u:secret@redis.internal:7/1"), Peer("redis.internal", 7)),
        (StorageConfig(url="unix:///run/redis.sock"), Peer("/run/redis.sock")),
        (StorageConfig(type="sentinel", nodes=("a:1", "b:2"), master="m"), Peer("a", 1)),
        (StorageConfig(type="embedded"), None),
    ],
)
def test_the_server_has_a_name(storage: StorageConfig, peer: Peer | None) -> None:
    assert peer_of(storage) == peer


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(InvalidValueError, match="continue_trace: expected True or False, got 'yes'"):
        OpenTelemetry(continue_trace="yes")  # type: ignore[arg-type] - what is tested
