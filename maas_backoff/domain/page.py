"""One page of a listing."""

import attrs

from maas_backoff.domain.task import TaskEntity


@attrs.frozen
class TaskPage:
    """Some tasks in one state, and the cursor to go on with; None at the end."""

    tasks: list[TaskEntity]
    cursor: str | None
