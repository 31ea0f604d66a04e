"""The search for tasks that contain a text, among two thousand tasks at a time."""

from collections.abc import Awaitable, Callable

from maas_backoff.domain.page import TaskPage
from maas_backoff.domain.task import TaskEntity

SEARCHED_AT_ONCE = 100
"""Tasks per call of the server: few, so that other clients are not delayed."""

MOST_SEARCHED = 2000
"""Tasks per search; the next search goes on from the cursor."""

Page = Callable[[int, str | None], Awaitable[TaskPage]]
"""Returns a page of at most so many tasks, from a cursor on."""


async def search(page: Page, text: str, limit: int, cursor: str | None) -> TaskPage:
    """Return about `limit` tasks with `text` in their id, error, progress message or reason to wait.

    There may be some more, from the same call of the server. There may be fewer, even none, together with a cursor.
    """
    wanted, found = text.casefold(), list[TaskEntity]()
    for _ in range(MOST_SEARCHED // SEARCHED_AT_ONCE):
        some = await page(SEARCHED_AT_ONCE, cursor)
        found += [task for task in some.tasks if _has(task, wanted)]
        cursor = some.cursor
        if cursor is None or len(found) >= limit:
            break
    return TaskPage(found, cursor)


def _has(task: TaskEntity, wanted: str) -> bool:
    texts = (task.task_id, task.error, task.progress_message, task.waiting_for)
    return any(wanted in str(text).casefold() for text in texts if text is not None)
