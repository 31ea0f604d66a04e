"""The ASGI application that an autoscaler asks."""

import json
import math
from collections.abc import Mapping
from urllib.parse import parse_qsl

import anyio

from maas_backoff.domain.scale import Scale, scale_of
from maas_backoff.errors import InvalidValueError, StorageError
from maas_backoff.prometheus.asgi import Answer, OneAnswer
from maas_backoff.prometheus.exposition import PATIENCE
from maas_backoff.scheduler import TaskBackoffScheduler

WITHIN = 60.0
"""Seconds in which the waiting tasks should be finished, unless the query says another number."""

MEASURED_MINUTES = 10
"""Minutes whose calls of the handler count for the mean duration."""

_JSON = "application/json"


class ScaleApp(OneAnswer):
    """Answers GET with the number of workers that a queue needs, as JSON: `app.mount("/scale", ScaleApp(scheduler))`.

    The query may have `within`, the seconds in which the waiting tasks should be finished (default: 60), and `slots`,
    the slots of a worker, which count while no worker is alive (default: `concurrency` of the scheduler). A wrong query
    is answered with 400, and 503 says that the server does not answer: an autoscaler then keeps its number.
    """

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._scheduler = scheduler

    async def answer(self, query: str) -> Answer:
        """Return the `Scale` as JSON."""
        try:
            options = _checked(query, self._scheduler.config.threadpool.concurrency)
            with anyio.fail_after(PATIENCE):
                scale = await self._scale(**options)
        except InvalidValueError as error:
            return _json({"error": str(error)}, 400)
        except (StorageError, TimeoutError) as error:
            return _json({"error": str(error) or f"no answer within {PATIENCE:g} s"}, 503)
        return _json({"queue": self._scheduler.config.task.biz_prefix, **scale.to_dict()})

    async def _scale(self, within: float, slots: float) -> Scale:
        scheduler = self._scheduler
        stats = await scheduler.get_queue_stats()
        recent = (await scheduler.get_history(MEASURED_MINUTES)).recent
        limits = await scheduler.limits() if stats.limit_count else ()
        tenants = await scheduler.tenants() if stats.paused_tenants else ()
        fleet = await scheduler.workers()
        return scale_of(stats, recent, fleet, limits, tenants, within=within, slots_per_worker=slots)


def _checked(query: str, slots: int) -> dict[str, float]:
    options = {"within": WITHIN, "slots": float(slots)}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise InvalidValueError("query", "only within and slots", name)
        options[name] = _positive(name, text)
    return options


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.001 <= number <= 1_000_000:
        raise InvalidValueError(name, "a number from 0.001 to 1000000", text)
    return number


def _json(values: Mapping[str, object], status: int = 200) -> Answer:
    return Answer(json.dumps(values).encode() + b"\n", _JSON, status)
