"""Print the lowest versions that pyproject.toml allows, as constraints for pip, which cannot choose them by itself."""

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
    if floor := re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement):
        print("==".join(floor.groups()))
