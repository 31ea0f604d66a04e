"""The Lua files and their bindings say the same, and keep to the rules of the house, on each kind of server."""

import re
from pathlib import Path

import pytest
from store.straight import paths
from support import Server

from maas_backoff.store import scripts
from maas_backoff.store.preflight.trial import SCHEMA
from maas_backoff.store.scripts import Script

FOLDER = Path(scripts.__file__).parent / "lua"
FILES = sorted(path.stem for path in FOLDER.glob("*.lua") if not path.stem.startswith("_"))
PARTS = sorted(path.stem for path in FOLDER.glob("_*.lua"))
SCRIPTS = pytest.mark.parametrize("script", scripts.ALL, ids=lambda script: script.name)

HEADER = re.compile(
    r"--\[\[ (?P<purpose>\S[^\n]*\.)\n"
    r"KEYS: (?P<keys>[^\n]+)\n"
    r"ARGV: (?P<argv>[^\n]+)\n"
    r"Returns: (?P<returns>[^\n]+)\n"
    r"(?P<more>(?:[^\n]+\n)*?)\]\]\n"
)
COMMENT = re.compile(r"--\[\[.*?\]\]|--[^\n]*", re.DOTALL)
COMMAND = re.compile(r"redis\.p?call\('([A-Z]+)'")


def header_of(script: Script) -> re.Match[str]:
    header = HEADER.match((FOLDER / f"{script.name}.lua").read_text(encoding="utf-8"))
    assert header is not None, f"{script.name}.lua: purpose, KEYS, ARGV, Returns, in this order, one line each"
    return header


def fixed(names: str) -> tuple[str, ...]:
    """Return the names before those that come any number of times."""
    return tuple(names.partition("|")[0].split())


def code_of(script: Script) -> str:
    return COMMENT.sub("", script.text)


def test_each_file_has_a_binding_and_each_binding_a_file() -> None:
    assert sorted(script.name for script in scripts.ALL) == FILES
    bound = {name for name, value in vars(scripts).items() if isinstance(value, Script)}
    assert bound == {name.upper() for name in FILES}


@SCRIPTS
def test_the_header_names_what_the_binding_sends(script: Script) -> None:
    """Purpose, keys, arguments, reply; the names of keys and fixed arguments are those of scripts.py, in order."""
    header = header_of(script)
    assert fixed(header["keys"]) == script.keys
    assert fixed(header["argv"]) == script.args
    assert len(script.keys) >= 1, "a cluster finds the node of a script by its first key"
    assert len(set(script.keys)) == len(script.keys)
    assert len(set(script.args)) == len(script.args)


@SCRIPTS
def test_the_script_looks_at_every_key_and_fixed_argument(script: Script) -> None:
    """`KEYS[n]` and `ARGV[n]` up to the number the header has, unless it walks over all of them."""
    straight, general = (COMMENT.sub("", text) for text in paths(script))
    for table, names in (("KEYS", script.keys), ("ARGV", script.args)):
        used = {int(number) for number in re.findall(rf"{table}\[(\d+)\]", general)}
        assert used <= set(range(1, len(names) + 1)), f"{table} beyond the header"
        walked = re.search(rf"{table}\[[a-z]", general) is not None
        assert walked or used == set(range(1, len(names) + 1)), f"{table} that nothing reads"
    # The straight path reads the arguments of its one task, too.
    assert {int(number) for number in re.findall(r"KEYS\[(\d+)\]", straight)} <= set(range(1, len(script.keys) + 1))


@SCRIPTS
def test_no_script_uses_what_the_design_rules_out(script: Script) -> None:
    """Nothing random, nothing compiled at run time, no JSON of users, no walk over all keys, no shebang."""
    code = code_of(script)
    assert not script.text.startswith("#!")
    assert "--#include" not in script.text, "all parts are there"
    for word in ("cjson", "cmsgpack", "math.random", "loadstring", "load(", "dofile", "redis.log", "tostring"):
        assert word not in code, word
    commands = set(COMMAND.findall(code))
    assert not commands & {"KEYS", "SCAN", "FLUSHDB", "FLUSHALL", "RANDOMKEY", "SPOP", "SMEMBERS", "EVAL"}
    assert code.count("redis.call(") + code.count("redis.pcall(") == len(COMMAND.findall(code)), "commands by name"
    assert all(path.count("'TIME'") <= 1 for path in paths(script)), "the time is read once"


@SCRIPTS
def test_only_settle_and_enqueue_write_the_state_of_a_task(script: Script) -> None:
    """`s` is the field of the state: settle.lua alone sets it; a new task has none."""
    sets_it = re.search(r"set\('s'|'HSET'[^\n]*'s'", code_of(script)) is not None
    assert sets_it == (script.name == "settle")


@pytest.mark.parametrize("name", PARTS)
def test_each_part_says_what_it_is_for_and_is_included_somewhere(name: str) -> None:
    text = (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    assert re.match(r"-- \S[^\n]+\.", text)
    including = [file for file in FILES if f"--#include {name}\n" in (FOLDER / f"{file}.lua").read_text("utf-8")]
    assert including


def test_the_digest_is_the_servers_own(server: Server) -> None:
    """EVALSHA finds what was loaded: ours and the server's name for a text are the same."""
    for script in scripts.ALL:
        assert server.client.script_load(script.text) == script.digest


@SCRIPTS
def test_each_script_compiles_on_each_server(any_server: Server, script: Script) -> None:
    any_server.client.script_flush()
    assert server_knows(any_server, script) == [False]
    any_server.client.script_load(script.text)
    assert server_knows(any_server, script) == [True]


def server_knows(server: Server, script: Script) -> list[bool]:
    return [bool(known) for known in server.client.script_exists(script.digest)]


def test_the_number_of_the_datas_form_is_the_same_in_both_languages() -> None:
    (number,) = re.findall(r"local SCHEMA = '(\d+)'", (FOLDER / "_schema.lua").read_text(encoding="utf-8"))
    assert int(number) == SCHEMA
