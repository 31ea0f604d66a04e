"""Handlers in child processes, which can be killed."""

import sys

import anyio
from anyio import to_thread

from maas_backoff.domain.outcome import HandlerOutcome, crashed, from_dict
from maas_backoff.errors import HandlerError
from maas_backoff.executors import frames
from maas_backoff.executors.base import Call, Handler
from maas_backoff.executors.parent import Child, ChildError
from maas_backoff.executors.reference import HandlerReference

READY_WITHIN = 60.0
"""Seconds a child has to import the handler's module; models are loaded there."""


class ProcessExecutor:
    """Calls the handler in child processes, one call at a time in each; they are started when needed, and kept.

    A child that ends takes its own call with it and nothing else. A cancelled call's child is killed, with the
    processes it started; only a process that made a session of its own escapes.
    """

    stoppable = True

    def __init__(self, handler: Handler, *, max_tasks_per_process: int | None, max_payload_bytes: int) -> None:
        self._handler = handler
        self._max_tasks = max_tasks_per_process
        self._max_payload = max_payload_bytes
        self._setup = b""
        self._idle: list[Child] = []  # the last one used is the first one taken: its memory is warm
        self._children: set[Child] = set()

    async def start(self) -> None:
        """Start the first child. Raises HandlerError when a child cannot find the handler or import its module."""
        reference = await to_thread.run_sync(HandlerReference.of, self._handler)  # reads the script's file
        self._setup = frames.encode(
            {
                "module": reference.module,
                "qualname": reference.qualname,
                "file": reference.file,
                "path": [str(entry) for entry in sys.path],
                "argv": sys.argv,
                "max_payload_bytes": self._max_payload,
            }
        )
        try:
            self._idle.append(await self._spawn())
        except ChildError as error:
            raise HandlerError(f"handler: cannot run in a child process: {error}") from None

    async def run(self, call: Call) -> HandlerOutcome:
        """Call the handler once in a child of its own."""
        request = frames.encode({"task": call.task.to_dict()})
        try:
            child = self._take() or await self._spawn()
            answer = await child.ask(request, call)
        except ChildError as error:
            return crashed(str(error))
        self._give_back(child, reusable=answer["reusable"])
        return from_dict(answer["outcome"])

    async def aclose(self) -> None:
        """End all children: by themselves within a second, or killed."""
        self._idle.clear()
        for child in self._children:
            child.dismiss()
        for child in self._children:
            await child.ended()
        self._children.clear()

    def _take(self) -> Child | None:
        while self._idle:
            child = self._idle.pop()
            if child.usable:
                return child
        return None

    def _give_back(self, child: Child, *, reusable: bool) -> None:
        if reusable and child.usable and (self._max_tasks is None or child.calls < self._max_tasks):
            self._idle.append(child)
        else:
            child.dismiss()

    async def _spawn(self) -> Child:
        try:
            child = Child.spawn(frames.largest(self._max_payload))
        except OSError as error:
            raise ChildError(f"child process could not be started: {error}") from error
        self._children = {known for known in self._children if not known.gone} | {child}
        with anyio.move_on_after(READY_WITHIN):
            answer = await child.ask(self._setup)
            if "error" in answer:
                child.dismiss()
                raise ChildError(answer["error"])
            return child
        raise ChildError(f"child process was not ready within {READY_WITHIN:g} s")
