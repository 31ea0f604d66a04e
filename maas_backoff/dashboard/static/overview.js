// The upper half of the page: counts, GPUs, workers, errors.

import { h, byId, show } from "./dom.js";
import { gib, number, span, tasks } from "./format.js";

export const STATES = [
  ["due", "due"],
  ["gpu", "wait for a GPU"],
  ["scheduled", "scheduled"],
  ["processing", "processing"],
  ["completed", "completed"],
  ["failed", "failed"],
  ["cancelled", "cancelled"],
];

const MOST_KINDS = 20; // in one line of words

/** Show the counts by state, each as a button that lists its tasks. */
export function states(queue, chosen, choose) {
  const age = queue.oldest > 0 ? `oldest due for ${span(queue.oldest)}` : "";
  const notes = { due: age, gpu: queue.unfit ? `${number(queue.unfit)} fit no device` : queue.counts.due ? "" : age };
  show(
    byId("states"),
    STATES.map(([state, name]) =>
      h(
        "button",
        { type: "button", class: `state ${state}`, "data-key": state, "aria-pressed": state === chosen, onclick: () => choose(state) },
        h("strong", {}, number(queue.counts[state])),
        h("span", {}, name),
        notes[state] && queue.counts[state] ? h("small", {}, notes[state]) : null,
      ),
    ),
  );
  show(byId("reason"), queue.reason);
  byId("reason").classList.toggle("warn", queue.paused || queue.paused_tenants > 0 || queue.kinds.some((kind) => kind.paused) || queue.unfit > 0 || (queue.counts.due + queue.counts.gpu > 0 && queue.counts.processing === 0));
}

/** Show the kinds that have due tasks or are paused. */
export function kinds(all) {
  const told = all.filter((kind) => kind.due || kind.paused);
  const words = told.slice(0, MOST_KINDS).map((kind) => `${kind.name}: ${number(kind.due)} due${kind.paused ? ", paused" : ""}`);
  if (told.length > MOST_KINDS) words.push(`and ${number(told.length - MOST_KINDS)} more`);
  byId("kinds").hidden = !told.length;
  show(byId("kinds"), `Kinds of tasks: ${words.join(" · ")}`);
}

/** Show the tenants and the limits with most waiting tasks, in words. */
export function shares({ tenants, limits }) {
  inWords("tenants", "Tenants", tenants, tenant);
  inWords("limits", "Limits", limits, limit);
}

function inWords(id, title, { count, first }, words) {
  const more = count > first.length ? [`and ${number(count - first.length)} more`] : [];
  byId(id).hidden = !count;
  show(byId(id), `${title}: ${[...first.map(words), ...more].join(" · ")}`);
}

function tenant({ name, waiting, weight, paused }) {
  const share = weight === 1 ? "" : `, weight ${weight}`;
  return `${name}: ${tasks(waiting)} waiting${share}${paused ? ", paused" : ""}`;
}

function limit({ name, in_use, most, shut, waiting_tasks, is_class, rates }) {
  const facts = [];
  const use = most === null ? `${number(in_use)} in use` : `${number(in_use)} of ${number(most)} in use`;
  if (is_class) facts.push(most === null ? "each name has its own" : `${number(most)} at once for each name`);
  else facts.push(use);
  facts.push(...rates);
  const why = shut.slice(shut.indexOf(": ") + 2);
  if (shut && why !== use) facts.push(why);
  if (waiting_tasks) facts.push(`${tasks(waiting_tasks)} waiting`);
  return `${name}: ${facts.join(", ")}`;
}

export function gpus({ count, first }) {
  byId("gpu-section").hidden = !count;
  show(byId("gpus"), first.map(device), more(count - first.length));
}

/** Show how much memory attempts used and asked for, and a hint if the two differ much. */
export function gpuMemory(memory) {
  const both = ([half, most]) => `${gib(half)} (p50), ${gib(most)} (p99)`;
  const line = memory && `Last hour: ${number(memory.count)} attempts used ${both(memory.used)}, and asked for ${both(memory.asked)}.`;
  show(byId("gpu-memory"), line && h("p", { class: "words" }, line), memory?.hint ? h("p", { class: "words warn" }, memory.hint) : null);
}

function more(count) {
  return count > 0 ? h("p", { class: "words" }, `and ${number(count)} more`) : null;
}

function device(gpu) {
  const words = `${gib(gpu.other_processes_gb)} used by other processes, ${gib(gpu.reserved_gb)} reserved, ${gib(gpu.room_gb)} to give, of ${gib(gpu.total_gb)}`;
  const bar = h("div", { class: "memory", role: "img", "aria-label": words });
  for (const [kind, amount] of [["others", gpu.other_processes_gb], ["reserved", gpu.reserved_gb]]) {
    const part = h("span", { class: kind });
    part.style.setProperty("width", `${Math.min(100, (100 * amount) / (gpu.total_gb || 1))}%`);
    bar.append(part);
  }
  const facts = [
    gpu.utilization === null ? null : `${Math.round(gpu.utilization)} % busy`,
    gpu.temperature === null ? null : `${Math.round(gpu.temperature)} °C`,
    gpu.host,
    gpu.stale ? "not read for a while" : null,
  ];
  return h(
    "article",
    { class: "gpu", "data-key": gpu.uuid },
    h("h3", {}, `${gpu.index} ${gpu.name}`, " ", h("span", { class: gpu.healthy ? "ok" : "bad" }, gpu.health)),
    bar,
    h("p", { class: "words" }, words),
    h("p", { class: "words" }, facts.filter(Boolean).join(" · ")),
    gpu.tasks.length
      ? h(
          "details",
          { "data-key": `gpu-${gpu.uuid}` },
          h("summary", {}, tasks(gpu.task_count)),
          h("ul", { class: "plain" }, gpu.tasks.map((task) => reservation(task, gpu))),
          more(gpu.task_count - gpu.tasks.length),
        )
      : null,
  );
}

function reservation(task, gpu) {
  const link = taskLink(task.task_id, `gpu-${gpu.uuid}-${task.task_id}`);
  return h("li", {}, link, ` ${gib(task.memory_gb)}, queue ${task.queue}`);
}

/** Return a link that opens a task: its address has the id. */
export function taskLink(id, key) {
  return h("a", { href: `#task=${encodeURIComponent(id)}`, "data-key": key, title: id, class: "id" }, id);
}

/** Show the workers, each with a button that lists its running tasks. */
export function workers({ count, first }, list) {
  if (!count) {
    show(byId("workers"), h("p", { class: "words" }, "No worker is running."));
    return;
  }
  const rows = first.map((worker) => ({
    key: worker.name,
    cells: [
      h("button", { type: "button", class: "link", "data-key": `worker-${worker.name}`, onclick: () => list(worker.name) }, worker.name),
      worker.host, worker.pid, `${worker.running} of ${worker.slots}`, span(worker.lag), worker.gpus,
      worker.version,
      worker.trouble || (worker.quiet ? "quiet: claims nothing" : "ready"),
    ],
  }));
  show(
    byId("workers"),
    table("Live workers", ["worker", "host", "pid", "slots taken", "loop lag", "GPUs", "version", "state"], rows),
    more(count - first.length),
  );
}

/** Show the types of errors with their numbers of attempts, each as a button that lists the failed tasks. */
export function errors(recent, list) {
  const rows = recent.errors.map(([type, count]) => ({
    key: type,
    cells: [h("button", { type: "button", class: "link", "data-key": `error-${type}`, onclick: () => list(type) }, type), number(count)],
  }));
  show(
    byId("errors"),
    rows.length ? table("Types of errors", ["error", "attempts"], rows) : h("p", { class: "words" }, "None."),
  );
}

/** Return a table of rows with a key and cells. Cells have the name of their column: a narrow screen shows rows as cards. */
export function table(caption, head, rows, about = {}) {
  return h(
    "table",
    about,
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(({ key, cells }) => h("tr", { "data-key": key }, cells.map((cell, at) => h("td", { "data-head": head[at] }, cell))))),
  );
}
