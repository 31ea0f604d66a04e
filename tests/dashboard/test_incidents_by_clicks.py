"""Six incidents, worked by clicks on the page only. Each prints its clicks and its seconds."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM
from playwright.sync_api import Browser, Locator, Page, expect
from served import Served
from support import Server

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(180),
]

QUEUE = "images"
SLOW = 20_000
"""Milliseconds after which a heartbeat, or a reading of the GPUs, has come."""


class Operator:
    """A person with a pointer: clicks on what is seen, reads, and types nothing."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.clicks: list[str] = []
        self._began = time.monotonic()

    def click(self, target: Locator) -> None:
        expect(target.first).to_be_visible()
        name = target.first.get_attribute("aria-label") or target.first.inner_text().replace("\n", " ")
        self.clicks.append(name)
        target.first.click()

    def button(self, name: str | re.Pattern[str], where: str = "body") -> None:
        self.click(self.page.locator(where).get_by_role("button", name=name))

    def confirm(self, name: str) -> None:
        self.button(name, "#confirm")

    def sees(self, where: str, text: str | re.Pattern[str]) -> None:
        expect(self.page.locator(where).first).to_contain_text(text, timeout=SLOW)

    def rows(self, number: int) -> None:
        expect(self.page.locator("#list tbody tr")).to_have_count(number, timeout=SLOW)

    def tell(self, incident: str) -> None:
        seconds = time.monotonic() - self._began
        print(f"{incident:32} {len(self.clicks)} clicks  {seconds:4.1f} s  {' > '.join(self.clicks)}")


@pytest.fixture
def fleet(tmp_path: Path, server: Server) -> Iterator[Served]:
    env = {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "MAAS_BACKOFF_BIZ_PREFIX": QUEUE}
    served = Served("fleet_service:app", env | {"MAAS_BACKOFF_LEASE": "3"}, tmp_path / "uvicorn.log")
    yield served.answering("/tasks/")
    served.end()


Create = Callable[..., None]


@pytest.fixture
def create(fleet: Served) -> Create:
    def run(kind: str, number: int, *args: object, **options: object) -> None:
        answer = fleet.client.post(f"/create/{kind}", json={"number": number, "args": args, "options": options})
        assert answer.status_code == 200, fleet.log.read_text(encoding="utf-8")

    return run


@pytest.fixture
def operator(browser: Browser, fleet: Served) -> Iterator[Operator]:
    page = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US").new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{fleet.url}/tasks/")
    expect(page.locator("#live")).to_have_class("on")
    yield Operator(page)
    page.context.close()
    assert errors == []


def counts(fleet: Served) -> dict[str, int]:
    return dict(fleet.client.get("/tasks/api/snapshot").json()["queue"]["counts"])


def test_tasks_are_late(operator: Operator, create: Create, fleet: Served) -> None:
    """The sentence says that all slots are taken. One task has been running for longer than the others: it ends."""
    create("render", 1, "the hog", 600, task_id="hog")
    fleet.until(lambda: counts(fleet)["processing"] == 1, "the hog runs")
    create("caption", 200, "slow", False, 600)
    operator.sees("#reason", "all 16 slots of 2 workers are busy")
    operator.button(re.compile("processing"), "#states")
    operator.rows(16)
    operator.button("Sort by ran")
    expect(operator.page.locator("#list tbody tr").first).to_contain_text("hog")
    operator.button("Cancel hog")
    operator.confirm("Cancel it")
    operator.sees("#notice", "hog is cancelled")
    operator.tell("late tasks")


def test_one_error_floods(operator: Operator, create: Create, fleet: Served) -> None:
    """Some tasks have failed for good, others will come back. Cancel these, retry those after the repair."""
    create("caption", 20, "the same prompt", True, max_retry_count=0)
    create("caption", 15, "the same prompt", True, max_retry_count=9, backoff_interval=600)
    fleet.until(lambda: (counts(fleet)["failed"], counts(fleet)["scheduled"]) == (20, 15), "all have failed once")
    operator.sees("#errors", "35")
    operator.click(operator.page.locator("#errors button"))
    operator.rows(35)
    operator.button("Cancel all that match")
    operator.sees("#confirm", "Cancel 15 tasks?")
    operator.confirm("Cancel")
    operator.sees("#notice", "15 tasks are cancelled.")
    operator.button("Retry all that match")
    operator.sees("#confirm", "Retry 20 tasks?")
    operator.confirm("Retry")
    operator.sees("#notice", "20 tasks are pending again.")
    operator.tell("one error floods")


def test_a_gpu_is_sick(operator: Operator, create: Create, fleet: Served) -> None:
    """It comes first, and takes no tasks any more. The tasks that still run there are cancelled."""
    create("render", 12, "a cat {n}", 600)
    fleet.until(lambda: counts(fleet)["processing"] == 12, "GPUs are busy")
    fleet.client.post("/sick/GPU-c41e")
    first = operator.page.locator("#gpus article").first
    expect(first).to_contain_text("Xid 79", timeout=SLOW)
    operator.click(first.get_by_role("button", name="1 NVIDIA L4", exact=True))
    operator.rows(2)
    operator.button("Cancel all that match")
    operator.sees("#confirm", "Cancel 2 tasks?")
    operator.confirm("Cancel")
    operator.sees("#notice", "2 tasks are cancelled.")
    operator.tell("a sick GPU")


def test_all_of_a_kind_are_cancelled(operator: Operator, create: Create, fleet: Served) -> None:
    create("caption", 30, "slow", False, 600)
    create("render", 40, "a cat {n}", 600)
    operator.sees("#kinds", "caption: ")
    operator.button(re.compile("^caption: "), "#kinds")
    operator.rows(30)
    operator.button("Cancel all that match")
    operator.sees("#confirm", "Cancel 30 tasks?")
    operator.confirm("Cancel")
    operator.sees("#notice", "30 tasks are cancelled.")
    fleet.until(lambda: counts(fleet)["cancelled"] == 30, "they are cancelled")
    assert counts(fleet)["gpu"] + counts(fleet)["processing"] == 40
    operator.tell("cancel all of a kind")


def test_why_does_this_not_run(operator: Operator, create: Create) -> None:
    create("render", 1, "a poster", 1, task_id="poster", min_gpu_memory_gb=120)
    operator.sees("#reason", "1 need a GPU with 120 GiB free, more than any device has (the largest: 80 GiB)")
    operator.button(re.compile("need a GPU"), "#states")
    operator.rows(1)
    operator.click(operator.page.locator("#list a"))
    operator.sees("#detail", "gpu: needs 120 GiB free, more than any device has (the largest: 80 GiB)")
    operator.tell("why does this not run")


def test_a_box_is_drained_before_maintenance(operator: Operator, create: Create, fleet: Served) -> None:
    """Its worker claims nothing; when its last attempt has ended, the page says so. Others go on."""
    create("render", 60, "a cat {n}", 4)
    fleet.until(lambda: counts(fleet)["processing"] >= 12, "both workers are busy")
    row = operator.page.locator("#workers tr", has_text="gpu-2")
    operator.click(row.get_by_role("button", name=re.compile("Quiet")))
    operator.confirm("Quiet")
    expect(row).to_contain_text("it can be stopped", timeout=60_000)
    operator.click(row.locator("button.link"))
    operator.rows(0)
    assert counts(fleet)["processing"] > 0
    operator.tell("drain a box")
