"""The metrics of creates, attempts and settles, by OpenTelemetry's conventions for messaging."""

from collections.abc import Mapping

from opentelemetry.metrics import MeterProvider, get_meter

from maas_backoff.common.version import __version__
from maas_backoff.otel.suppressed import SuppressedErrors

CONVENTIONS = "https://opentelemetry.io/schemas/1.44.0"

SHORT = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bounds of the buckets by the conventions, in seconds. The default ones of an SDK are for milliseconds."""

LONG = (*SHORT, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""The same for attempts: a task may run for hours."""

Attributes = Mapping[str, str | int]

_OF_METRICS = {
    *("messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name"),
    *("server.address", "server.port", "maas_backoff.kind"),
}


class Instruments:
    """Counts and measures. An error of the SDK is suppressed. Without an SDK, the calls do nothing."""

    def __init__(self, provider: MeterProvider | None, suppressed: SuppressedErrors) -> None:
        meter = get_meter("maas_backoff", __version__, provider, CONVENTIONS)
        self._suppressed = suppressed
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Tasks that were sent to the server."
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Tasks that were given to a handler."
        )
        self._operation = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of creates, settles and operations, with all tries.",
            explicit_bucket_boundaries_advisory=SHORT,
        )
        self._process = meter.create_histogram(
            "messaging.process.duration", "s", "Duration of attempts.", explicit_bucket_boundaries_advisory=LONG
        )

    def created(self, attributes: Attributes, number: int, seconds: float, error: str) -> None:
        """Note a create of so many tasks; `error` is its type, or empty."""
        with self._suppressed:
            kept = _kept(attributes, error)
            self._sent.add(number, kept)
            self._operation.record(seconds, kept)

    def settled(self, attributes: Attributes, seconds: float, error: str) -> None:
        """Note a request that has settled attempts; `error` is its type, or empty."""
        with self._suppressed:
            self._operation.record(seconds, _kept(attributes, error))

    def attempted(self, attributes: Attributes, seconds: float, error: str) -> None:
        """Note an attempt that has ended; `error` is the type of its error, or empty."""
        with self._suppressed:
            kept = _kept(attributes, error)
            self._consumed.add(1, kept)
            self._process.record(seconds, kept)


def _kept(attributes: Attributes, error: str) -> dict[str, str | int]:
    """Return the attributes that have few values: ids would make a series of each task."""
    kept = {name: value for name, value in attributes.items() if name in _OF_METRICS}
    return {**kept, "error.type": error} if error else kept
