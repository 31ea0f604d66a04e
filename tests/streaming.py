"""The handler of test_streams_survive.py, which child processes import, too."""

import asyncio
import random
from typing import Any

from support import quick_config

from maas_backoff import TaskBackoffConfig, TaskEntity

WORDS = 150
TASKS = 8


def words_of(task_id: str) -> list[str]:
    """Return the words that a task emits, each of several bytes, and with line ends."""
    dice = random.Random(task_id)
    return [f"{n}:{dice.getrandbits(40):x}🐈\r\n " for n in range(WORDS)]


def config_of(storage: Any, mode: str) -> TaskBackoffConfig:
    config = quick_config(storage)
    config.threadpool.proc_mode = "process" if mode == "process" else "thread"
    config.threadpool.concurrency = TASKS
    config.task.max_lost, config.task.max_retry_count = 1000, 1000
    config.task.backoff_interval = 0.01
    return config


async def emit(task: TaskEntity) -> str:
    """Emit the words of the task; with `keeps`, go on after those of earlier attempts. It fails now and then."""
    words = words_of(task.task_id)
    done = 0
    if task.task_params["keeps"]:
        task.keep_emitted()
        said = task.emitted_text()
        while done < len(words) and len("".join(words[:done])) < len(said):
            done += 1
        assert "".join(words[:done]) == said, "no part ends within a word"
    else:
        task.emit(f"attempt {task.attempt} ")
    for word in words[done:]:
        task.emit(word)
        task.log(word)
        await asyncio.sleep(random.uniform(0, 0.04))
    if random.random() < 0.1:
        raise ValueError("once more")
    return task.emitted_text()
