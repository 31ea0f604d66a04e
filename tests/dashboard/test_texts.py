"""The texts of the page: complete in each language, and nowhere else."""

import json
import re
from collections.abc import Iterator
from importlib.resources import files

STATIC = files("maas_backoff.dashboard").joinpath("static")
SOURCES = {file.name: file.read_text() for file in STATIC.iterdir() if file.name.rpartition(".")[2] in {"js", "html"}}
CATALOGUES = {name: json.loads(STATIC.joinpath(f"{name}.json").read_text()) for name in ("en", "zh-CN")}


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{\w+\}", text))


def test_the_catalogues_have_the_same_keys_and_placeholders() -> None:
    english, chinese = CATALOGUES.values()
    assert list(english) == list(chinese)
    assert {key for key in english if placeholders(english[key]) != placeholders(chinese[key])} == set()
    assert not [key for key in english if not english[key] or not chinese[key]]


def test_each_text_is_used_and_exists() -> None:
    """A key is written as a whole, or begins with a text in front of a `${…}`."""
    keys = set(CATALOGUES["en"])
    source = "\n".join(SOURCES.values())
    whole = set(re.findall(r'[("?: ]"([a-z0-9_.]+)"', source)) | set(re.findall(r'data-t(?:-\w+)?="([^"]+)"', source))
    begun = set(re.findall(r"`([a-z_]+\.(?:do_)?)\$\{", source)) | {"undone.", "done.", "many."}
    plural = {f"{key}.{form}" for key in whole for form in ("one", "other")}
    assert {
        key for key in keys - {"noscript"} if key not in whole | plural and not key.startswith(tuple(begun))
    } == set()
    asked = set(re.findall(r'\bt\("([^"]+)"', source)) | set(re.findall(r'data-t(?:-\w+)?="([^"]+)"', source))
    assert asked - keys == set()


def literals(source: str) -> Iterator[str]:
    """Yield the texts in quotes of a script, without those in comments."""
    code = re.sub(r"/\*.*?\*/|(?m:(?<![:\"'])//.*$)", "", source, flags=re.DOTALL)
    for found in re.finditer(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`', code):
        yield re.sub(r"\$\{[^}]*\}", "", found[1] or found[2] or "")


def test_the_page_has_no_text_of_its_own() -> None:
    """A text that begins with a capital letter, or has several words, belongs into a catalogue."""
    allowed = {"English", "POST", "maas-backoff create --queue  --id  --priority  "}
    for name, source in SOURCES.items():
        if name.endswith(".js"):
            texts = [text for text in literals(source) if re.search(r"^[A-Z][a-z]|[a-z]{2,} [a-z]{2,} [a-z]{2,}", text)]
            assert [text for text in texts if text not in allowed] == [], name
        else:
            body = re.sub(r"<title>.*?</title>|<[^>]*>|\{\w+\}", "", source)
            assert body.split() == [], name
