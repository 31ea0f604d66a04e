"""The parameters and the result of a kind's function, and their conversions."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, NoReturn, get_type_hints

import attrs

from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import HandlerError, InvalidValueError, PayloadError
from maas_backoff.kinds.annotations import Conversions
from maas_backoff.kinds.conversion import Conversion, UnsupportedTypeError, of_key
from maas_backoff.kinds.plain_types import AnyJson
from maas_backoff.kinds.records import MISSING

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@attrs.frozen
class Signature:
    """The parameters of a kind that tasks have, in the order of the function, and the conversion of its result."""

    kind: str
    shown: inspect.Signature
    """The signature of the calls that create tasks, for errors."""
    conversions: Mapping[str, Conversion]
    positional: tuple[str, ...]
    """The parameters that a caller may give by their position."""
    positional_only: tuple[str, ...]
    required: frozenset[str]
    takes_task: bool
    result: Conversion

    @classmethod
    def of(cls, kind: str, function: Callable[..., object], *, has_value: bool) -> "Signature":
        """Return the signature of a function. `has_value`: the value of its lifespan comes before its parameters.

        Raises NameError for an annotation whose name is not defined yet, and HandlerError with the remedy.
        """
        return cls.made_of(
            kind, list(inspect.signature(function).parameters.values()), hints_of(function), has_value=has_value
        )

    @classmethod
    def made_of(
        cls, kind: str, parameters: Sequence[Parameter], hints: Mapping[str, Any], *, has_value: bool
    ) -> "Signature":
        """Return the signature of a function with these parameters and annotations. Raises HandlerError."""
        takes_task = _takes_task(kind, parameters, hints)
        leading = takes_task + has_value
        if any(one.kind not in _POSITIONAL for one in parameters[:leading]) or len(parameters) < leading:
            what = "the task and what its lifespan yields" if takes_task else "what its lifespan yields"
            refuse(kind, f"its first parameters are not {what}; add them, without `*` before")
        own = parameters[leading:]
        conversions = Conversions()
        converted = {one.name: _conversion(kind, one, hints, conversions) for one in own}
        # The annotations of a module with `from __future__ import annotations` are texts.
        resolved = [one.replace(annotation=hints[one.name]) for one in own]
        return cls(
            kind=kind,
            shown=inspect.Signature(resolved),
            conversions=converted,
            positional=tuple(one.name for one in own if one.kind in _POSITIONAL),
            positional_only=tuple(one.name for one in own if one.kind is Parameter.POSITIONAL_ONLY),
            required=frozenset(one.name for one in own if one.default is Parameter.empty),
            takes_task=takes_task,
            result=_conversion_of_result(kind, hints, conversions),
        )

    # In the process that creates a task

    def params_of(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Return the params of a task that is created with these arguments. Defaults are not stored.

        Raises InvalidValueError for arguments that the function does not take, and PayloadError for wrong types.
        """
        given = {**dict(zip(self.positional, args, strict=False)), **kwargs}
        are_wrong = (
            len(given) != len(args) + len(kwargs) or not self.required <= given.keys() <= self.conversions.keys()
        )
        if are_wrong or (self.positional_only and not kwargs.keys().isdisjoint(self.positional_only)):
            self._refuse_call(args, kwargs)
        return {name: self.conversions[name].dump(value, f"{self.kind}.{name}") for name, value in given.items()}

    def check_names(self, params: Mapping[str, object]) -> None:
        """Raise InvalidValueError for params that are not the arguments of one call. Values are not checked."""
        if not self.required <= params.keys() <= self.conversions.keys():
            first = [params[name] for name in self.positional_only if name in params]
            self._refuse_call(first, {name: one for name, one in params.items() if name not in self.positional_only})

    def _refuse_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> NoReturn:
        why = "other arguments"
        try:
            self.shown.bind(*args, **kwargs)
        except TypeError as error:
            why = str(error)  # it has names, and no values
        raise InvalidValueError(self.kind, f"the arguments {self.shown}", why)

    # In the process that runs the task

    def arguments_of(self, params: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """Return the arguments for the function. Raises PayloadError for params that do not fit its parameters."""
        arguments: dict[str, object] = {}
        for name, value in params.items():
            path = of_key(self.kind, name)
            conversion = self.conversions.get(name)
            if conversion is None:
                raise PayloadError(path, "no argument: this worker's function has no such parameter", value)
            arguments[name] = conversion.load(value, path)
        if not self.required <= arguments.keys():
            name = min(self.required - arguments.keys())
            expected = f"{self.conversions[name].expected}, as the parameter has no default"
            raise PayloadError(of_key(self.kind, name), expected, MISSING)
        first = [arguments.pop(name, self.shown.parameters[name].default) for name in self.positional_only]
        return first, arguments


def hints_of(function: Callable[..., object]) -> Mapping[str, Any]:
    """Return the annotations of a function. Raises NameError for a name that is not defined yet."""
    return get_type_hints(inspect.unwrap(function), include_extras=True)


def _takes_task(kind: str, parameters: Sequence[Parameter], hints: Mapping[str, Any]) -> bool:
    if not parameters or parameters[0].kind not in _POSITIONAL:
        return False
    first = parameters[0].name
    hint = hints.get(first)
    if hint is TaskEntity:
        return True
    if hint is typing.Any or hint is object:
        refuse(
            kind,
            f"a type checker takes its first parameter `{first}` for the task; put `*` before `{first}`, "
            f"or give it another type than {getattr(hint, '__name__', hint)}",
        )
    return False


def _conversion(kind: str, parameter: Parameter, hints: Mapping[str, Any], conversions: Conversions) -> Conversion:
    name = parameter.name
    if parameter.kind in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        stars, other = ("*", "list") if parameter.kind is Parameter.VAR_POSITIONAL else ("**", "dict")
        refuse(kind, f"`{stars}{name}` has no name for each value; take a {other} instead")
    if name not in hints:
        refuse(kind, f"parameter `{name}` has no type; add one, such as `{name}: str` (`Any`: any JSON value)")
    try:
        return conversions.of(hints[name])
    except UnsupportedTypeError as error:
        refuse(kind, f"parameter `{name}`: {error}")


def _conversion_of_result(kind: str, hints: Mapping[str, Any], conversions: Conversions) -> Conversion:
    if "return" not in hints:
        return AnyJson()
    try:
        return conversions.of(hints["return"])
    except UnsupportedTypeError as error:
        refuse(kind, f"its result: {error}")


def refuse(kind: str, why: str) -> NoReturn:
    """Raise the HandlerError for the function of a kind."""
    raise HandlerError(f"kind {kind!r}: {why}")
