"""The handler, the part that a user of the library writes: it sends the prompt of a task to the model server."""

import json
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

from maas_backoff.domain.signals import Retry
from maas_backoff.domain.task import TaskEntity

_SHED = 503


def handler_for(url: str) -> Callable[[TaskEntity], object]:
    """Return a handler that sends prompts to the model server at `url`."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback

    def ask_the_model(task: TaskEntity) -> object:
        asked = json.dumps({"id": task.task_id, "prompt": task.task_params["prompt"]}).encode()
        request = urllib.request.Request(url, asked, {"Content-Type": "application/json"})  # noqa: S310 - our own URL
        try:
            with direct.open(request, timeout=20) as answer:
                generated: Any = json.load(answer)
                return generated
        except HTTPError as error:
            with error:
                if error.code == _SHED:
                    raise Retry(after=float(error.headers["Retry-After"]), reason="the model server is full") from error
                raise  # a failed attempt: retried with backoff

    return ask_the_model
