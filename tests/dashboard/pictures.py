"""Make the pictures of the dashboard in `.readme/`, and further ones to look at.

`python tests/dashboard/pictures.py FOLDER` writes them into FOLDER; with `.readme` as FOLDER, only those of the README.
"""

import math
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import chromium
from playwright.sync_api import Browser, Page, expect
from served import Served
from support import USUAL, Server

QUEUE = "images"


def fill(served: Served) -> None:
    """Create what a busy queue has: each state, each kind, tenants, a limit."""

    def create(kind: str, number: int, *args: object, **options: object) -> None:
        wish = {"number": number, "args": args, "options": options}
        answer = served.client.post(f"/create/{kind}", json=wish)
        assert answer.status_code == 200, served.log.read_text(encoding="utf-8")

    served.client.post("/limit/openai/12")
    for tenant, number in {"acme": 60, "globex": 25, "cora": 12}.items():
        create("caption", number, "caption {n} of " + tenant, tenant=tenant)
    create("caption", 12, "a prompt {n}", True, tenant="acme")
    create("embed", 400, "text {n}")
    create("render", 30, "a cat {n}", 0.2)
    served.until(lambda: states(served)["failed"] == 12 and states(served)["completed"] > 480, "most have ended")
    create("caption", 300, "later {n}", tenant="globex", delay=240)
    create("render", 200, "tonight {n}", 1, delay=420)
    create("render", 1, "a poster", 30, min_gpu_memory_gb=120)
    create("render", 160, "a cat in the rain {n}", 40, tenant="acme", labels=["nightly"])
    served.until(lambda: states(served)["processing"] >= 12, "the workers are busy")


def states(served: Served) -> dict[str, int]:
    return served.client.get("/tasks/api/snapshot").json()["queue"]["counts"]


def write_history(server: Server) -> None:
    """Give the last hour the numbers of this minute, more or less of them."""
    prefix = f"maas:{{{QUEUE}}}:"
    now = int(time.time() // 60)
    keys = sorted(key for key in server.client.keys(f"{prefix}h:*"))
    sample = server.client.hgetall(keys[-1])
    for key in keys[:-1]:
        for name, number in server.client.hgetall(key).items():
            sample[name] = int(sample.get(name, 0)) + int(number)
    for ago in range(1, 60):
        share = 1.4 + math.sin(ago / 8) + (4 - abs(ago - 32) / 2 if 26 < ago < 40 else 0) + random.random() / 3
        minute = {name: round(int(number) * share) for name, number in sample.items()}
        server.client.hset(f"{prefix}h:{now - ago}", mapping=minute)


def shot(page: Page, file: Path, *, whole: bool = True) -> None:
    page.wait_for_timeout(500)  # bars grow to their height
    page.screenshot(path=file, full_page=whole)
    print(file, file.stat().st_size // 1024, "kB")


def visited(browser: Browser, served: Served, width: int, scheme: str, locale: str = "en-US") -> Page:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, locale=locale)  # type: ignore[arg-type] - a word of two
    page = context.new_page()
    page.goto(f"{served.url}/tasks/")
    expect(page.locator("#live")).to_have_class("on")
    page.locator("#states .processing").click()
    expect(page.locator("#list tbody tr").first).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    return page


def of_readme(browser: Browser, served: Served, folder: Path) -> None:
    for scheme in ("light", "dark"):
        page = visited(browser, served, 1280, scheme)
        page.set_viewport_size({"width": 1280, "height": 1290})
        shot(page, folder / f"dashboard-{scheme}.png", whole=False)


def to_look_at(browser: Browser, served: Served, folder: Path) -> None:
    for name, width, scheme, locale in (
        ("light", 1280, "light", "en-US"), ("dark", 1280, "dark", "en-US"), ("middle", 800, "light", "en-US"),
        ("narrow", 390, "light", "en-US"), ("chinese", 1280, "dark", "zh-CN"), ("chinese-narrow", 390, "dark", "zh-CN"),
    ):  # fmt: skip
        page = visited(browser, served, width, scheme, locale)
        page.locator("#group").click()
        expect(page.locator("#groups tbody tr").first).to_be_visible()
        shot(page, folder / f"{name}.png")
        page.locator("#states .failed").click()
        page.locator("#filters summary").click()
        page.wait_for_timeout(500)
        shot(page, folder / f"{name}-failed.png")
        page.locator("#list a").first.click()
        expect(page.locator("#detail .attempts li").first).to_be_visible()
        shot(page, folder / f"{name}-task.png", whole=False)


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        server = Server(USUAL, Path(scratch))
        env = {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "MAAS_BACKOFF_BIZ_PREFIX": QUEUE}
        served = Served("fleet_service:app", env, Path(scratch, "log")).answering("/tasks/")
        try:
            fill(served)
            write_history(server)
            served.client.post("/sick/GPU-c41e")
            served.until(lambda: "Xid" in served.client.get("/tasks/api/snapshot").text, "the page knows of the GPU")
            make = of_readme if folder.name == ".readme" else to_look_at
            make(browser, served, folder)
        finally:
            served.end()
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
