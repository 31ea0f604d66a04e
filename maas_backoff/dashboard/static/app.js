// The page: it passes each event of the stream to the part of the page that shows it.

import { byId } from "./dom.js";
import { mayAct, onDone, queryOfGroup, steer } from "./actions.js";
import { listed, put, shows } from "./address.js";
import { Breakdown } from "./breakdown.js";
import { Charts, upcoming } from "./charts.js";
import { Detail } from "./detail.js";
import { clock, setClock, tick } from "./format.js";
import { t } from "./i18n.js";
import { CONDITIONS, LISTED, List, conditionsForm } from "./list.js";
import { dress } from "./look.js";
import { notice, outage } from "./notice.js";
import { errors, gpuMemory, gpus, groups, kinds, shares, states, workers } from "./overview.js";
import { Stream, read } from "./server.js";

const LIST_PERIOD = 3000; // ms between two reads of the list
const FIRST = ["processing", "due", "gpu", "scheduled", "failed", "completed"]; // the list shows the first state that has tasks

dress();
byId("live").textContent = t("connecting");

const list = new List(() => put(list, { push: false }));
const charts = new Charts(byId("throughput"), byId("latency"));
new Breakdown(
  byId("breakdown"),
  byId("of"),
  (history) => charts.choose(history),
  (error) => outage("breakdown", error ? t("outage.breakdown", { error: error.message }) : ""),
);
let queue = null;
let troubled = false;
let streamState = "connecting";
let linked = false; // whether a link has set the conditions: the next tile lists all tasks of its state

const stream = new Stream(
  {
    clock: setClock,
    queue(view) {
      queue = view;
      if (list.state === null) attempted(first());
      drawQueue();
    },
    shares: (view) => shares(view, (conditions) => link("open", conditions)),
    workers: (view) => workers(view, (worker) => link("processing", { worker })),
    gpus: (view) => gpus(view, (gpu) => link("open", { gpu })),
    upcoming: (view) => upcoming(byId("upcoming"), view, (ahead) => choose("scheduled", { ahead })),
    history(view) {
      charts.take(view);
      errors(view.recent, (type) => link("open", { error_type: type }));
      gpuMemory(view.recent.gpu_memory);
    },
    trouble(view) {
      if (view) outage("trouble", troubleText(view));
      else if (troubled) {
        outage("trouble", "");
        notice(t("outage.over"));
      }
      troubled = Boolean(view);
      drawLive();
    },
    task: (task) => detail.take(task),
  },
  (state, why) => {
    streamState = state;
    drawLive();
    if (why) outage("stream", why);
    else if (state === "live") outage("stream", "");
  },
);
const detail = new Detail(stream);

function troubleText({ reason, since }) {
  return since === null ? t("outage.never", { reason }) : t("outage", { reason, time: clock(since, "medium") });
}

function drawLive() {
  const stale = streamState === "live" && troubled;
  byId("live").textContent = t(stale ? "stale" : streamState);
  byId("live").className = stale ? "stale" : streamState === "live" ? "on" : "";
}

function drawQueue() {
  states(queue, list.state, (state) => choose(state, linked ? { conditions: {} } : {}));
  kinds(queue.kinds, (conditions) => link("open", conditions));
  if (mayAct) byId("pause").textContent = t(queue.paused ? "resume" : "pause");
}

/** Show the list that the address names, or else the first state that has tasks. */
async function first() {
  const named = listed(LISTED, CONDITIONS);
  const state = named?.state ?? FIRST.find((one) => queue?.counts[one]) ?? "due";
  await list.choose(state, named ?? { conditions: {}, sort: "" });
  if (queue) drawQueue();
}

/** Show a list that the reader has chosen: the address has it, and the page moves to it. */
async function choose(state, filter = {}) {
  if (filter.conditions) linked = false;
  const chosen = list.choose(state, filter);
  put(list);
  byId("tasks").scrollIntoView();
  await attempted(chosen);
  if (queue) drawQueue();
  byId("tasks").scrollIntoView(); // what was above it may have changed its height
}

function link(state, conditions) {
  choose(state, { conditions });
  linked = true;
}

async function attempted(promise) {
  try {
    if ((await promise) !== false) outage("list", "");
  } catch (error) {
    outage("list", t("outage.list", { error: error.message }));
  }
}

async function group() {
  try {
    groups(await read("api/groups"), (one) => {
      const { state, ...conditions } = queryOfGroup(one);
      link(state, conditions);
    });
  } catch (error) {
    notice(t("not_done", { error: error.message }), { bad: true });
  }
}

onDone((id) => {
  attempted(list.changed(id));
  if (byId("groups").hasChildNodes()) group();
  if (!stream.following) stream.once();
});
setInterval(() => stream.following && attempted(list.refresh()), LIST_PERIOD);
setInterval(tick, 1000);

byId("only-read").hidden = mayAct;
byId("all-queues").hidden = !byId("all-queues").getAttribute("href");
for (const button of document.querySelectorAll("button.act")) {
  if (!mayAct) button.remove();
}
byId("pause")?.addEventListener("click", () => steer(queue?.paused));
conditionsForm((conditions) => choose(list.state ?? "due", { text: list.text, conditions }));
byId("more").addEventListener("click", () => attempted(list.more()));
byId("group").addEventListener("click", group);
byId("hold").addEventListener("click", (event) => {
  const held = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", held);
  stream.hold(held);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  choose(list.state ?? "due", { text: byId("text").value.trim() });
});
window.addEventListener("popstate", () => {
  if (queue && !shows(list)) attempted(first());
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, dialog")) return;
  event.preventDefault();
  byId("text").select();
});

stream.follow();
detail.follow();
