"""Handlers in child processes, which can be killed."""

import sys
from contextlib import suppress
from functools import partial

import anyio
import attrs
from anyio import to_thread

from maas_backoff.domain.fault import fault_of
from maas_backoff.domain.outcome import Failed, HandlerOutcome, crashed, from_dict
from maas_backoff.errors import HandlerError
from maas_backoff.executors import frames
from maas_backoff.executors.base import Call, Handler
from maas_backoff.executors.frames import Record
from maas_backoff.executors.lifespan import Lifespan
from maas_backoff.executors.parent import Child, ChildError, SetupError, UnreadError
from maas_backoff.executors.reference import HandlerReference
from maas_backoff.gate.grant import Grant
from maas_backoff.guard import log_for

log = log_for("worker")


class ProcessExecutor:
    """Calls the handler in child processes, one call at a time in each; they are started when needed, and kept.

    One for a GPU sees no other device, and is used for that one only. A child that ends takes its own call with it and
    nothing else. A cancelled call's child is killed, with the processes it started; only a process that made a session
    of its own escapes.
    """

    stoppable = True

    def __init__(
        self,
        handler: Handler,
        *,
        max_tasks_per_process: int | None,
        max_payload_bytes: int,
        start_timeout: float = 300,
        lifespan: Lifespan | None = None,
        needs_gpu: bool = False,
    ) -> None:
        """`needs_gpu` says that tasks need one, as a rule: then a lifespan is entered only where one was granted."""
        self._handler = handler
        self._max_tasks = max_tasks_per_process
        self._max_payload = max_payload_bytes
        self._start_timeout = start_timeout
        self._lifespan = lifespan
        self._needs_gpu = needs_gpu
        self._setup: dict[str, object] = {}
        self._idle: list[Child] = []  # the last one used is the first one taken: its memory is warm
        self._children: set[Child] = set()

    @property
    def wants_gpu(self) -> bool:
        """Whether there is a lifespan to enter on one."""
        return self._lifespan is not None and self._needs_gpu

    async def start(self, grant: Grant | None = None, /) -> None:
        """Start the first child, warm if it can be: on the GPU that was granted, if tasks need one.

        Raises HandlerError when a child cannot find the handler, import its module, or enter the lifespan; unless that
        failed as on a GPU that is full or broken: the first task tries another.
        """
        handler = await to_thread.run_sync(HandlerReference.of, self._handler)  # reads the script's file
        lifespan = None
        if self._lifespan is not None:
            lifespan = attrs.asdict(await to_thread.run_sync(HandlerReference.of, self._lifespan))
        self._setup = {
            "handler": attrs.asdict(handler),
            "lifespan": lifespan,
            "path": [str(entry) for entry in sys.path],
            "argv": sys.argv,
            "max_payload_bytes": self._max_payload,
        }
        # A lifespan may want a GPU's memory: without a grant there is none for it.
        only_imports = self.wants_gpu and grant is None
        try:
            first = await self._spawn(grant, only_imports=only_imports)
        except ChildError as error:
            if grant is None or not fault_of("", str(error)):
                raise HandlerError(f"handler: cannot run in a child process: {error}") from None
            log.error("GPU %s: %s", grant.uuid, error)  # noqa: TRY400 - the traceback is the child's, in the message
        else:
            if only_imports:
                first.dismiss()
            else:
                self._idle.append(first)
        finally:
            if grant is not None:
                grant.attempt_ended()

    async def run(self, call: Call) -> HandlerOutcome:
        """Call the handler once in a child of its own."""
        span = {} if call.span is None else {"span": call.span.in_child}
        request = frames.encode({"task": call.task.to_dict(), **span})
        try:
            child, answer = await self._ask(request, call)
        except SetupError as error:
            # A model that did not fit, as a rule, where there is a lifespan.
            return attrs.evolve(crashed(str(error)), fault=fault_of("", str(error)))
        except ChildError as error:
            return crashed(str(error))
        outcome = from_dict(answer["outcome"])
        # After such a fault CUDA is of no use any more in that process.
        sound = not isinstance(outcome, Failed) or not outcome.fault
        self._give_back(child, reusable=answer["reusable"] and sound)
        return outcome

    async def _ask(self, request: bytes, call: Call) -> tuple[Child, Record]:
        """Have a child answer: a warm one that does, or a new one.

        A warm one may be dying already (a large one takes the kernel some 100 ms), and has not begun then.
        """
        while (child := self._take(call.grant)) is not None:
            try:
                return child, await child.ask(request, call)
            except UnreadError:
                log.info("child %d ended before it took a task; another takes it", child.pid)
        child = await self._spawn(call.grant)
        return child, await child.ask(request, call)

    async def aclose(self) -> None:
        """End all children: by themselves within a second, or killed."""
        self._idle.clear()
        for child in self._children:
            child.dismiss()
        for child in self._children:
            await child.ended()
        self._children.clear()

    def _take(self, grant: Grant | None) -> Child | None:
        """Return a warm child: any without a GPU, or the one that uses the memory that was granted."""
        for child in reversed(self._idle):
            if child.grant is grant:
                self._idle.remove(child)
                if child.usable:
                    return child
        return None

    def _evict(self, child: Child) -> None:
        with suppress(ValueError):
            self._idle.remove(child)
        child.dismiss()

    def _give_back(self, child: Child, *, reusable: bool) -> None:
        if reusable and not child.leaving and (self._max_tasks is None or child.calls < self._max_tasks):
            self._idle.append(child)
        else:
            child.dismiss()

    async def _spawn(self, grant: Grant | None, *, only_imports: bool = False) -> Child:
        try:
            child = Child.spawn(frames.largest(self._max_payload), grant)
        except OSError as error:
            raise ChildError(f"child process could not be started: {error}") from error
        self._children = {known for known in self._children if not known.gone} | {child}
        self._idle = [known for known in self._idle if not known.gone]
        if grant is not None:
            grant.used_by(child.pid, partial(self._evict, child))
        setup = frames.encode({**self._setup, "only_imports": only_imports})
        with anyio.move_on_after(self._start_timeout):
            answer = await child.ask(setup)
            if "error" in answer:
                child.dismiss()
                raise SetupError(answer["error"])
            return child
        raise ChildError(f"child process was not ready within {self._start_timeout:g} s")
