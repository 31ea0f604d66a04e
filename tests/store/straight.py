"""The two paths of a script: the straight one, for a task that comes alone, and the general one."""

import re
from pathlib import Path

from maas_backoff.store import scripts
from maas_backoff.store.scripts import Script

FOLDER = Path(scripts.__file__).parent / "lua"


def paths(script: Script[object]) -> tuple[str, str]:
    """Return the text of the straight path, which is empty for most scripts, and that of the general one."""
    text = (FOLDER / f"{script.name}.lua").read_text(encoding="utf-8")
    named = re.search(r"^--#include (_lone_\w+)\n", text, re.MULTILINE)
    straight = "" if named is None else scripts.without_comments(scripts._text(named[1]))
    assert script.text.count(straight) == 1 or not straight
    return straight, script.text.replace(straight, "", 1)
