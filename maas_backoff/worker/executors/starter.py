"""The start of child processes."""

import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

import anyio
import attrs
from anyio import to_thread

from maas_backoff.domain.kind import NAMELESS
from maas_backoff.worker.executors import frames
from maas_backoff.worker.executors.base import GpuGrant, Handler
from maas_backoff.worker.executors.handlers import HandlersByKind
from maas_backoff.worker.executors.hooks import AttemptHook
from maas_backoff.worker.executors.lifespan import Lifespan
from maas_backoff.worker.executors.parent import Child, ChildError, SetupError, StartError
from maas_backoff.worker.executors.pool import ChildPool
from maas_backoff.worker.executors.records import levels
from maas_backoff.worker.executors.reference import HandlerReference
from maas_backoff.worker.setback import Setback


class ChildStarter:
    """Starts children that are ready for calls of a handler, or of the handlers of several kinds."""

    def __init__(
        self,
        pool: ChildPool,
        setback: Setback,
        *,
        max_payload_bytes: int,
        max_stream_bytes: int,
        largest_batch: int,
        start_timeout: float,
    ) -> None:
        """Put children into `pool`, and report to `setback` each child that is ready.

        A child may return `largest_batch` results at once. `start_timeout` is in seconds.
        """
        self._pool = pool
        self._setback = setback
        self._max_payload = max_payload_bytes
        self._max_stream = max_stream_bytes
        self._largest_batch = largest_batch
        self._start_timeout = start_timeout
        self._setup: dict[str, object] = {}

    async def prepare(self, handler: Handler, lifespan: Lifespan | None, hooks: Sequence[AttemptHook] = ()) -> None:
        """Find out how a child imports handler, lifespan and hooks. Raises HandlerError if a child cannot."""
        handlers = handler.handlers if isinstance(handler, HandlersByKind) else {NAMELESS: handler}
        references: dict[str, object] = {}
        for kind, one in handlers.items():
            references[kind] = attrs.asdict(
                await to_thread.run_sync(HandlerReference.of, one)
            )  # reads the script's file
        lifespan_reference = None if lifespan is None else await to_thread.run_sync(HandlerReference.of, lifespan)
        around = [attrs.asdict(await to_thread.run_sync(HandlerReference.of, hook)) for hook in hooks]
        self._setup = {
            "handlers": references,
            **({"around": around} if around else {}),
            "lifespan": None if lifespan_reference is None else attrs.asdict(lifespan_reference),
            "path": [str(entry) for entry in sys.path],
            "argv": sys.argv,
            "max_payload_bytes": self._max_payload,
            "max_stream_bytes": self._max_stream,
        }

    async def start(self, grant: GpuGrant | None, *, only_imports: bool = False) -> Child:
        """Start a child, on the GPU that was granted. `only_imports`: it does not enter the lifespan.

        Raises StartError.
        """
        begun_at = time.monotonic()
        try:
            limit = frames.largest(self._max_payload, self._max_stream, self._largest_batch)
            child = Child.spawn(limit, grant, self._pool.ended)
        except (OSError, MemoryError, RuntimeError, subprocess.SubprocessError) as error:
            raise StartError(f"child process could not be started: {error or type(error).__name__}") from error
        self._pool.add(child)
        if grant is not None:
            grant.used_by(child.pid, partial(self._pool.evict, child))
        gpu = None if grant is None else attrs.asdict(grant.assignment)
        setup = frames.encode({**self._setup, "levels": levels(), "only_imports": only_imports, "gpu": gpu})
        with anyio.move_on_after(self._start_timeout):
            try:
                answer = await child.ask(setup)
            except (ChildError, OSError) as error:
                raise StartError(f"{error} before it was ready") from error
            if "error" in answer:
                child.dismiss()
                raise SetupError(answer["error"])
            if not only_imports:
                child.ready = True
                self._setback.worked(begun_at)
            return child
        raise StartError(f"child process was not ready within {self._start_timeout:g} s")
