"""Handlers that tests of the whole way run in child processes: they must live in a module that can be imported."""

import os
import time
from pathlib import Path

from maas_backoff import TaskEntity


def sleeps(task: TaskEntity) -> str:
    """Note the own pid in a file, then sleep."""
    Path(task.task_params["file"]).write_text(str(os.getpid()), encoding="ascii")
    time.sleep(60)
    return "woke up"


def reports(task: TaskEntity) -> int:
    """Note progress, then go on until a file is there."""
    task.update_progress(40, "in a child")
    while not Path(task.task_params["file"]).exists():
        time.sleep(0.01)
    return os.getpid()
