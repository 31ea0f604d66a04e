"""The dashboard in a real browser: Debian's or Ubuntu's Chromium, where there is one; axe-core looks for barriers."""

import re
from collections.abc import Callable, Iterator

import anyio
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import CHROMIUM
from playwright.sync_api import Browser, Page, expect
from served import Served
from support import Server

from maas_backoff import TaskBackoffScheduler, TaskSpec

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(120),
]

HOSTILE = '<img src=x onerror="window.broken=1">\'"`${1}</script><script>window.broken=1</script>\u202e\x1b[31m\n--'


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Callable[..., Page]]:
    """Open a page; at the end nothing may have been complained of, nor loaded from elsewhere."""
    pages: list[Page] = []
    complaints: list[str] = []

    def open_page(
        path: str = "/tasks/",
        width: int = 1280,
        scheme: str = "light",
        init: str = "",
        *,
        locale: str = "en-US",
        quiet: bool = True,
    ) -> Page:
        viewport = {"width": width, "height": 900}
        page = browser.new_context(viewport=viewport, color_scheme=scheme, locale=locale).new_page()  # type: ignore[arg-type] - a word of two
        pages.append(page)
        page.add_init_script(init)
        if quiet:
            page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not mine(request.url) else None)
        page.goto(served.url + path)
        expect(page.locator("#live")).to_have_class("on")
        return page

    def mine(url: str) -> bool:
        return url.startswith(
            (f"{served.url}/tasks/", f"{served.url}/look/", f"{served.url}/all/", f"{served.url}/server/")
        )

    yield open_page
    for page in pages:
        page.context.close()
    assert complaints == []


def count(page: Page, state: str) -> str:
    return page.locator(f"#states .{state} strong").inner_text()


def test_the_page_shows_a_queue_and_follows_it(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(
        TaskSpec({"error": "no model", "type": "LoadError"}, "failing", max_retry_count=0),
        TaskSpec({}, "later", delay=100),
        TaskSpec({"seconds": 60, "progress": "denoising"}, "long", min_gpu_memory_gb=4),
        TaskSpec({}, "large", min_gpu_memory_gb=100),
    )
    page = visit()
    for state, number in {"gpu": "1", "scheduled": "1", "processing": "1", "failed": "1"}.items():
        expect(page.locator(f"#states .{state} strong")).to_have_text(number)
    expect(page.locator("#states .gpu span")).to_have_text("due, need a GPU")
    expect(page.locator("#states .due span")).to_have_text("due, need no GPU")
    expect(page.locator("#states .gpu small")).to_have_text("1 fit no device")
    expect(page.locator("#reason")).to_contain_text("1 need a GPU with 100 GiB free, more than any device has")
    expect(page.locator("#gpus .memory")).to_have_attribute("aria-label", re.compile(r"4\.0 GiB reserved.* of 24 GiB"))
    expect(page.locator("#errors")).to_contain_text("LoadError")
    expect(page.locator("#throughput")).to_contain_text("1 failed")
    expect(page.locator("#upcoming")).to_contain_text("1 become due")
    expect(page.locator("#workers")).to_contain_text("of 10")
    row = page.locator("#list tr", has_text="long")
    expect(row).to_contain_text("40 % denoising")
    create(TaskSpec({}, "quick"))
    expect(page.locator("#states .completed strong")).to_have_text("1")
    page.locator("#states .gpu").click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    expect(page.locator("#list")).to_contain_text("gpu: needs 100 GiB free")
    expect(page.locator("#states .gpu")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#states .due")).to_have_attribute("aria-pressed", "false")
    page.get_by_label("Id, or text in id").fill("quick")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#list tbody tr")).to_contain_text("completed")
    page.locator("#upcoming button:enabled").click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    expect(page.locator("#list")).to_contain_text("later")


def test_a_task_is_shown_with_its_attempts_and_followed(
    visit: Callable[..., Page], create: Callable[..., None], served: Served
) -> None:
    create(TaskSpec({"error": "no model"}, "x", max_retry_count=1, backoff_interval=0.05))
    served.until(lambda: served.client.get("/tasks/api/task?id=x").json()["status"] == "failed", "it has failed twice")
    page = visit("/tasks/#task=x")
    detail = page.locator("#detail")
    expect(detail).to_contain_text("1 of 1")
    expect(detail.locator(".attempts li")).to_have_count(2)
    expect(detail).to_contain_text("not shown here")
    detail.get_by_text("Traceback").first.click()
    expect(detail.locator("pre").first).to_contain_text("dashboard_service.py")
    expect(detail.locator(".log")).to_have_count(0)
    create(TaskSpec({"seconds": 60, "progress": "half way", "lines": ["<b>loaded</b>", "began"]}, "y"))
    page.goto(f"{served.url}/tasks/#task=y")
    expect(detail).to_contain_text("40 % half way")
    expect(detail.locator(".log")).to_contain_text("attempt 1  <b>loaded</b>")
    expect(detail.locator(".log")).to_contain_text("attempt 1  began")
    detail.get_by_role("button", name="Cancel y").click()
    page.get_by_role("button", name="Cancel it").click()
    expect(detail.locator("dd").first).to_have_text("cancelled")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    assert page.url.endswith("/tasks/")
    page.goto(f"{served.url}/tasks/#task=none")
    expect(detail).to_contain_text("There is no such task")


def test_kinds_are_shown_with_their_pauses(visit: Callable[..., Page], in_thread: Callable[..., None]) -> None:
    async def of_kinds(producer: TaskBackoffScheduler) -> None:
        @producer.task
        async def render() -> None: ...

        await render.options(task_id="image").create()  # nobody runs it: the worker of the page has no kinds
        await producer.pause(kind="render", by="ada")
        await producer.create_task({"seconds": 60}, "plain", delay=600)

    in_thread(of_kinds)
    page = visit()
    expect(page.locator("#kinds")).to_contain_text("Kinds of tasks: render: 1 due, paused by ada since")
    page.locator("#states .due").click()
    expect(page.locator("#list")).to_contain_text("kind render: paused")
    expect(page.locator('#list td[data-head="kind"]')).to_have_text("render")
    page.get_by_role("link", name="image").click()
    expect(page.locator("#detail")).to_contain_text("render")
    page.keyboard.press("Escape")
    page.locator("#states .scheduled").click()
    expect(page.locator("#list")).to_contain_text("plain")
    expect(page.locator('#list td[data-head="kind"]')).to_have_count(0)


def test_tenants_and_limits_are_shown(visit: Callable[..., Page], in_thread: Callable[..., None]) -> None:
    async def of_tenants(producer: TaskBackoffScheduler) -> None:
        await producer.set_limit("openai", concurrency=1, rate=(500, "1m"))
        await producer.set_limit("user:*", concurrency=2)
        await producer.set_weight("bolt", 2.5)
        await producer.pause(tenant="bolt")
        long = TaskSpec({"seconds": 60}, tenant="acme", limits={"openai": 1})
        await producer.create_tasks([*[long] * 3, TaskSpec({}, "paused", tenant="bolt")])

    in_thread(of_tenants)
    page = visit()
    expect(page.locator("#limits")).to_have_text(
        "Limits: openai: 1 of 1 in use, 500/1m, 2 tasks waiting · user:*: 2 at once for each name", timeout=20_000
    )
    expect(page.locator("#tenants")).to_contain_text(
        "Tenants: acme: 2 tasks waiting · bolt: 1 task waiting, weight 2.5, paused since"
    )
    expect(page.locator("#reason")).to_contain_text("tenant bolt is paused")
    expect(page.locator("#reason")).to_have_class("warn")
    page.locator("#states .due").click()
    expect(page.locator('#list td[data-head="tenant"]').first).to_have_text(re.compile("acme|bolt"))
    expect(page.locator("#list")).to_contain_text("limit openai: 1 of 1 in use")
    page.get_by_role("link", name="paused").click()
    expect(page.locator("#detail")).to_contain_text("tenant bolt is paused")


def test_the_diagrams_of_one_tenant(
    visit: Callable[..., Page], create: Callable[..., None], in_thread: Callable[..., None]
) -> None:
    failing = TaskSpec({"error": "x"}, tenant="bolt", max_retry_count=0)
    create(*[TaskSpec({}, tenant="acme")] * 3, failing, TaskSpec({}))

    async def are_sent(scheduler: TaskBackoffScheduler) -> None:
        """Wait for the sums of the worker, which come once a second: the page keeps an answer for a while."""
        while {name: one.count for name, one in (await scheduler.get_breakdown("tenant")).totals.items()} != {
            "acme": 3,
            "bolt": 1,
        }:
            await anyio.sleep(0.05)

    in_thread(are_sent)
    page = visit()
    expect(page.locator("#states .completed strong")).to_have_text("4")
    expect(page.locator("#states .failed strong")).to_have_text("1")
    page.reload()
    choice = page.get_by_label("Diagrams of")
    throughput, latency = page.locator("#throughput .words"), page.locator("#latency .words")
    expect(throughput).to_have_text("Last hour: 4 completed, 0 to be retried, 1 failed; 0 lost by their worker.")
    choice.select_option("acme")
    expect(throughput).to_have_text("Last hour: 3 completed, 0 to be retried, 0 failed.")
    expect(latency).to_contain_text(re.compile(r"ran .* \(mean\)"))
    expect(page.locator("#latency .legend li")).to_have_text(["run, mean"])
    choice.select_option("bolt")
    expect(throughput).to_have_text("Last hour: 0 completed, 0 to be retried, 1 failed.")
    choice.select_option("all tasks")
    expect(throughput).to_contain_text("4 completed")


def test_actions_are_asked_for_twice_and_told(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(*(TaskSpec({"error": error}, f"{error}-{n}", max_retry_count=0) for error in ("a", "b") for n in range(2)))
    page = visit()
    expect(page.locator("#states .failed strong")).to_have_text("4")
    notice = page.locator("#notice")
    page.get_by_role("button", name="Pause queue").click()
    page.get_by_role("button", name="Leave it").click()
    page.get_by_role("button", name="Pause queue").click()
    page.locator("#confirm").get_by_role("button", name="Pause").click()
    expect(notice).to_have_text("The queue is paused.")
    expect(page.locator("#reason")).to_contain_text("The queue is paused")
    expect(page.locator("#reason")).to_contain_text("Paused by ada since")
    page.locator("#states .failed").click()
    page.get_by_label("Id, or text in id").fill("ModelError: b")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Retry all that match").click()
    page.locator("#confirm").get_by_role("button", name="Retry").click()
    expect(notice).to_have_text("2 tasks are pending again.")
    expect(page.locator("#states .failed strong")).to_have_text("2")
    page.get_by_label("Id, or text in id").fill("")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="Retry a-1").click()
    expect(notice).to_have_text("a-1 is pending again.")
    page.get_by_role("button", name="Resume queue").click()
    expect(page.locator("#states .failed strong")).to_have_text("4")


def test_tasks_are_filtered_selected_and_changed(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(
        *(TaskSpec({}, f"n-{n}", labels=["nightly"], delay=600) for n in range(3)),
        *(TaskSpec({}, f"o-{n}", delay=600) for n in range(2)),
        TaskSpec({"seconds": 60}, "long"),
    )
    page = visit()
    page.locator("#states .scheduled").click()
    rows = page.locator("#list tbody tr")
    expect(rows).to_have_count(5)
    page.get_by_label("Select o-0").check()
    page.get_by_role("button", name="Delete 1 selected").click()
    page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(page.locator("#notice")).to_have_text("1 task is deleted.")
    expect(rows).to_have_count(4)
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Label", exact=True).fill("nightly")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(rows).to_have_count(3)
    expect(page.locator("#h-tasks")).to_contain_text("Label: nightly")
    assert Axe().run(page).violations_count == 0
    page.get_by_role("button", name="Cancel all that match").click()
    expect(page.locator("#confirm-title")).to_have_text("Cancel 3 tasks?")
    page.locator("#confirm").get_by_role("button", name="Cancel").click()
    expect(page.locator("#notice")).to_have_text("3 tasks are cancelled.")
    page.get_by_role("button", name="Clear").click()
    expect(rows).to_have_count(1)
    page.locator("#workers button.link").click()
    expect(page.locator("#h-tasks")).to_contain_text("Worker or host")
    expect(rows).to_contain_text("long")
    page.get_by_role("link", name="long").click()
    expect(page.locator("#about")).to_contain_text("worker")


def test_who_may_only_look_has_no_buttons_that_act(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(TaskSpec({"error": "a"}, "x", max_retry_count=0), TaskSpec({}, "later", delay=60))
    page = visit("/look/#task=x")
    expect(page.locator("#detail .attempts li")).to_have_count(1)
    expect(page.locator("#list tbody tr")).to_have_count(1)
    expect(page.locator("#only-read")).to_have_text("Read-only")
    names = page.locator("button").all_inner_texts()
    assert {"Hold updates", "Search", "Close"} <= set(names)
    assert not [name for name in names if re.match("Pause|Retry|Cancel|Run", name)]


def test_text_of_tasks_is_only_ever_text(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    """Ids, params, results, errors and their types, progress, titles: nothing of it runs or becomes an element."""
    kind = "Error<img/src=x/onerror=window.broken=1>"
    create(
        TaskSpec({"error": HOSTILE, "type": kind}, f"{HOSTILE[:60]}failed", max_retry_count=0),
        TaskSpec({"seconds": 60, "progress": HOSTILE, HOSTILE: HOSTILE}, f"{HOSTILE[:60]}runs", min_gpu_memory_gb=1),
        TaskSpec({"result": {HOSTILE: [HOSTILE]}}, f"{HOSTILE[:60]}done"),
    )
    page = visit("/all/")
    for state, seen in {"failed": HOSTILE, "processing": HOSTILE, "completed": "done"}.items():
        expect(page.locator(f"#states .{state} strong")).to_have_text("1")
        page.locator(f"#states .{state}").click()
        expect(page.locator("#h-tasks")).to_have_text(f"Tasks: {state}")
        expect(page.locator("#list tbody tr")).to_have_count(1)
        assert seen in page.locator("#list").evaluate("element => element.textContent")
        page.locator("#list a").click()
        expect(page.locator("#detail dd").first).to_have_text(state)
        assert HOSTILE[:60] in page.locator("#detail").evaluate("element => element.textContent")
        page.keyboard.press("Escape")
    expect(page.locator("#errors")).to_contain_text(kind)
    assert page.locator("img, script:not([src]), b, iframe, object").count() == 0
    assert page.evaluate("window.broken") is None


def test_a_page_that_nobody_sees_asks_for_nothing(visit: Callable[..., Page]) -> None:
    """Hidden, or held: its stream ends; shown again, it has a new one."""
    page = visit()

    def hide(hidden: bool) -> None:
        page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            hidden,
        )

    with page.expect_event("requestfailed", lambda request: "api/events" in request.url):
        hide(True)
    expect(page.locator("#live")).to_have_text("Not shown")
    with page.expect_request(re.compile("api/events")):
        hide(False)
    expect(page.locator("#live")).to_have_text("Live")
    with page.expect_event("requestfailed", lambda request: "api/events" in request.url):
        page.get_by_role("button", name="Hold updates").click()
    expect(page.locator("#live")).to_have_text("Updates are held")


def test_a_server_that_is_away_is_said_over_an_open_task(
    visit: Callable[..., Page], create: Callable[..., None], server: Server
) -> None:
    create(TaskSpec({}, "later", delay=60))
    page = visit("/tasks/#task=later", quiet=False)
    expect(page.locator("#detail")).to_contain_text("created")
    server.pause()
    try:
        expect(page.locator("#detail-outage")).to_contain_text("This page shows the state of", timeout=20_000)
        expect(page.locator("#live")).to_have_text("Out of date")
    finally:
        server.go_on()
    expect(page.locator("#detail-notice")).to_have_text("The server answers again.", timeout=20_000)
    page.keyboard.press("Escape")
    page.route("**/api/tasks?*", lambda route: route.fulfill(status=503, json={"error": "away"}))
    expect(page.locator("#outage")).to_have_text("The list is out of date: away.")
    page.unroute_all()
    expect(page.locator("#outage")).to_have_text("")


def test_why_a_stream_is_refused_is_said(visit: Callable[..., Page]) -> None:
    """As when a session has run out."""
    page = visit(quiet=False)
    page.route("**/api/events", lambda route: route.fulfill(status=401, json={"error": "log in"}))
    page.get_by_role("button", name="Hold updates").click()
    page.get_by_role("button", name="Hold updates").click()
    expect(page.locator("#outage")).to_have_text("log in. Reload the page to log in.")
    page.unroute_all()
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#outage")).to_have_text("")


def test_what_is_held_is_read_when_it_is_asked_for(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(TaskSpec({}, "later", delay=60))
    page = visit()
    expect(page.locator("#list")).to_contain_text("later")
    page.get_by_role("button", name="Hold updates").click()
    page.locator("#list a").click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text("created")
    detail.get_by_role("button", name="Cancel later").click()
    expect(page.locator("#detail-notice")).to_have_text("later is cancelled.")
    expect(detail.locator("dd").first).to_have_text("cancelled")
    expect(page.locator("#states .cancelled strong")).to_have_text("1")


def test_a_row_stays_under_the_pointer(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    """New rows above it wait until the pointer has left; meanwhile the row itself is kept up to date."""
    create(TaskSpec({"error": "a"}, "first", max_retry_count=0))
    page = visit()
    page.locator("#states .failed").click()
    row = page.get_by_role("button", name="Retry first")
    row.hover()
    create(TaskSpec({"error": "b"}, "second", max_retry_count=0))
    expect(page.locator("#states .failed strong")).to_have_text("2")
    with page.expect_response(re.compile("api/tasks")):
        pass
    expect(page.locator("#list tbody tr")).to_have_count(1)
    page.locator("h1").hover()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    expect(page.locator("#list tbody tr").first).to_contain_text("second")


def test_a_quiet_queue_is_followed_too(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    """Progress in the list, and times, although no count changes; a wrong clock of the browser does not matter."""
    create(*(TaskSpec({}, f"later-{n}", delay=3600) for n in range(3)), TaskSpec({"steps": 100}, "long"))
    page = visit(init="const real = Date.now; Date.now = () => real() + 7_200_000;")
    row = page.locator("#list tr", has_text="long")
    expect(row).to_contain_text(re.compile(r"[1-9]\d %"), timeout=20_000)
    started = row.locator('[data-column="when"] time')
    seen = started.inner_text()
    expect(started).not_to_have_text(seen)
    assert re.fullmatch(r"started \d+ s ago", seen)
    page.locator("#states .scheduled").click()
    expect(page.locator("#list tbody tr")).to_have_count(3)
    expect(page.locator('[data-column="when"] time').first).to_have_text(re.compile("due in (59|60) min"))


def test_an_open_task_changes_under_its_reader_without_losing_the_place(
    visit: Callable[..., Page], create: Callable[..., None], served: Served
) -> None:
    """Scrolled parts stay so while progress comes in, focus stays within when a button vanishes, Back closes it."""
    create(TaskSpec({"error": "x\n" * 2000, "steps": 100, "fail_first": True}, "x", backoff_interval=0.05))
    served.until(lambda: served.client.get("/tasks/api/task?id=x").json()["attempt"] == 2, "it runs again")
    page = visit()
    page.locator("#list a").click()
    detail = page.locator("#detail")
    detail.locator("summary").click()
    text = detail.locator("pre").first
    text.evaluate("element => { element.scrollTop = 120; element.focus(); }")
    before = detail.locator(".progress").inner_text()
    expect(detail.locator(".progress")).not_to_have_text(before)
    assert text.evaluate("element => [element.scrollTop, element === document.activeElement]") == [120, True]
    detail.get_by_role("button", name="Cancel x").click()
    page.get_by_role("button", name="Cancel it").click()
    expect(detail.locator("dd").first).to_have_text("cancelled")
    assert page.evaluate("document.activeElement.closest('dialog')?.id") == "detail"
    page.go_back()
    expect(detail).to_be_hidden()
    page.go_forward()
    expect(detail).to_be_visible()


def test_it_can_be_used_without_a_mouse(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(TaskSpec({}, "x", delay=60))
    page = visit()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the tasks")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("x")
    page.keyboard.press("Enter")
    expect(page.locator("#h-tasks")).to_contain_text("with “x”")
    page.locator("#list a").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#detail")).to_contain_text("created")
    page.keyboard.press("Escape")
    expect(page.locator("#list a")).to_be_focused()


@pytest.mark.parametrize(
    ("width", "scheme", "locale"), [(1280, "light", "en-US"), (390, "dark", "en-US"), (1280, "dark", "zh-CN")]
)
def test_nothing_bars_anybody(
    visit: Callable[..., Page], create: Callable[..., None], width: int, scheme: str, locale: str
) -> None:
    """axe-core finds nothing, and nothing has to be scrolled sideways; with a long id and error, and a task open."""
    create(
        TaskSpec({"error": "long " * 200}, "i" * 200, max_retry_count=0),
        TaskSpec({}, "later", delay=100),
        TaskSpec({"seconds": 60, "progress": "x" * 300}, "long", min_gpu_memory_gb=4),
    )
    page = visit("/all/", width, scheme, locale=locale)
    expect(page.locator("#states .failed strong")).to_have_text("1")
    expect(page.locator("#gpus article")).to_have_count(1)
    page.locator("#states .failed").click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    found = [Axe().run(page)]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#list a").click()
    expect(page.locator("#detail .attempts li")).to_have_count(1)
    found.append(Axe().run(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [one.generate_report() for one in found if one.violations_count] == []


def test_a_list_has_an_address_and_an_order(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(*(TaskSpec({"error": e}, f"{e}-{n}", max_retry_count=0) for e in ("a", "b") for n in range(2)))
    page = visit()
    expect(page.locator("#states .failed strong")).to_have_text("4")
    page.locator("#states .failed").click()
    expect(page.locator("#list tbody tr")).to_have_count(4)
    assert page.url.endswith("/tasks/?state=failed")
    assert page.locator("#tasks").evaluate("element => element.getBoundingClientRect().top") < 600
    page.get_by_label("Id, or text in id").fill("ModelError: b")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Sort by id").click()
    page.get_by_role("button", name="Sort by id").click()
    expect(page.locator("#list tbody tr").first).to_contain_text("b-1")
    expect(page.locator('th[aria-sort="descending"]')).to_contain_text("id")
    page.reload()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    expect(page.locator("#list tbody tr").first).to_contain_text("b-1")
    expect(page.locator("#text")).to_have_value("ModelError: b")
    page.go_back()
    expect(page.locator("#list tbody tr")).to_have_count(4)


def test_the_failed_tasks_are_grouped_and_retried_by_group(
    visit: Callable[..., Page], create: Callable[..., None]
) -> None:
    create(*(TaskSpec({"error": e}, f"{e}-{n}", max_retry_count=0) for e in ("a", "b") for n in range(2)))
    page = visit()
    expect(page.locator("#states .failed strong")).to_have_text("4")
    page.get_by_role("button", name="Pause queue").click()
    page.locator("#confirm").get_by_role("button", name="Pause").click()
    expect(page.locator("#notice")).to_have_text("The queue is paused.")
    page.get_by_role("button", name="Group the failed tasks").click()
    expect(page.locator("#groups tbody tr")).to_have_count(2)
    page.get_by_role("button", name="List the tasks that failed with ModelError: b").click()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Retry the tasks that failed with ModelError: b").click()
    page.locator("#confirm").get_by_role("button", name="Retry").click()
    expect(page.locator("#notice")).to_have_text("2 tasks are pending again.")
    expect(page.locator("#groups tbody tr")).to_have_count(1)


def test_workers_and_gpus_are_taken_out_of_use(visit: Callable[..., Page], served: Served) -> None:
    page = visit()
    page.locator("#gpus").get_by_role("button", name="Quarantine").click()
    page.locator("#confirm").get_by_role("button", name="Quarantine").click()
    expect(page.locator("#notice")).to_have_text("GPU GPU-a is quarantined.")
    expect(page.locator("#gpus h3")).to_contain_text("by ada", timeout=20_000)
    page.locator("#gpus").get_by_role("button", name="Release").click()
    expect(page.locator("#notice")).to_have_text("GPU GPU-a is released.")
    page.locator("#workers").get_by_role("button", name="Quiet").click()
    page.locator("#confirm").get_by_role("button", name="Quiet").click()
    expect(page.locator("#workers")).to_contain_text("quiet, nothing runs: it can be stopped", timeout=20_000)
    page.locator("#workers").get_by_role("button", name="Wake").click()
    expect(page.locator("#workers")).to_contain_text("ready", timeout=20_000)


def test_the_reader_chooses_the_language_and_the_colors(
    visit: Callable[..., Page], create: Callable[..., None]
) -> None:
    create(TaskSpec({}, "later", delay=600))
    page = visit(locale="zh-CN")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#states .scheduled")).to_contain_text("已计划")
    expect(page.locator("#reason")).to_contain_text("没有任务在运行")
    expect(page.locator("#reason")).to_contain_text("1 个任务已计划")
    page.locator("#language").select_option("en")
    expect(page.locator("#states .scheduled")).to_contain_text("scheduled")
    page.locator("#theme").select_option("dark")
    expect(page.locator("body")).to_have_css("background-color", "rgb(15, 18, 23)")
    page.reload()
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("body")).to_have_css("background-color", "rgb(15, 18, 23)")
    expect(page.locator("#zone")).to_contain_text("zone")


def test_a_task_tells_its_life_and_its_texts_can_be_copied(
    visit: Callable[..., Page], create: Callable[..., None]
) -> None:
    create(TaskSpec({"error": "it's", "n": 1}, "x", max_retry_count=3, backoff_interval=600))
    page = visit("/all/#task=x")
    lines = page.locator(".timeline li")
    steps = ("created", "attempt 1 failed after .*ModelError", "waited 10 min", "attempt 2 is due")
    expect(lines.filter(has_text=re.compile("|".join(steps)))).to_have_text([re.compile(step) for step in steps])
    ahead = [re.compile(f"20.*retry {n} at the earliest, .* after a failure") for n in (2, 3)]
    expect(lines.filter(has_text="at the earliest")).to_have_text(ahead)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy create command").click()
    expect(page.locator("#detail-notice")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").startswith(
        "maas-backoff create --queue 'test' --id 'x' --prio"
    )


def test_all_queues_have_a_page(visit: Callable[..., Page], create: Callable[..., None]) -> None:
    create(TaskSpec({"error": "s3cr3t"}, "x", max_retry_count=0))
    page = visit("/server/")
    page.get_by_role("link", name="test").click()
    expect(page.locator("#states .failed strong")).to_have_text("1")
    page.locator("#list a").click()
    expect(page.locator("#detail")).to_contain_text("ModelError")
    assert "s3cr3t" not in page.locator("#detail").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="All queues").click()
    expect(page.locator("h1")).to_have_text("Queues")
    assert Axe().run(page).violations_count == 0
