"""Tasks that have a text in them, found by looking at some thousand of them at a time."""

from collections.abc import Awaitable, Callable

from maas_backoff.domain.page import TaskPage
from maas_backoff.domain.task import TaskEntity

LOOKED_AT_ONCE = 100
"""Tasks per call: short enough to delay nobody else on the server."""

MOST_LOOKED_AT = 2000
"""Tasks per search; whoever wants to go on, asks again with the cursor."""

Page = Callable[[int, str | None], Awaitable[TaskPage]]
"""Reads a page of so many tasks from a cursor on."""


async def search(page: Page, text: str, limit: int, cursor: str | None) -> TaskPage:
    """Return tasks that have `text` in their id, error, progress message or reason to wait, until there are `limit`.

    Some more than that where they come in the same call; or fewer, even none, and still a cursor to go on with.
    """
    wanted, found = text.casefold(), list[TaskEntity]()
    for _ in range(MOST_LOOKED_AT // LOOKED_AT_ONCE):
        some = await page(LOOKED_AT_ONCE, cursor)
        found += [task for task in some.tasks if _has(task, wanted)]
        cursor = some.cursor
        if cursor is None or len(found) >= limit:
            break
    return TaskPage(found, cursor)


def _has(task: TaskEntity, wanted: str) -> bool:
    texts = (task.task_id, task.error, task.progress_message, task.waiting_for)
    return any(wanted in str(text).casefold() for text in texts if text is not None)
