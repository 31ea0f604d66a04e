// The page of all queues of a server: each links to its own page.

import { h, byId, show } from "./dom.js";
import { number, span } from "./format.js";
import { t } from "./i18n.js";
import { dress } from "./look.js";
import { read } from "./server.js";
import { table } from "./table.js";

const PERIOD = 5000; // ms between two reads

const COUNTS = ["due", "scheduled", "processing", "completed", "failed", "cancelled"];

function draw({ queues, complete }) {
  const rows = queues.map((queue) => ({
    key: queue.name,
    cells: [
      h("a", { href: `queue/${encodeURIComponent(queue.name)}/`, "data-key": `queue-${queue.name}` }, queue.name),
      ...COUNTS.map((name) => number(queue[name])),
      queue.oldest ? span(queue.oldest) : "–",
      number(queue.workers),
      queue.paused_by ? t("queues.paused_by", { by: queue.paused_by }) : t(queue.paused ? "paused" : queue.workers ? "queues.runs" : "queues.no_worker"),
    ],
  }));
  show(
    byId("queues"),
    rows.length ? table(t("queues.title"), ["queue", ...COUNTS, "oldest", "workers", "state"], rows) : h("p", { class: "words" }, t("queues.none")),
    complete ? null : h("p", { class: "words" }, t("queues.more")),
  );
}

async function follow() {
  if (document.hidden) return;
  try {
    draw(await read("api/queues"));
    byId("live").textContent = t("live");
    byId("live").className = "on";
  } catch (error) {
    byId("live").textContent = t("outage.never", { reason: error.message });
    byId("live").className = "stale";
  }
}

dress();
byId("live").textContent = t("connecting");
setInterval(follow, PERIOD);
document.addEventListener("visibilitychange", follow);
follow();
