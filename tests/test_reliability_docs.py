"""docs/reliability.md names tests that exist, and numbers that the guides name, too."""

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "maas_backoff/docs"
PAGE = (DOCS / "reliability.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(tests/[^`\s]*::[^`\s]*)`", PAGE)))
ROWS = [line for line in PAGE.partition("\n## Not promised\n")[0].splitlines() if line.startswith("|")]


@cache
def names_in(file: Path) -> frozenset[str]:
    """Return the tests of a module by the names that pytest gives them: `test_a`, or `TestA::test_a`."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    found = set(_functions(body))
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {f"{node.name}::{name}" for name in _functions(node.body)}
    return frozenset(found)


def _functions(body: list[ast.stmt]) -> list[str]:
    functions = (node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert (ROOT / file).is_file(), f"{name}: there is no such file"
    assert test in names_in(ROOT / file), f"{name}: the file has no such test; was it renamed?"


def test_every_row_names_a_test() -> None:
    """But for the heads of the tables, and the lines below the heads."""
    assert len(NAMES) > 80
    heads = [row for row, below in itertools.pairwise(ROWS) if below.startswith("|---")]
    rows = [row for row in ROWS if row not in heads and not row.startswith("|---")]
    assert not [row for row in rows if not set(re.findall(r"`([^`]+)`", row)) & set(NAMES)]


def test_nothing_else_looks_like_the_name_of_a_test() -> None:
    """A name without its file, or with a space in it, would not be checked."""
    spans = re.findall(r"`([^`]+)`", PAGE)
    assert not [span for span in spans if ("::" in span or span.startswith("test_")) and span not in NAMES]


def test_the_numbers_of_failovers_are_those_of_the_guide() -> None:
    guide = (DOCS / "operations.md").read_text(encoding="utf-8").partition("### Failover\n")[2].partition("\n## ")[0]
    table = PAGE.partition("| event | acknowledged tasks lost |")[2].partition("\n\n")[0]
    number = r"(?<![\d.,\u2013]){}(?![\d\u2013])"
    told = re.findall(r"\d[\d.,\u2013]*", table)
    assert len(told) > 15
    assert not [one for one in told if not re.search(number.format(re.escape(one)), guide)]
