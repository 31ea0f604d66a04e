"""The history of a chaos run, by its processes: lines of JSON, a file per process, not on the server under test."""

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class History:
    """Appends events to the file of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def note(self, event: str, **fields: Any) -> None:
        """Append an event. One write, straight to the kernel: a SIGKILL right after it loses nothing."""
        pid = os.getpid()
        if self._file is None:
            path = self._folder / f"{pid}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        line = json.dumps({"event": event, "time": time.time(), "pid": pid, **fields})
        os.write(self._file, line.encode() + b"\n")

    def read(self) -> list[Event]:
        """Return the events of all processes, in the order of their times."""
        events: list[Event] = []
        for path in self._folder.glob("*.jsonl"):
            # A line that was cut off by the death of its process has no end.
            events += [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        return sorted(events, key=lambda event: float(event["time"]))
