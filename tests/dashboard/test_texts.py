"""The texts of the page: complete in each language, and nowhere else."""

import json
import re
from collections.abc import Iterator
from importlib.resources import files

import attrs

from maas_backoff.domain.batching import HALF
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.reason import reason
from maas_backoff.domain.settlement import Counts
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import Paused, Place, waiting_for
from maas_backoff.domain.worker import Device, Worker

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


def test_no_key_has_two_texts() -> None:
    for name, texts in CATALOGUES.items():
        keys = re.findall(r'^  "([^"]+)":', STATIC.joinpath(f"{name}.json").read_text(), re.MULTILINE)
        assert sorted(keys) == sorted(texts)


def test_each_text_is_used_and_exists() -> None:
    """A key is written as a whole, or begins with a text in front of a `${…}`."""
    keys = set(CATALOGUES["en"])
    source = "\n".join(SOURCES.values())
    whole = set(re.findall(r'[("?: ]"([a-z0-9_.]+)"', source)) | set(re.findall(r'data-t(?:-\w+)?="([^"]+)"', source))
    begun = set(re.findall(r"`([a-z_]+\.(?:do_)?)\$\{", source)) | {"undone.", "done.", "many.", "reason."}
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


def test_the_reasons_of_the_server_have_translations() -> None:
    """Each text that `reason` and `waiting_for` return matches an English text of the catalogue, part by part."""
    demand, busy, idle = Demand(8 * 1024), Worker("a", slots=2, running=2), Worker("a", slots=2)
    stats = QueueStats(5, 1, 2, 0, 0, 0, 0.0)
    device = Device("GPU-a", 0, "L4", 24 * 1024, 24 * 1024, 24 * 1024, 24 * 1024, 0, 40, "ok", 0)
    roomy, batching = (
        attrs.evolve(idle, devices=(device,)),
        attrs.evolve(idle, batches={"embed": (8, 60)}, kinds=("", "embed")),
    )
    small, render = attrs.evolve(device, total=8 * 1024), attrs.evolve(idle, name="b", kinds=("render",))
    texts = [
        reason(stats, [busy], 3, []),
        reason(stats, [idle], 3, []),
        reason(stats, [idle], 3, [(demand, 4)]),
        reason(stats, [], 3, []),
        reason(stats, [Worker("a", quiet=True)], 3, []),
        reason(stats, [Worker("a", quiet=True), Worker("b", quiet=True)], 3, []),
        reason(attrs.evolve(stats, paused=True), [idle], 3, []),
        reason(attrs.evolve(stats, suspect_count=2), [idle], 3, [], 1),
        reason(QueueStats(1, 1, 0, 0, 0, 0, 0.0), [idle], 3, [], paused_tenants={"acme": 2}),
        reason(attrs.evolve(stats, kinds={"render": 2}), [idle], 3, []),
        reason(stats, [attrs.evolve(idle, kinds=("render",))], 3, []),
        *(waiting_for(0, 1, None, fleet, place) for fleet in ([], [busy]) for place in (Place(), Place(0), Place(3))),
        waiting_for(0, 1, None, [Worker("a", quiet=True)]),
        waiting_for(0, 1, None, [busy], kind="render"),
        waiting_for(0, 1, None, [attrs.evolve(idle, trouble="starting")]),
        *(waiting_for(0, 1, None, [attrs.evolve(idle, kinds=("", "a"))], Place(number)) for number in (0, 3)),
        waiting_for(
            0, 1, Demand(20 * 1024), [attrs.evolve(idle, devices=(small, attrs.evolve(device, health="it is gone")))]
        ),
        *(reason(stats, fleet, 3, [], leased=leased) for fleet in ([], [idle]) for leased in (1, 2)),
        *(reason(stats, [attrs.evolve(idle, trouble="starting")] * number, 3, []) for number in (1, 2)),
        *(reason(stats, [idle] * number + [render], 3, []) for number in (1, 2)),
        reason(stats, [attrs.evolve(idle, quiet=True), render], 3, []),
        reason(attrs.evolve(stats, kinds={"render": 4}), [attrs.evolve(render, quiet=True), idle], 3, []),
        *(reason(QueueStats(1, 1, 0, 0, 0, 0, 0.0), fleet, 0, []) for fleet in ([], [idle])),
        waiting_for(0, 1, demand, [busy]),
        waiting_for(0, 1, None, [busy], paused=Paused(queue=True)),
        waiting_for(9, 1, None, [busy]),
        reason(stats, [busy, attrs.evolve(idle, name="b")], 3, []),
        reason(stats, [attrs.evolve(roomy, running=2)], 3, [(demand, 4)]),
        reason(stats, [attrs.evolve(roomy, running=2), attrs.evolve(idle, devices=())], 3, [(demand, 4)]),
        reason(attrs.evolve(stats, suspect_count=2), [batching], 3, [], 1),
        reason(attrs.evolve(stats, kinds={"embed": 2}), [batching], 3, []),
        *(
            reason(QueueStats(waiting, scheduled, running, 0, 0, 0, 0.0), fleet, 3 if scheduled else None, [])
            for waiting, scheduled, running in ((0, 0, 0), (1, 1, 0), (0, 0, 1))
            for fleet in ([], [idle])
        ),
        waiting_for(0, 1, demand, [attrs.evolve(roomy, running=2)]),
        waiting_for(0, 1, None, [batching], Place(2), kind="embed"),
        *(
            waiting_for(0, 1, None, [busy], counts=Counts(lost=2, cohort=f"{half}1", cohort_size=size))
            for half in ("", HALF)
            for size in (1, 2, 9)
        ),
    ]
    for text in texts:
        whole = translated(text.removesuffix("."))
        told = whole or "\n".join(translated(part) or part for part in text.removesuffix(".").split("; "))
        assert not re.search(r"[a-z]{2,} [a-z]{2,}", told), (text, told)


NESTED = re.search(r"NESTED = (\[.*?\]);", SOURCES["reasons.js"])


def translated(text: str) -> str | None:
    """Return a part of a reason in Chinese, as reasons.js does."""
    assert NESTED is not None
    english, chinese = CATALOGUES.values()
    keys = [key for key in english if key.startswith("reason.")]
    for key in sorted(keys, key=lambda key: -len(re.sub(r"\{\w+\}", "", english[key]))):
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>(?:(?!; ).)+?)", re.escape(english[key]))
        if found := re.fullmatch(pattern, text):
            values = found.groupdict()
            nested = {
                name: translated(value) or value for name, value in values.items() if name in json.loads(NESTED[1])
            }
            return chinese[key].format(**values | nested)
    return None
