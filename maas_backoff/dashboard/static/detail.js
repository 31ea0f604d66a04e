// One task: all that is known of it, as it changes.

import { h, byId, show } from "./dom.js";
import { ago, gib, moment } from "./format.js";
import { taskButtons } from "./actions.js";
import { errorText } from "./list.js";

const payloads = document.documentElement.dataset.payloads === "shown";

export class Detail {
  constructor(stream) {
    this.stream = stream;
    this.dialog = byId("detail");
    this.dialog.addEventListener("close", () => this.left());
    window.addEventListener("hashchange", () => this.follow());
  }

  /** Show the task that the address names, or none. */
  follow() {
    const id = location.hash.startsWith("#task=") ? decoded(location.hash.slice(6)) : null;
    if (id === null) this.dialog.close();
    else this.open(id);
  }

  open(id) {
    if (this.id === id) return;
    this.id = id;
    history.replaceState(null, "", `#task=${encodeURIComponent(id)}`);
    this.dialog.replaceChildren(this.head(), h("div", { id: "about" }, h("p", { class: "words" }, "Reading…")));
    if (!this.dialog.open) this.dialog.showModal();
    this.stream.watch(id);
  }

  head() {
    return h(
      "div",
      { class: "bar" },
      h("h2", { id: "detail-title" }, "Task ", h("span", { class: "id" }, this.id)),
      h("button", { type: "button", "aria-label": "Close", onclick: () => this.dialog.close() }, "Close"),
    );
  }

  left() {
    this.id = null;
    history.replaceState(null, "", location.pathname + location.search);
    this.stream.watch(null);
  }

  take(task) {
    const place = byId("about");
    if (this.id === null || !place) return;
    if (task === null) show(place, h("p", { class: "words" }, "There is no such task, or not any more."));
    else if (task.task_id === this.id) show(place, about(task));
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function about(task) {
  const facts = [
    ["state", task.status],
    ["waits for", task.waiting_for],
    ["error", errorText(task.error) && h("span", { class: "text" }, errorText(task.error))],
    ["attempt", task.attempt],
    ["retries used", `${task.retry_count} of ${task.max_retry_count}`],
    ["lost, snoozed, out of memory", [task.lost_count, task.snooze_count, task.oom_count].some(Boolean) && `${task.lost_count}, ${task.snooze_count}, ${task.oom_count}`],
    ["priority", task.priority],
    ["due", task.next_execute_time && both(task.next_execute_time)],
    ["created", both(task.created_at)],
    ["started", task.started_at && both(task.started_at)],
    ["ended", task.finished_at && both(task.finished_at)],
    ["GPU", task.gpu && `${task.gpu.uuid}, ${gib(task.gpu.memory_gb)}`],
    ["params", payloads ? json(task.task_params) : "not shown here"],
    ["result", task.status === "completed" && (payloads ? json(task.result) : "not shown here")],
  ];
  return [
    h("div", { class: "buttons" }, taskButtons(task, "detail")),
    progress(task),
    h("dl", {}, facts.filter(([, value]) => value || value === 0).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    task.attempts.length ? h("h3", {}, "Failed attempts") : null,
    h("ol", { class: "attempts" }, task.attempts.toReversed().map(attempt)),
  ];
}

function progress(task) {
  if (task.status !== "processing") return null;
  const label = `${task.progress} %${task.progress_message ? ` ${task.progress_message}` : ""}`;
  return h("p", { class: "progress" }, h("progress", { max: 100, value: task.progress, "aria-label": "Progress" }), " ", h("span", { class: "text" }, label));
}

const both = (iso) => h("time", { datetime: iso }, `${moment(iso)} (${ago(iso)})`);
const json = (value) => h("pre", { tabindex: 0 }, JSON.stringify(value, null, 2));

function attempt(one) {
  const took = (Date.parse(one.ended_at) - Date.parse(one.started_at)) / 1000;
  return h(
    "li",
    { value: one.number },
    h("p", {}, h("strong", { class: "text" }, errorText(one.error))),
    h("p", { class: "words" }, `${moment(one.started_at)}, ran ${took.toFixed(1)} s, on ${one.worker}`),
    one.traceback
      ? h("details", { "data-key": `attempt-${one.number}` }, h("summary", { "data-key": `traceback-${one.number}` }, "Traceback"), h("pre", { tabindex: 0 }, one.traceback))
      : null,
  );
}
