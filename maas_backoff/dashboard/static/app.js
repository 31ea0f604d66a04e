// The page: it passes each event of the stream to the part of the page that shows it.

import { byId } from "./dom.js";
import { mayAct, onDone, steer } from "./actions.js";
import { Charts, upcoming } from "./charts.js";
import { Detail } from "./detail.js";
import { setClock, tick } from "./format.js";
import { List, conditionsForm } from "./list.js";
import { clear, notice } from "./notice.js";
import { errors, gpuMemory, gpus, kinds, shares, states, workers } from "./overview.js";
import { Stream } from "./server.js";

const LIST_PERIOD = 3000; // ms between two reads of the list
const FIRST = ["processing", "due", "gpu", "scheduled", "failed", "completed"]; // the list shows the first state that has tasks

const list = new List();
const charts = new Charts(byId("throughput"), byId("latency"));
let queue = null;
let troubled = false;

const stream = new Stream(
  {
    clock: setClock,
    queue(view) {
      queue = view;
      if (list.state === null) choose(FIRST.find((state) => queue.counts[state]) ?? "due");
      drawQueue();
    },
    shares,
    workers: (view) => workers(view, (worker) => choose("processing", { conditions: { worker } })),
    gpus,
    upcoming: (view) => upcoming(byId("upcoming"), view, (ahead) => choose("scheduled", { ahead })),
    history(view) {
      charts.take(view);
      errors(view.recent, listFailing);
      gpuMemory(view.recent.gpu_memory);
    },
    trouble(text) {
      if (text) notice(`The numbers are out of date: ${text}`, { bad: true, kind: "trouble" });
      else if (troubled) notice("The server answers again.");
      troubled = Boolean(text);
    },
    task: (task) => detail.take(task),
  },
  (state, why) => {
    byId("live").textContent = state;
    byId("live").className = state === "Live" ? "on" : "";
    if (why) notice(why, { bad: true, kind: "stream" });
    else if (state === "Live") clear("stream");
  },
);
const detail = new Detail(stream);

function drawQueue() {
  states(queue, list.state, (state) => choose(state));
  kinds(queue.kinds);
  if (mayAct) byId("pause").textContent = queue.paused ? "Resume queue" : "Pause queue";
}

async function choose(state, filter = {}) {
  await attempted(list.choose(state, filter));
  if (queue) drawQueue();
  if (filter.text || filter.ahead || filter.conditions?.worker) byId("tasks").scrollIntoView();
}

/** List the failed tasks with an error; if there are none, the tasks that wait for a retry after this error. */
async function listFailing(type) {
  await choose("failed", { text: type });
  if (!list.tasks.length) await choose("scheduled", { text: type });
}

async function attempted(promise) {
  try {
    if ((await promise) !== false) clear("list");
  } catch (error) {
    notice(`The list is out of date: ${error.message}`, { bad: true, kind: "list" });
  }
}

onDone((id) => {
  attempted(list.changed(id));
  if (!stream.following) stream.once();
});
setInterval(() => stream.following && attempted(list.refresh()), LIST_PERIOD);
setInterval(tick, 1000);

byId("only-read").hidden = mayAct;
for (const button of document.querySelectorAll("button.act")) {
  if (!mayAct) button.remove();
}
byId("pause")?.addEventListener("click", () => steer(queue?.paused));
conditionsForm((conditions) => choose(list.state ?? "due", { text: list.text, conditions }));
byId("more").addEventListener("click", () => attempted(list.more()));
byId("hold").addEventListener("click", (event) => {
  const held = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", held);
  stream.hold(held);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  choose(list.state ?? "due", { text: byId("text").value.trim() });
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, dialog")) return;
  event.preventDefault();
  byId("text").select();
});

stream.follow();
detail.follow();
