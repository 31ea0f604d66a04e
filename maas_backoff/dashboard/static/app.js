// The page: what comes in by the stream, and where it goes.

import { byId } from "./dom.js";
import { mayAct, notice, onDone, retryAll, steer } from "./actions.js";
import { latency, throughput, upcoming } from "./charts.js";
import { Detail } from "./detail.js";
import { List } from "./list.js";
import { errors, gpus, states, workers } from "./overview.js";
import { Stream } from "./stream.js";

const LIST_PERIOD = 3000; // ms between two reads of the list
const FIRST = ["processing", "due", "gpu", "scheduled", "failed", "completed"]; // what is listed: the first there are any of

const openTask = (id) => detail.open(id);
const list = new List(openTask);
let queue = null;
let listed = 0;
let troubled = false;

const stream = new Stream(
  {
    queue(told) {
      queue = told;
      if (list.state === null) choose(FIRST.find((state) => queue.counts[state]) ?? "due");
      drawQueue();
      if (performance.now() - listed > LIST_PERIOD) refreshList();
    },
    workers,
    gpus: (found) => gpus(found, openTask),
    upcoming: (told) => upcoming(byId("upcoming"), told, (ahead) => choose("scheduled", { ahead })),
    history(told) {
      throughput(byId("throughput"), told);
      latency(byId("latency"), told);
      errors(told.recent, (type) => choose("failed", { text: type }));
    },
    trouble(text) {
      if (text) notice(`The numbers are old: ${text}`, true);
      else if (troubled) notice("The server answers again.");
      troubled = Boolean(text);
    },
    task: (task) => detail.take(task),
  },
  (state) => {
    byId("live").textContent = state;
    byId("live").className = state === "Live" ? "on" : "";
  },
);
const detail = new Detail(stream);

function drawQueue() {
  states(queue, list.state, (state) => choose(state));
  if (mayAct) byId("pause").textContent = queue.paused ? "Resume queue" : "Pause queue";
}

async function choose(state, what = {}) {
  await attempted(list.choose(state, what));
  if (queue) drawQueue();
  if (what.text || what.ahead) byId("tasks").scrollIntoView();
}

async function refreshList() {
  listed = performance.now();
  await attempted(list.refresh());
}

async function attempted(promise) {
  try {
    await promise;
  } catch (error) {
    notice(error.message, true);
  }
}

onDone(() => attempted(list.reload()));

for (const button of document.querySelectorAll("button.act")) {
  if (!mayAct) button.remove();
}
byId("pause")?.addEventListener("click", () => steer(queue?.paused));
byId("retry-all")?.addEventListener("click", () => retryAll(list.text, queue?.counts.failed ?? 0));
byId("more").addEventListener("click", () => attempted(list.more()));
byId("hold").addEventListener("click", (event) => {
  const held = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", held);
  stream.hold(held);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  choose(list.state, { text });
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, dialog")) return;
  event.preventDefault();
  byId("text").focus();
});

stream.follow();
detail.follow();
