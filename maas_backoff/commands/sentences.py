"""The sentences of the library in Chinese: why tasks wait, and why nothing runs.

The library returns English sentences. The page translates them in the same way, with the same texts
(`dashboard/static/reasons.js`).
"""

import re
from collections.abc import Mapping
from functools import cache

from maas_backoff.commands.language import page_texts

_NESTED = {"tasks", "running", "waits", "why", "others", "demand", "workers", "span"}
"""Values that are texts themselves."""


def in_chinese(text: str) -> str:
    """Return a sentence in Chinese. A part that has no translation stays as it is."""
    body = text.removesuffix(".")
    end, between = page_texts("zh-CN")["stop"], page_texts("zh-CN")["semicolon"]
    whole = _translated(body) or between.join(_translated(part) or part for part in body.split("; "))
    return whole + end if text != body else whole


def _translated(text: str) -> str | None:
    for pattern, translation in patterns().items():
        found = pattern.fullmatch(text)
        if found is not None:
            return translation.format_map({name: _value(name, value) for name, value in found.groupdict().items()})
    return None


def _value(name: str, text: str) -> str:
    return (_translated(text) or text) if name in _NESTED else text


@cache
def patterns() -> Mapping[re.Pattern[str], str]:
    """Return the English texts as patterns, the most specific first, with their translations.

    A value never has the "; " between two parts of a sentence.
    """
    english, chinese = page_texts("en"), page_texts("zh-CN")
    texts = [(text, chinese[key]) for key, text in english.items() if key.startswith("reason.")]
    texts.sort(key=lambda one: -len(re.sub(r"\{\w+\}", "", one[0])))
    return {re.compile(_PLACE.sub(r"(?P<\1>(?:(?!; ).)+?)", re.escape(text))): other for text, other in texts}


_PLACE = re.compile(r"\\\{(\w+)\\\}")
