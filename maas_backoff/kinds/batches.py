"""A kind whose tasks run in batches: its function takes a list of items, and returns a list of outcomes."""

import collections.abc
import inspect
import types
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from inspect import Parameter
from typing import Any, Union, cast, get_args, get_origin

import attrs

from maas_backoff.common.shown import type_name
from maas_backoff.domain.batching import WRONG_OUTCOMES
from maas_backoff.domain.lane import checked_cost
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.signals import Misfit
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import InvalidValueError, PayloadError
from maas_backoff.kinds.declaration import Declaration, named_as
from maas_backoff.kinds.signature import Signature, hints_of, refuse
from maas_backoff.worker.executors.base import Handler
from maas_backoff.worker.executors.call import is_coroutine_handler

_LISTS: tuple[object, ...] = (list, collections.abc.Sequence)


@attrs.frozen(slots=False)
class BatchDeclaration(Declaration):
    """A kind whose tasks run in batches, as a program declares it. `batching` is given."""

    cost: Callable[[Any], float] | None = None
    """Returns what a task costs, by its item."""

    def _signature(self) -> Signature:
        hints = dict(hints_of(self.function))
        parameters = list(inspect.signature(self.function).parameters.values())
        takes_tasks = bool(parameters) and _item_of(hints.get(parameters[0].name)) is TaskEntity
        if takes_tasks:
            hints[parameters[0].name] = TaskEntity
        leading = takes_tasks + (self.lifespan is not None)
        own = parameters[leading:]
        if len(own) != 1 or own[0].kind not in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
            refuse(
                self.name,
                "a batch has one parameter for the items of its tasks, such as `texts: list[str]`, after "
                "`tasks: list[TaskEntity]` and what its lifespan yields; put more values of a task into a dataclass",
            )
        (items,) = own
        hints[items.name] = self._item(hints.get(items.name), f"parameter `{items.name}`", "list[str]")
        if "return" in hints:
            hints["return"] = _result_of(self._item(hints["return"], "its result", "list[str]"))
        # The item is given by its place: the name is that of a list.
        parameters[leading] = items.replace(kind=Parameter.POSITIONAL_ONLY, default=Parameter.empty)
        before = [one.replace(kind=Parameter.POSITIONAL_ONLY) for one in parameters[:leading]]
        return Signature.made_of(self.name, [*before, parameters[leading]], hints, has_value=self.lifespan is not None)

    def _item(self, hint: object, what: str, example: str) -> object:
        item = _item_of(hint)
        if item is None:
            refuse(
                self.name, f"{what} is not a list with a type for its items; annotate it as `{example}`, for example"
            )
        return item

    def cost_of(self, args: Sequence[object], /) -> float | None:
        """Return what a new task with this item costs. Raises InvalidValueError if `cost` returns no cost."""
        if self.cost is None:
            return None
        try:
            return checked_cost(self.cost(*args), f"{self.name}.cost_of")
        except InvalidValueError as error:
            error.http_status = 500  # an error of the service: the caller gave no cost
            raise

    @cached_property
    def handler(self) -> Handler:
        """The handler that executors call with the tasks of a batch, and the value of the lifespan if there is one.

        It returns a list with a value, or an exception, for each task.
        """
        return _handler_of(self)

    def item_of(self, task: TaskEntity) -> object:
        """Return the item of a task; or the Misfit for params that do not fit."""
        try:
            args, _ = self.signature.arguments_of(task.task_params)
        except PayloadError as error:
            return Misfit("bad_arguments", str(error))
        return args[0]

    def each(self, returned: object, number: int) -> list[object]:
        """Return the JSON value, or the exception, of each of `number` tasks. Raises Misfit for the wrong number."""
        if not isinstance(returned, list | tuple):
            raise Misfit(
                WRONG_OUTCOMES,
                f"{self.name} returned {type_name(returned)}; return a list with one outcome for each task",
            )
        outcomes = cast("Sequence[object]", returned)
        if len(outcomes) != number:
            raise Misfit(
                WRONG_OUTCOMES, f"{self.name} returned {len(outcomes)} outcomes for {number} tasks, in one list"
            )
        return [self._stored(one) for one in outcomes]

    def _stored(self, outcome: object) -> object:
        if isinstance(outcome, BaseException | ResultEntity):
            return outcome
        try:
            return self.stored(outcome)
        except Misfit as error:
            return error


def _item_of(hint: object) -> object:
    """Return the type of the items of a list or a sequence; None for any other annotation."""
    args = get_args(hint)
    return args[0] if (get_origin(hint) in _LISTS and args) else None


def _result_of(hint: Any) -> Any:
    """Return the type of the results in `Vector | Exception`: an exception is not stored."""
    if get_origin(hint) not in {Union, types.UnionType}:
        return hint
    kept = [one for one in get_args(hint) if not _is_signal(one)]
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - made of a list


def _is_signal(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseException | ResultEntity)


def _handler_of(kind: BatchDeclaration) -> Handler:
    function = kind.function

    def prepared(tasks: Sequence[TaskEntity], values: Sequence[object]) -> tuple[list[object], list[int], list[Any]]:
        """Return the outcomes so far, the places of the tasks whose params fit, and the arguments for them."""
        items = [kind.item_of(task) for task in tasks]
        places = [place for place, item in enumerate(items) if not isinstance(item, Misfit)]
        fitting = [items[place] for place in places]
        first = ([tasks[place] for place in places],) if kind.signature.takes_task else ()
        return items, places, [*first, *values, fitting]

    def merged(outcomes: list[object], places: Sequence[int], returned: object) -> list[object]:
        for place, outcome in zip(places, kind.each(returned, len(places)), strict=True):
            outcomes[place] = outcome
        return outcomes

    async def call(tasks: Sequence[TaskEntity], *values: object) -> object:
        outcomes, places, args = prepared(tasks, values)
        return merged(outcomes, places, await function(*args)) if places else outcomes

    def call_plain(tasks: Sequence[TaskEntity], *values: object) -> object:
        outcomes, places, args = prepared(tasks, values)
        if not places:
            return outcomes
        returned = function(*args)
        return (
            awaited(outcomes, places, returned) if inspect.isawaitable(returned) else merged(outcomes, places, returned)
        )

    async def awaited(outcomes: list[object], places: Sequence[int], returned: Awaitable[object]) -> object:
        return merged(outcomes, places, await returned)

    return named_as(call if is_coroutine_handler(function) else call_plain, function)
