"""The files for Prometheus and Grafana that are part of the package."""

from importlib.resources import files

FILES = {"alerts": "alerts.yml", "grafana": "grafana.json"}
"""The names of the files: alert rules, and a dashboard."""


def text_of(name: str) -> str:
    """Return the text of a file."""
    return (files("maas_backoff.prometheus") / name).read_text(encoding="utf-8")
