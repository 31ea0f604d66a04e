"""The command line in English and Chinese: each text has an entry, and JSON stays as it is."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from command_line import Run, commands_on
from support import Server

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec, TaskStatus, language
from maas_backoff import __main__ as program
from maas_backoff.commands import help as help_texts
from maas_backoff.commands.catalogue import CATALOGUE
from maas_backoff.commands.text import plain_table
from maas_backoff.language import chinese, language_of, own_texts, page_texts
from maas_backoff.language.width import columns, cut

PACKAGE = Path(language.__file__).parents[1]
OWN = {english: text for english, text in own_texts().items() if not english.startswith("~")}
PATTERNS = {english[1:]: text for english, text in own_texts().items() if english.startswith("~")}
"""Sentences of the library that only the command line shows."""

SPEAKING = [
    PACKAGE / "__main__.py",
    *(file for folder in ("commands", "demo") for file in sorted((PACKAGE / folder).rglob("*.py"))),
]
"""The files with texts for people."""


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    language.speak("en")


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return commands_on(server, monkeypatch, capsys)


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{\w+\}|%\(\w+\)", text))


def test_each_entry_is_chinese_with_the_same_placeholders() -> None:
    texts = {**chinese(), **PATTERNS}
    assert {english for english, text in texts.items() if placeholders(english) != placeholders(text)} == set()
    unchanged = {english for english, text in texts.items() if english == text}
    assert unchanged <= {"GiB", "worker"}, "these are the same words in Chinese"


def test_a_text_that_the_page_has_too_is_that_of_the_page() -> None:
    page = page_texts("en")
    assert {key for english, key in OWN.items() if key.startswith("@") and page[key[1:]] != english} == set()
    of_page = {text for key, text in page.items() if not key.startswith(("f.", "h."))}
    assert {english for english, text in OWN.items() if english in of_page and not text.startswith("@")} == set()


def texts_of_code() -> Iterator[str]:
    """Yield the texts that the code of the commands hands to `t`, and the heads of its tables."""
    for file in SPEAKING:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named: dict[str, list[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
                if isinstance(node.value, ast.Constant | ast.Tuple):
                    named.setdefault(node.targets[0].id, []).extend(one for one in found if isinstance(one, str))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "t" and isinstance(node.args[0], ast.Constant):
                    yield str(node.args[0].value)
                elif node.func.id == "t" and isinstance(node.args[0], ast.Name):
                    yield from named.get(node.args[0].id, ())
                elif node.func.id in {"table", "plain_table", "_table"} and isinstance(node.args[0], ast.Tuple):
                    yield from (one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant))
        yield from named.get("head", ())


def test_each_text_of_the_code_has_an_entry() -> None:
    found = set(texts_of_code())
    assert len(found) > 150
    assert found - OWN.keys() - {""} == set()


OF_VALUES = re.compile(r"MAAS_BACKOFF_.*|%\(default\)[sg]|\d+")
"""Defaults in the help of options."""


def test_the_help_of_each_command_has_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[str] = set()

    def note(text: str, **values: object) -> str:
        found.add(text)
        return text.format_map(values) if values else text

    monkeypatch.setattr(help_texts, "t", note)
    monkeypatch.setattr(program, "t", note)
    for names in ((), *((name,) for name in CATALOGUE)):
        program.parser(names).format_help()
    assert {text for text in found - OWN.keys() if not OF_VALUES.fullmatch(text)} == set()


def of_programs(node: ast.AST) -> Iterator[str]:
    """Yield the texts of a file that people do not read as texts of the program, and texts of the library's errors."""
    is_not_shown = {"log", "InvalidValueError", "MissingExtraError", "SystemExit"}
    for one in ast.walk(node):
        match one:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                for part in one.body:
                    if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):  # docstrings
                        yield str(part.value.value)
            case ast.Call(func=function):
                if re.split(r"[.(]", ast.unparse(function))[0] in is_not_shown:
                    yield from texts_in(one)
            case ast.AnnAssign(annotation=annotation):
                yield from texts_in(annotation)
            case _:
                pass


def texts_in(node: ast.AST) -> Iterator[str]:
    return (one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


WORDS = re.compile(r"[A-Za-z]{2,}[,:;]? [a-z]{2,}")
"""Two words in a row: a text for people."""
EXAMPLES = re.compile(r"maas-backoff [a-z]+( |$)|source <\(")
NOT_FOR_PEOPLE = {
    "commands/completion.py": "scripts of shells",
    "commands/mapping/tasks.py": "errors of lines: in the log and in the output",
    "commands/processes.py": "the log",
    "commands/left_behind.py": "the log",
    "commands/stderr.py": "the log",
    "demo/client.py": "the reason of a retry",
    "demo/server.py": "answers of a model server",
    "demo/tokens.py": "the answer of a model",
}
"""Files whose texts stay English, and what these are."""
OF_ERRORS_AND_PROTOCOLS = {
    *("one that is free on ", ", and allowed (", "a free port of this machine ("),
    *("\r\nConnection: close\r\n\r\n", "text/plain; charset=utf-8", "list --state processing --worker "),
    *("maas-backoff map: ", "waiting for a free ", "due at", "--concurrency, --rate and --tokens, or --remove alone"),
    "an ID, or options that select tasks, such as --state and --kind, or --all",
}
"""Parts of InvalidValueError, of commands, of HTTP, and of sentences that are then translated."""


@pytest.mark.parametrize("file", SPEAKING, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_each_text_for_people_is_in_the_catalogue(file: Path) -> None:
    if str(file.relative_to(PACKAGE)) in NOT_FOR_PEOPLE:
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {text for text in texts_in(tree) if WORDS.search(text) and not EXAMPLES.match(text)}
    known = OWN.keys() | OF_ERRORS_AND_PROTOCOLS | set(of_programs(tree))
    assert {text for text in found - known if not OWN.keys() & {*_parts_of_help(text)}} == set()


def _parts_of_help(text: str) -> Iterator[str]:
    """Yield the two parts of the help of an option: what it does, and its default."""
    about, _, default = text.partition("(default: ")
    yield from (about.rstrip(), default.removesuffix(")"))


def test_what_is_printed_is_in_the_catalogue() -> None:
    """Also single words."""
    for file in SPEAKING:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in {"print", "UsageError", "InputError", "failed"}:
                within = [one for one in ast.walk(call) if isinstance(one, ast.Call) and one is not call]
                own = {text for one in within for text in texts_in(one)}
                shown = {text for text in texts_in(call) if re.search(r"[A-Za-z]{2,}", text)} - own
                assert shown <= {"maas-backoff ", "http://", "maas-backoff map: "}, (file.name, call.lineno)


def test_each_entry_is_used() -> None:
    options = [*(PACKAGE / "config").glob("*.py"), PACKAGE / "domain" / "selection.py"]
    source = [file.read_text(encoding="utf-8") for file in (*SPEAKING, *options)]
    constants = {node.value for text in source for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    constants |= {text.partition(" (default: ")[0] for text in constants if isinstance(text, str)}
    constants |= {
        default.removesuffix(")")
        for text in constants
        if isinstance(text, str) and (default := text.partition("(default: ")[2])
    }
    now = datetime.now(UTC)
    task = TaskEntity(task_id="x", biz_prefix="q", task_params={}, status=TaskStatus.PENDING, created_at=now)
    of_argparse = {
        "usage: ",
        "positional arguments",
        "options",
        "show this help message and exit",
        "show program's version number and exit",
    }
    others = task.to_dict().keys() | {
        "pending",
        "processing",
        "completed",
        "failed",
        "cancelled",
        "requested",
        "expired",
    }
    assert OWN.keys() - constants - others - of_argparse == set()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ("stats", {}, "en"),
        ("stats", {"LANG": "zh_CN.UTF-8"}, "zh"),
        ("stats", {"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ("stats", {"LANG": "en_US.UTF-8", "LC_ALL": "zh_CN.UTF-8", "LC_MESSAGES": "C"}, "zh"),
        ("stats", {"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ("stats --lang en", {"LANG": "zh_CN.UTF-8"}, "en"),
        ("stats --lang=zh", {}, "zh"),
        ("--lang zh stats", {"LC_ALL": "C"}, "zh"),
        ("stats", {"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_language_is_chosen(arguments: str, environment: dict[str, str], expected: str) -> None:
    assert language_of(arguments.split(), environment) == expected


class Strict(dict[str, str]):
    """The texts of a language, which notes those that are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        if self and key not in self:
            self.missing.append(key)
        return super().get(key, default)


COMMANDS = [
    "stats",
    "history --minutes 5",
    "kinds",
    "tenants",
    "limits",
    "list --state all",
    "list --state failed",
    "count",
    "get failed",
    "get waits",
    "watch done",
    "check",
    "check --ready",
    "workers",
    "queues",
    "doctor",
    "top --once",
    "quiet nobody",
    "cancel done",
    "update done --priority 1",
    "retry waits",
    "delete none",
    "cancel --state pending --dry-run",
    "update --kind render --priority 3 --yes",
    "pause --tenant acme",
    "pause --tenant acme",
    "resume --tenant acme",
    "weight acme 2",
    "limit openai --concurrency 2",
    "limit openai --remove",
    "cancel waits",
    "retry waits",
    "retry --state failed --yes",
    "delete waits",
    "purge pending --yes",
    "preview",
]


WRONG = [
    "list --limit x",
    "get",
    "lst",
    "history --minutes 5 --hours 2",
    "top --once --interval 0",
    "tenants --limit 0",
    "metrics --port 0",
    "list --state nonsense",
    "list --created-from nonsense",
    "watch nobody",
    "worker tests",
    "worker no_module_here:scheduler",
    "worker json:nothing",
    "worker json:dumps",
    "worker json:JSONDecoder",
    "worker json:scheduler --burst-wait 2",
    "map json:nothing in out",
    "demo --input /nowhere",
    "stats --url redis://127.0.0.1:1",
]
"""Wrong usage, and a server that is away."""


def test_each_command_speaks_chinese(run: Run, config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text is missing."""
    anyio.run(_prepare, config)
    texts = Strict()
    monkeypatch.setattr(language, "_texts", texts)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    for words in [*COMMANDS, *WRONG]:
        _, out, error = run(*words.split())
        told = out + error.rpartition("maas-backoff")[2]
        assert re.search(r"[\u4e00-\u9fff]", told) or words == "count", words
    assert {text for text in texts.missing if text and not OF_VALUES.fullmatch(text)} == set()


def test_a_name_in_an_error_stays_as_it_is(run: Run) -> None:
    _, _, error = run("worker", "a; b", "--lang", "zh")
    assert "'a; b'" in error and re.search(r"[\u4e00-\u9fff]", error)


async def _prepare(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if task.task_id == "failed":
            raise ValueError("no prompt")

    async with scheduler:
        await scheduler.create_tasks([TaskSpec({}, "done"), TaskSpec({}, "failed", max_retry_count=0)])
        for name in ("done", "failed"):
            await scheduler.wait_task(name, 20)
    await scheduler.create_tasks([TaskSpec({}, "waits", tenant="acme"), TaskSpec({}, "later", delay=600)])
    await scheduler.shutdown()


def test_json_is_the_same_in_each_language(run: Run, config: TaskBackoffConfig) -> None:
    anyio.run(_prepare, config)
    for words in ("get waits", "list", "kinds", "cancel done", "count", "workers"):
        given = (*words.split(), "--json")
        assert run(*given, "--lang", "zh") == run(*given, "--lang", "en"), words
    reasons = [json.loads(run("stats", "--json", "--lang", name)[1])["reason"] for name in ("zh", "en")]
    assert reasons[0] == reasons[1] and reasons[0].startswith("No worker is running")


def test_the_language_may_be_given_before_the_command(run: Run) -> None:
    assert run("--lang", "zh", "queues") == run("queues", "--lang=zh")
    assert run("--lang", "zh", "queues")[1].startswith("队列")


def test_a_terminal_without_chinese_characters_is_spoken_to_in_english() -> None:
    env = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", "maas_backoff", "--lang", "zh", "get", "--help"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert "Show a task with its params" in done.stdout


def test_errors_of_the_library_are_english(run: Run) -> None:
    code, _, error = run("list", "--limit", "0", "--lang", "zh")
    assert code == 2 and "limit: expected" in error
    assert run("stats", "--lang", "de")[0] == 2


def test_columns_of_chinese_are_aligned() -> None:
    language.speak("zh")
    lines = plain_table(("state", "id"), [("processing", "a"), ("运行中", "b"), ("x", "c")]).splitlines()
    assert len({columns(line) for line in lines[1:]}) == 1
    assert columns("运行中 x") == 8 and cut("运行中 x", 8) == "运行中 x"
    assert cut("运行中 x", 7) == "运行中…" and cut("运行中 x", 6) == "运行…" and cut("abc", 2) == "a…"
