"""The sentences of the library in Chinese: why tasks wait, what is wrong with a server, a worker or a GPU.

The library returns English sentences. The page translates those that it shows in the same way, with the same texts
(`dashboard/static/reasons.js`). Sentences that only the command line shows are in its own catalogue, behind a "~".
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import attrs

from maas_backoff.language import own_texts, page_texts

_NESTED = {
    *("demand", "error", "expected", "health", "loss", "others", "remedy", "running", "span", "tasks", "text"),
    *("trouble", "waits", "what", "why", "workers", "writer"),
}
"""Values that are texts themselves."""

_PLACE = re.compile(r"\{(\w+)\}")


@attrs.frozen
class Sentence:
    """An English text with `{name}` in place of values, and its translation."""

    english: str
    chinese: str
    parts: Sequence[str]
    """The texts between the values."""

    @classmethod
    def of(cls, english: str, chinese: str) -> "Sentence":
        """Return a sentence."""
        return cls(english, chinese, [part for part in _PLACE.split(english)[::2] if part])

    def values_in(self, text: str) -> Mapping[str, str] | None:
        """Return the values in an English text; None if it is another sentence."""
        if not all(part in text for part in self.parts):  # most are others: few patterns are compiled
            return None
        found = _compiled(self.english).fullmatch(text)
        return None if found is None else found.groupdict()


def in_chinese(text: str) -> str:
    """Return a sentence in Chinese. A part that has no translation stays as it is, and so does a foreign text."""
    body = text.removesuffix(".")
    end = "" if text == body else page_texts("zh-CN")["stop"]
    whole = _translated(body)
    if whole is not None:
        return whole + end
    parts = body.split("; ")
    told = [_translated(part) for part in parts]
    if not any(told):
        return text
    return page_texts("zh-CN")["semicolon"].join(new or part for new, part in zip(told, parts, strict=True)) + end


def _translated(text: str) -> str | None:
    for one in sentences():
        values = one.values_in(text)
        if values is not None:
            return one.chinese.format_map({name: _value(name, value) for name, value in values.items()})
    return None


def _value(name: str, text: str) -> str:
    return (_translated(text) or text) if name in _NESTED else text


@cache
def sentences() -> Sequence[Sentence]:
    """Return the sentences, the most specific first."""
    english, chinese = page_texts("en"), page_texts("zh-CN")
    found = [Sentence.of(text, chinese[key]) for key, text in english.items() if key.startswith("reason.")]
    found += [Sentence.of(text[1:], other) for text, other in own_texts().items() if text.startswith("~")]
    return sorted(found, key=lambda one: -sum(map(len, one.parts)))


@cache
def _compiled(english: str) -> re.Pattern[str]:
    """Return the pattern of a sentence. A value never has the "; " between two parts of a sentence."""
    places = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>(?:(?!; ).)+?)", re.escape(english))
    return re.compile(places)
