"""The architecture and the decisions in the docs are true: their layers, files and functions are those of the code."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "maas_backoff"
ARCHITECTURE = PACKAGE / "docs/architecture.md"
DECISIONS = sorted((PACKAGE / "docs/decisions").glob("[0-9]*.md"))
PAGES = [ARCHITECTURE, PACKAGE / "docs/decisions/README.md", *DECISIONS]
TEXT = ARCHITECTURE.read_text(encoding="utf-8")

FILE = re.compile(r"(?<![\w/.-])[\w/.-]*\w\.(?:py|lua)\b")
FUNCTION = re.compile(r"`([\w/]+\.(?:py|lua)): ([\w.]+)`")
"""A file and a name in it, as `worker/work.py: Work.begin`."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _path(name: str) -> Path:
    """Return the file of a name: below the package, but for tests and benchmarks, which lie beside the package."""
    return (ROOT if name.startswith(("tests/", "benchmarks/")) else PACKAGE) / name


def _steps() -> list[str]:
    return re.findall(r"^\d+\. (.*(?:\n {3,}.*)*)", TEXT, re.MULTILINE)


@cache
def _names(path: Path) -> frozenset[str]:
    """Return what a file defines: functions, classes and values, and "Class.name" for the parts of a class."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".lua":
        return frozenset(re.findall(r"\bfunction (?:\w+\.)?(\w+)\(", text))
    return frozenset(_defined(ast.parse(text).body))


def _defined(body: list[ast.stmt], owner: str = "") -> set[str]:
    found: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(owner + node.name)
            case ast.ClassDef():
                found |= {owner + node.name, *_defined(node.body, f"{owner}{node.name}.")}
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {owner + target.id for target in targets if isinstance(target, ast.Name)}
            case _:
                pass
    return found


def _pictures() -> dict[str, list[str]]:
    """Return the layers in each picture, by the package that the picture names first."""
    found: dict[str, list[str]] = {}
    for block in re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        container, *rows = block.splitlines()
        found[container] = [row.split("│")[1].strip() for row in rows if "│" in row]
    return found


@each_page
def test_each_file_exists(page: Path) -> None:
    missing = [name for name in FILE.findall(page.read_text(encoding="utf-8")) if not _path(name).is_file()]
    assert missing == []


@each_page
def test_each_function_exists(page: Path) -> None:
    named = FUNCTION.findall(page.read_text(encoding="utf-8"))
    missing = [f"{file}: {name}" for file, name in named if name not in _names(_path(file))]
    assert missing == []


def test_each_step_begins_with_a_function_or_a_script() -> None:
    steps = _steps()
    assert len(steps) > 60
    assert [step for step in steps if not (FUNCTION.match(step) or re.match(r"`store/lua/\w+\.lua`", step))] == []


def test_a_name_that_is_not_there_is_found() -> None:
    """The checks above look at what they should."""
    assert FUNCTION.findall("`worker/work.py: Work.begin`") == [("worker/work.py", "Work.begin")]
    assert FILE.findall("(`worker/work.py`), `worker/gone.py: Work.begin` and gone.lua.") == [
        "worker/work.py",
        "worker/gone.py",
        "gone.lua",
    ]
    names = _names(PACKAGE / "worker/work.py")
    assert {"Work", "Work.begin", "Work._attempt", "log"} <= names
    assert not {"begin", "Work.gone"} & names
    assert "judge_all" in _names(PACKAGE / "store/lua/_settle.lua")


def test_the_layers_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = {one["containers"][0]: one["layers"] for one in contracts if one["type"] == "layers"}
    assert all(len(one["containers"]) == 1 for one in contracts if one["type"] == "layers")
    assert _pictures() == layers


def test_each_loop_is_in_the_table() -> None:
    """By its file, and by the name that `Parts.loops` gives it."""
    table = TEXT.partition("## The loops of a worker")[2].partition("\n## ")[0]
    files = {path.name for path in (PACKAGE / "worker/loops").glob("*.py")} - {"__init__.py"}
    assert {name for name in files if f"`worker/loops/{name}`" not in table} == set()
    parts = (PACKAGE / "worker/parts.py").read_text(encoding="utf-8")
    names = re.findall(r"\(f?\"([\w -]+?)(?: \{[\w.]+\})?\", [\w.]", parts)
    assert {"exchange", "poll", "wake-up", "children"} <= set(names)
    assert [name for name in names if not re.search(rf"^\| {name}\b", table, re.MULTILINE)] == []


def test_each_decision_has_its_parts() -> None:
    for page in DECISIONS:
        text = page.read_text(encoding="utf-8")
        number = int(page.name.partition("-")[0])
        assert text.startswith(f"# {number}. "), page.name
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], page.name
        assert 15 <= len(text.splitlines()) <= 40, page.name


def test_each_decision_is_listed_in_one_line() -> None:
    listed = re.findall(r"^- \[(\d+)\]\(([\w-]+\.md)\): ", PAGES[1].read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [(f"{number}", page.name) for number, page in enumerate(DECISIONS, 1)]
