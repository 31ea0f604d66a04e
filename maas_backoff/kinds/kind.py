"""A kind of tasks, as users have it: creates tasks with the arguments of a function."""

import functools
from collections.abc import Callable, Iterable
from typing import Generic, ParamSpec, TypeVar, Unpack

import attrs

from maas_backoff.client.creator import TaskCreator
from maas_backoff.domain.spec import CreateOptions, TaskOptions, TaskSpec
from maas_backoff.domain.validation import checked_task_id
from maas_backoff.errors import InvalidValueError, PayloadError
from maas_backoff.kinds.conversion import Conversion
from maas_backoff.kinds.declaration import Declaration
from maas_backoff.kinds.handle import TaskHandle
from maas_backoff.kinds.registry import KindRegistry
from maas_backoff.worker.executors.base import Handler

P = ParamSpec("P")
C = ParamSpec("C")
R = TypeVar("R")
V = TypeVar("V")


@attrs.frozen
class KindSpec(Generic[P, R]):
    """One task for `create_many`: `render.spec("a cat", steps=20)`."""

    kind: str
    task: TaskSpec


class KindWithOptions(Generic[P, R]):
    """Creates tasks of a kind, each with the same options."""

    def __init__(self, declaration: Declaration, registry: KindRegistry, options: CreateOptions) -> None:
        self.declaration: Declaration = declaration
        self._registry = registry
        self._options = options

    async def create(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Create a task with these arguments, and return its handle.

        The arguments are checked by the annotations of the function. Only arguments that are given are stored: a
        parameter that is left out has the default of the function that runs the task. Raises InvalidValueError for
        wrong arguments, PayloadError for values of other types, and the errors of `create_task`.
        """
        params = self.declaration.signature.params_of(args, kwargs)
        task_id, options = _divided(self._options, self.declaration.cost_of(args))
        created = await self._creator.create(params, task_id, options)
        return self._handle(created.task_id)

    def spec(self, *args: P.args, **kwargs: P.kwargs) -> KindSpec[P, R]:
        """Return one task for `create_many`. Raises InvalidValueError and PayloadError as `create` does."""
        params = self.declaration.signature.params_of(args, kwargs)
        task_id, options = _divided(self._options, self.declaration.cost_of(args))
        return KindSpec(self.declaration.name, TaskSpec(params, task_id, **options))

    @property
    def _creator(self) -> TaskCreator:
        kind = self.declaration
        has_cost = kind.batching is not None and kind.batching.max_cost is not None
        return self._registry.client().creator_of(kind.name, kind.options, has_cost=has_cost)

    def _handle(self, task_id: str) -> TaskHandle[R]:
        return TaskHandle(task_id, self._registry.client, self._result)

    def _result(self) -> Conversion:
        return self.declaration.signature.result


class TaskKind(KindWithOptions[P, R]):
    """A kind of tasks: `P` are the parameters of its tasks, `R` is the type of their result."""

    def __init__(self, declaration: Declaration, registry: KindRegistry) -> None:
        super().__init__(declaration, registry, {})

    def __repr__(self) -> str:
        return f"<kind {self.name!r}>"

    @property
    def name(self) -> str:
        """The name of the kind, which stands in each of its tasks."""
        return self.declaration.name

    def options(self, **options: Unpack[CreateOptions]) -> KindWithOptions[P, R]:
        """Return this kind with options: `await render.options(priority=-5, task_id="x").create("a cat")`.

        `task_id` is the idempotency key of `create_task`. The others are those of TaskOptions.
        """
        return KindWithOptions(self.declaration, self._registry, options)

    async def create_many(self, specs: Iterable[KindSpec[P, R]]) -> list[TaskHandle[R]]:
        """Create many tasks, as `create_tasks` does: `await render.create_many([render.spec("a cat"), …])`."""
        try:
            each = iter(specs)
        except TypeError:
            raise PayloadError("specs", f"a list of results of {self._specs}", specs) from None
        tasks = [self._own(spec, index) for index, spec in enumerate(each)]
        return [self._handle(task_id) for task_id in await self._creator.create_many(tasks)]

    def _own(self, spec: KindSpec[P, R], index: int) -> TaskSpec:
        if not isinstance(spec, KindSpec) or spec.kind != self.name:
            raise InvalidValueError(f"specs[{index}]", f"a result of {self._specs}", spec)
        return spec.task

    @property
    def _specs(self) -> str:
        return f"`spec` of the kind {self.name!r}"

    def handle(self, task_id: str) -> TaskHandle[R]:
        """Return the handle of a task of this kind that was created before, perhaps by another process."""
        return self._handle(checked_task_id(task_id))


class TaskFunction(TaskKind[P, R], Generic[C, V, P, R]):
    """The kind of a decorated function. A call of it calls the function: no task is created."""

    def __init__(self, declaration: Declaration, registry: KindRegistry) -> None:
        super().__init__(declaration, registry)
        functools.update_wrapper(self, declaration.function, updated=())

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> V:
        """Call the function, here and now, as tests do."""
        function: Callable[C, V] = self.declaration.function
        return function(*args, **kwargs)

    @property
    def __task_handler__(self) -> Handler:
        """The handler of the tasks, which a child process looks for."""
        return self.declaration.handler


def _divided(options: CreateOptions, cost: float | None) -> tuple[str | None, TaskOptions]:
    """Return the id, and the other options. `cost` counts if the options have none."""
    rest = options.copy()
    if cost is not None:
        rest.setdefault("cost", cost)
    task_id = rest.pop("task_id", None)
    return task_id, rest
