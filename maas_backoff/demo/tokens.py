"""One more task of the demo: its answer arrives word by word while its handler runs."""

import time

from maas_backoff.domain.task import TaskEntity
from maas_backoff.kinds.kind import TaskKind
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler

ANSWER = "Once upon a time there was a queue that lost no task, and all the workers who met it slept well at night"


def speaking(scheduler: TaskBackoffScheduler) -> TaskKind[[str], str]:
    """Return a kind of tasks that emit a text word by word, as a model does."""

    @scheduler.task
    def speak(task: TaskEntity, text: str) -> str:
        for word in text.split():
            time.sleep(0.05)
            task.emit(f"{word} ")
        return task.emitted_text()

    return speak


async def show(speak: TaskKind[[str], str]) -> bool:
    """Run a task, and print its parts as they arrive. Return whether they are its result."""
    handle = await speak.create(ANSWER)
    print(f"\n{t('A stream: ')}", end="", flush=True)
    text, parts = "", 0
    async for part in handle.stream():
        print(part.data, end="", flush=True)
        text, parts = text + part.data, parts + 1
    print(t("({n} parts)", n=parts))
    return text == await handle.result()
