"""The language of the command line and of the demo. The English texts in the code are the keys of the Chinese ones."""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

LANGUAGES = ("en", "zh")
"""The values of --lang."""

_texts: dict[str, str] = {}
"""The Chinese texts by the English ones, while Chinese is spoken; else empty: English needs no file."""


def language_of(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the language of a command: by --lang, else by LC_ALL, LC_MESSAGES or LANG, else English."""
    given = [word.partition("=")[2] for word in arguments if word.startswith("--lang=")]
    given += [value for word, value in pairwise(arguments) if word == "--lang"]
    given += [environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)]
    return "zh" if given and given[0].lower().startswith("zh") else "en"


def speak(language: str) -> None:
    """Use a language from now on, or English where stdout has no Chinese characters.

    The texts are read at once: no event loop waits for a file.
    """
    _texts.clear()
    if language == "zh" and _has_chinese(sys.stdout.encoding):
        page_texts("en")
        _texts.update(chinese())


def _has_chinese(encoding: str | None) -> bool:
    try:
        return bool("中".encode(encoding or "utf-8"))
    except UnicodeEncodeError:
        return False


def t(text: str, /, **values: object) -> str:
    """Return an English text in the language of the command, with `{name}` replaced by the value of that name."""
    told = _texts.get(text, text)
    return told.format_map(values) if values else told


def sentence(text: str) -> str:
    """Return a sentence of the library, such as the reason why a task waits, in the language of the command."""
    if not text or not _texts:
        return text
    from maas_backoff.language.sentences import in_chinese

    return in_chinese(text)


def is_translated() -> bool:
    """Return whether the language is another one than English."""
    return bool(_texts)


def chinese() -> Mapping[str, str]:
    """Return the Chinese texts by the English ones."""
    page = page_texts("zh-CN")
    # "@" and a key: the page has this text under that key.
    return {english: page[text[1:]] if text.startswith("@") else text for english, text in own_texts().items()}


@cache
def own_texts() -> Mapping[str, str]:
    """Return the catalogue of the command line.

    A key that begins with "~" is the pattern of a text of the library, for `sentence`.
    """
    texts: Mapping[str, str] = json.loads((Path(__file__).parent / "zh-CN.json").read_text(encoding="utf-8"))
    return texts


@cache
def page_texts(language: str) -> Mapping[str, str]:
    """Return the texts of the page in a language by their keys."""
    file = Path(__file__).parent.parent / "dashboard" / "static" / f"{language}.json"
    texts: Mapping[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return texts
