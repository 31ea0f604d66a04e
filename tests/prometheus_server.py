"""A real Prometheus, with the alert rules of this package in a shorter time."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from maas_backoff.prometheus.files import FILES, text_of

UNITS = {"s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(\d+)([smh])")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text_of(FILES["alerts"]))["groups"] for rule in group["rules"]]


def shorter(rule: Mapping[str, Any], times: float) -> dict[str, Any]:
    """Return a rule whose times are shorter: `for`, the ranges, and the ages of tasks and attempts."""

    def duration(found: re.Match[str]) -> str:
        return f"{round(int(found[1]) * UNITS[found[2]] / times * 1000)}ms"

    expression = re.sub(r"(?<=\[)(\d+)([smh])(?=\])", duration, rule["expr"])
    expression = re.sub(r"(oldest_\w+_seconds\) > )(\d+)", lambda one: f"{one[1]}{int(one[2]) / times:g}", expression)
    held = {"for": DURATION.sub(duration, rule["for"])} if "for" in rule else {}
    return {**rule, **held, "expr": expression}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _job(queue: str, target: str) -> dict[str, Any]:
    # The answer that a server is away comes after 5 s.
    every = "7s" if queue == "down" else "1s"
    times = {"scrape_interval": every, "scrape_timeout": every}
    return {"job_name": queue, **times, "static_configs": [{"targets": [target]}]}


class Prometheus:
    """A Prometheus on a loopback port that scrapes the address of each queue. Skips the test without one."""

    def __init__(self, folder: Path, targets: Mapping[str, str], times: float) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("no prometheus is installed: apt-get install prometheus")
        self._log = folder / "prometheus.log"
        self._targets = len(targets)
        groups = [{"name": "maas_backoff", "rules": [shorter(rule, times) for rule in rules()]}]
        (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [_job(queue, target) for queue, target in targets.items()],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._url = f"http://127.0.0.1:{(port := free_port())}/api/v1/"
        options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [binary, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )

    def asked(self, path: str) -> Any:
        """Return the data of an answer; None while Prometheus starts."""
        try:
            with urllib.request.urlopen(self._url + path, timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            return None

    def firing(self) -> list[dict[str, Any]]:
        found = self.asked("alerts") or {"alerts": []}
        return [alert for alert in found["alerts"] if alert["state"] == "firing"]

    def stop(self) -> None:
        """End it; what it has logged was a warning or an error."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self, seconds: float = 60) -> None:
        """Wait until each target was scraped."""
        deadline = time.monotonic() + seconds
        while True:
            found = (self.asked("targets") or {}).get("activeTargets", ())
            if len(found) == self._targets and all(one["health"] == "up" for one in found):
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
