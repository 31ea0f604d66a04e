"""A result that becomes JSON only when a test says so."""

import os
import time
from collections.abc import ItemsView
from pathlib import Path


class SlowToEncode(dict[str, object]):
    """A result with the process's id. It makes the file `began`, and becomes JSON when the file `go` exists.

    If `go` has the text "exit", the process ends instead.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(pid=os.getpid())
        self._folder = Path(folder)

    def items(self) -> ItemsView[str, object]:
        (self._folder / "began").touch()
        while not (self._folder / "go").exists():
            time.sleep(0.002)
        if (self._folder / "go").read_text() == "exit":
            os._exit(5)
        return super().items()


def let_go(folder: Path, text: str = "") -> None:
    """Let the results of this folder become JSON."""
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / "go")
