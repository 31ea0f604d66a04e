"""A small model server on loopback: slow, of limited capacity, and sometimes broken."""

import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Self, cast

import attrs

PATIENCE = 0.03
"""Seconds that a request waits for a free place before it is refused."""

Model = dict[str, int | str]


def generate(prompt: str) -> Model:
    """Return the output of the model for a prompt."""
    return {"characters": len(prompt), "words": len(prompt.split()), "reversed": prompt[::-1]}


@attrs.frozen
class Reply:
    """The server's answer to one request."""

    status: int
    body: object
    retry_after: float | None = None


class ModelServer(ThreadingTCPServer):  # not ThreadingHTTPServer, which asks the DNS for its own name
    """`POST /v1/generate {"id": ..., "prompt": ...}`, with at most `capacity` requests in work at a time.

    The failures and the duration of a request depend only on `seed` and the id of the request. Refusals depend on the
    number of requests.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *, capacity: int, seed: int) -> None:
        self._seed = seed
        self._places = threading.BoundedSemaphore(capacity)
        self._counting = threading.Lock()
        self.answered: Counter[str] = Counter[str]()
        self.broken: Counter[str] = Counter[str]()
        self.refused: Counter[str] = Counter[str]()
        super().__init__(("127.0.0.1", 0), _Request)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="model-server")

    @property
    def url(self) -> str:
        """The URL for prompts."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1/generate"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Do nothing: a client may hang up."""

    def reply(self, request_id: str, prompt: str) -> Reply:
        """Answer one request: 503 if no place is free."""
        if not self._places.acquire(timeout=PATIENCE):
            times = self._count(self.refused, request_id)
            return Reply(503, {"error": "no place"}, self._dice(request_id, "refused", times).choice((0.2, 0.5, 1.0)))
        try:
            return self._work(request_id, prompt)
        finally:
            self._places.release()

    def _work(self, request_id: str, prompt: str) -> Reply:
        failures = self._dice(request_id, "ill").choices((0, 1, 2), weights=(85, 10, 5))[0]
        so_far = self.broken[request_id]
        time.sleep(self._dice(request_id, "takes", so_far).uniform(0.03, 0.12))
        if so_far < failures:
            self._count(self.broken, request_id)
            return Reply(500, {"error": "the model fell over"})
        self._count(self.answered, request_id)
        return Reply(200, generate(prompt))

    def _dice(self, *about: object) -> random.Random:
        return random.Random(repr((self._seed, *about)))

    def _count(self, counter: Counter[str], request_id: str) -> int:
        with self._counting:
            counter[request_id] += 1
            return counter[request_id]


class _Request(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        if self.path != "/v1/generate":
            self._send(Reply(404, {"error": "POST /v1/generate is all there is"}))
            return
        try:
            asked: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request_id, prompt = str(asked["id"]), str(asked["prompt"])
        except (KeyError, TypeError, ValueError):
            self._send(Reply(400, {"error": 'expected {"id": ..., "prompt": ...}'}))
            return
        self._send(cast(ModelServer, self.server).reply(request_id, prompt))

    def _send(self, reply: Reply) -> None:
        body = json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if reply.retry_after is not None:
            self.send_header("Retry-After", f"{reply.retry_after:g}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by BaseHTTPRequestHandler
        """Do nothing: the demo shows the requests itself."""
