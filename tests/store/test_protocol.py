"""The table of scripts in docs/protocol.md agrees with scripts.py and with the headers of the .lua files."""

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import table
from test_scripts import COMMAND, COMMENT, FOLDER, SCRIPTS, fixed, header_of

from maas_backoff.store import scripts
from maas_backoff.store.scripts import Script

PAGE = Path(__file__).parents[2] / "maas_backoff/docs/protocol.md"
COLUMNS = ["script", "keys", "fixed arguments", "reply", "called by", "writes", "may be repeated"]
SPAN = re.compile(r"`([^`]+)`")
WRITES = {
    *("EXPIRE", "HDEL", "HINCRBY", "HSET", "PERSIST", "SET", "UNLINK"),
    *("XADD", "ZADD", "ZREM", "ZREMRANGEBYSCORE"),
}
"""Commands that change data; PUBLISH changes none."""
READS = {
    *("EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HSCAN", "PUBLISH", "TIME"),
    *("XLEN", "XRANGE", "XREVRANGE"),
    *("ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZSCAN", "ZSCORE"),
}


@attrs.frozen
class Row:
    """One line of the table."""

    script: str
    keys: str
    args: str
    reply: str
    called_by: str
    writes: str
    repeated: str


def rows() -> list[Row]:
    head, *body = table(PAGE.read_text(encoding="utf-8").partition("\n## Scripts\n")[2].partition("\n## ")[0])
    assert head == COLUMNS
    return [Row(*cells) for cells in body]


def row_of(script: Script[Any]) -> Row:
    found = [row for row in rows() if row.script == f"`{script.name}`"]
    assert len(found) == 1, f"{script.name}: expected one row in {PAGE.name}, found {len(found)}"
    return found[0]


def names_in(cell: str) -> tuple[str, ...]:
    """Return the fixed names of a cell: those of its first code span."""
    span = SPAN.match(cell)
    assert span is not None, f"expected names in backticks first, got {cell!r}"
    return tuple(span[1].split())


def test_the_table_has_every_script_once_and_no_other() -> None:
    assert sorted(row.script for row in rows()) == sorted(f"`{script.name}`" for script in scripts.ALL)
    assert {row.script for row in rows()[-len(scripts.DEVICE) :]} == {f"`{script.name}`" for script in scripts.DEVICE}


@SCRIPTS
def test_a_row_names_the_keys_and_fixed_arguments_of_the_binding_and_of_the_header(script: Script[Any]) -> None:
    row, header = row_of(script), header_of(script)
    assert names_in(row.keys) == script.keys == fixed(header["keys"])
    assert names_in(row.args) == script.args == fixed(header["argv"])


@pytest.mark.parametrize(
    "script", [one for one in scripts.ALL if hasattr(one.reply, "__self__")], ids=lambda one: one.name
)
def test_a_row_names_the_parts_of_the_reply(script: Script[Any]) -> None:
    assert names_in(row_of(script).reply) == script.reply.__self__._fields


@SCRIPTS
def test_a_row_says_whether_further_keys_and_arguments_follow(script: Script[Any]) -> None:
    row, header = row_of(script), header_of(script)
    for cell, line in ((row.keys, header["keys"]), (row.args, header["argv"])):
        has_more = SPAN.sub("", cell, count=1).strip() != ""
        assert has_more == ("|" in line), f"{script.name}: {cell!r}, but the header says {line!r}"


def commands_of(script: Script[Any]) -> set[str]:
    """Return the commands that a script can call: its own, and those of the functions of its parts that it reaches."""
    source = (FOLDER / f"{script.name}.lua").read_text(encoding="utf-8")
    parts: dict[str, str] = {}
    for part in re.findall(r"^--#include (\w+)$", source, re.MULTILINE):
        text = COMMENT.sub("", (FOLDER / f"{part}.lua").read_text(encoding="utf-8"))
        for function in re.split(r"^local function ", text, flags=re.MULTILINE)[1:]:
            parts[function.partition("(")[0]] = function
    reached, code = set[str](), COMMENT.sub("", source)
    while new := {name for name in parts.keys() - reached if re.search(rf"\b{name}\(", code)}:
        reached |= new
        code += "".join(parts[name] for name in new)
    return set(COMMAND.findall(code))


@SCRIPTS
def test_a_row_says_whether_the_script_writes(script: Script[Any]) -> None:
    commands = commands_of(script)
    assert commands <= WRITES | READS, f"add to WRITES or READS: {commands - WRITES - READS}"
    assert (row_of(script).writes != "no") == bool(commands & WRITES)


@SCRIPTS
def test_a_row_is_complete_and_its_script_may_be_repeated(script: Script[Any]) -> None:
    """Every call is sent again when its reply was lost: a script that may not be repeated has no place here."""
    row = row_of(script)
    assert row.reply and row.called_by
    assert re.match(r"yes\b", row.repeated)


@pytest.mark.parametrize("heading", ["Encodings", "Rules of writing", "Add a script"])
def test_the_page_has_its_other_parts(heading: str) -> None:
    assert f"\n## {heading}\n" in PAGE.read_text(encoding="utf-8")


def test_links_within_the_page_lead_to_its_headings() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
