"""The selection of tasks in the query of a request. Pure functions."""

from datetime import timedelta
from typing import Self

import attrs
from starlette.datastructures import QueryParams

from maas_backoff.domain.selection import FIELDS, Selection
from maas_backoff.errors import InvalidValueError


@attrs.frozen
class Shown:
    """The texts of tasks that a page shows: `payloads` are params and results, `errors` messages and tracebacks."""

    payloads: bool = False
    errors: bool = False

    @classmethod
    def of(cls, *, payloads: bool, errors: bool | None) -> Self:
        """Return what the options of a page say: without `errors`, they are shown if payloads are."""
        return cls(payloads, payloads if errors is None else errors)


def selection_of(query: QueryParams, shown: Shown) -> Selection:
    """Return the selection in a query: the names of FIELDS, `waiting_for`, and `due_in` in seconds.

    Without `state`, tasks must be pending. `params` and `error` need texts that are shown: the results would tell what
    is hidden. If errors are hidden, `text` is the beginning of the id.
    """
    texts = {name: [text for text in query.getlist(name) if text] for name in FIELDS}
    if texts["error"] and not shown.errors:
        raise InvalidValueError("error", "nothing, as errors are not shown here", "a text")
    if texts["text"] and not shown.errors:
        texts["id_prefix"], texts["text"] = texts["id_prefix"] or texts["text"], []
    if texts["params"] and not shown.payloads:
        raise InvalidValueError("params", "nothing, as params are not shown here", "a text")
    selection = Selection.of_texts({**texts, "state": texts["state"] or ["pending"]})
    if "waiting_for" in query:
        selection = attrs.evolve(selection, waiting_for=query["waiting_for"])
    if "due_in" in query:
        ahead = number("due_in", query["due_in"])
        if selection.status != ("pending",):
            raise InvalidValueError("due_from", "None but for pending tasks", ", ".join(selection.status))
        selection = attrs.evolve(selection, due_from=timedelta(seconds=ahead))
    return selection


def number(option: str, text: str) -> int:
    """Return the whole number in a text. Raises InvalidValueError."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise InvalidValueError(option, "a whole number", text)
    return int(text)
