"""The files for Prometheus and Grafana name metrics that exist, and the rules fire when they should."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_server import rules

from maas_backoff import Activity, GpuStatus, Limit, LimitStats, QueueStats, TenantStats, Worker
from maas_backoff.prometheus.collector import Collector
from maas_backoff.prometheus.files import FILES, text_of
from maas_backoff.prometheus.snapshot import Snapshot

RULES = Path(__file__).parent / "alerts_test.yml"


def families() -> Iterator[Metric]:
    gpu = GpuStatus("GPU-a", 0, "name", "host", 1, 1, 0, 0, 50, 40, "ok", 0)
    stats = QueueStats(0, 0, 0, 0, 0, 0, 0, kinds={"kind": 1})
    activity, limit = Activity(errors={"ValueError": 1}), LimitStats("limit", Limit(1), "limit", most=1)
    snapshot = Snapshot(stats, activity, [Worker("w")], [gpu], [TenantStats("tenant", 1)], [limit])
    return Collector("q", snapshot).collect()


EXPORTED = {sample.name: set(sample.labels) for family in families() for sample in family.samples}


def named(expression: str) -> set[str]:
    return set(re.findall(r"maas_backoff_\w+", expression))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(text_of(FILES["grafana"]))["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [one["expr"] for panel in panels() for one in panel["targets"]]


def test_each_metric_that_a_file_names_is_exported() -> None:
    for expression in expressions():
        assert named(expression) and named(expression) <= EXPORTED.keys(), expression


def test_each_label_that_a_file_selects_is_exported() -> None:
    for expression in expressions():
        for name, selector in re.findall(r"(maas_backoff_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*[!=]~?", selector))
            assert labels <= EXPORTED[name], expression


def test_each_gauge_is_in_the_dashboard_or_a_rule() -> None:
    """But for a few that only help to join, or that a ratio needs."""
    used = set[str]().union(*map(named, expressions()))
    left = {name for name in EXPORTED if not name.endswith(("_count", "_sum", "_bucket"))} - used
    assert left == {
        "maas_backoff_build_info", "maas_backoff_kind_paused", "maas_backoff_tenants", "maas_backoff_paused_tenants",
        "maas_backoff_limit_in_use", "maas_backoff_limit_most", "maas_backoff_limit_shut",
        "maas_backoff_limit_waiting_lanes", "maas_backoff_worker_slots", "maas_backoff_worker_running_slots",
        "maas_backoff_gpu_memory_total_bytes", "maas_backoff_gpu_memory_free_bytes",
        "maas_backoff_gpu_temperature_celsius", "maas_backoff_gpu_tasks",
    }  # fmt: skip


def test_each_rule_has_a_severity_a_summary_and_a_test() -> None:
    tested = RULES.read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"} and rule["annotations"]["summary"]
        assert f'"{rule["alert"]}"' in tested, f"{rule['alert']} fires in no test"


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    run = subprocess.run([promtool, "test", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_parses_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    found = [
        one["expr"].replace("$queue", "q").replace("$__rate_interval", "5m") for p in panels() for one in p["targets"]
    ]
    recorded = [{"record": f"a{n}", "expr": expression} for n, expression in enumerate(found)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    run = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", FILES)
def test_the_command_prints_the_files(name: str) -> None:
    """Without a server, and without a queue."""
    command = [sys.executable, "-m", "maas_backoff", "metrics", "--show", name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == text_of(FILES[name])
