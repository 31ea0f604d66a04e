"""The outcomes of the tasks of a batch, by what its handler returned."""

from typing import cast

from maas_backoff.domain.batching import WRONG_OUTCOMES
from maas_backoff.domain.handler_outcome import outcome_of_error, outcome_of_value
from maas_backoff.domain.outcome import Failed, HandlerOutcome


def outcomes_of_values(values: object, limit: int) -> list[HandlerOutcome]:
    """Return the outcome of each task of a batch. An exception among the values is that of its task.

    `values` are what the handler of a `Declaration` returns: a list, with one value for each task. A result may have
    `limit` bytes of JSON.
    """
    assert isinstance(values, list)
    each = cast("list[object]", values)
    return [
        outcome_of_error(one, limit) if isinstance(one, BaseException) else outcome_of_value(one, limit) for one in each
    ]


def names_no_task(outcome: HandlerOutcome) -> bool:
    """Return whether the outcome of a whole batch is a failure that one of its tasks may have caused alone.

    Retry, Discard and Snooze are meant for all tasks of the batch.
    """
    if not isinstance(outcome, Failed) or outcome.expired:
        return False
    return outcome.error.type == WRONG_OUTCOMES or not (outcome.permanent or outcome.requested)
