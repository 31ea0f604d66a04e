// The dialog of one task, kept up to date. The id of the task is in the address: links can open the dialog.

import { h, byId, show } from "./dom.js";
import { gib, moment, when } from "./format.js";
import { taskButtons } from "./actions.js";
import { errorText } from "./list.js";

const payloads = document.documentElement.dataset.payloads === "shown";

export class Detail {
  constructor(stream) {
    this.stream = stream;
    this.id = null;
    this.dialog = byId("detail");
    this.dialog.addEventListener("close", () => this.closed());
    byId("detail-close").addEventListener("click", () => this.dialog.close());
    window.addEventListener("hashchange", () => this.follow());
  }

  /** Show the task that the address names, or none. */
  follow() {
    const id = location.hash.startsWith("#task=") ? decoded(location.hash.slice(6)) : null;
    if (id === null) this.leave();
    else if (id !== this.id) this.open(id);
  }

  open(id) {
    this.id = id;
    byId("detail-id").textContent = id;
    byId("detail-notice").textContent = "";
    byId("detail-notice").className = "";
    byId("about").replaceChildren(h("p", { class: "words" }, "Reading…"));
    if (!this.dialog.open) this.dialog.showModal();
    this.stream.watch(id);
  }

  leave() {
    if (this.id === null) return;
    this.id = null;
    this.dialog.close();
    this.stream.watch(null);
  }

  /** Remove the id from the address after a close of the dialog. The event is late: another task may be open by now. */
  closed() {
    if (this.id === null || this.dialog.open) return;
    this.leave();
    history.pushState(null, "", location.pathname + location.search);
  }

  take(task) {
    if (this.id === null) return;
    if (task === null) show(byId("about"), h("p", { class: "words" }, "There is no such task, or not any more."));
    else if (task.unreadable) show(byId("about"), h("p", { class: "words" }, `It cannot be shown: ${task.unreadable}.`));
    else if (task.task_id === this.id) show(byId("about"), about(task));
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
  const error = wholeError(task.error);
  const others = [task.lost_count, task.snooze_count, task.oom_count];
  const facts = {
    state: task.cancel_reason === "expired" ? `${task.status}: expired` : task.status,
    kind: task.kind,
    tenant: task.tenant,
    labels: task.labels.join(", "),
    worker: task.worker,
    "waits for": task.waiting_for,
    error: error && h("span", { class: "text" }, error),
    attempt: task.attempt,
    "retries used": `${task.retry_count} of ${task.max_retry_count}`,
    "lost, snoozed, out of memory": others.some(Boolean) && others.join(", "),
    priority: task.priority,
    due: task.next_execute_time && when(task.next_execute_time, { whole: true }),
    deadline: task.deadline && when(task.deadline, { whole: true }),
    created: when(task.created_at, { whole: true }),
    started: task.started_at && when(task.started_at, { whole: true }),
    ended: task.finished_at && when(task.finished_at, { whole: true }),
    GPU: task.gpu && `${task.gpu.uuid}, ${gib(task.gpu.memory_gb)}`,
    params: payloads ? json("params", task.task_params) : "not shown here",
    result: task.status === "completed" && (payloads ? json("result", task.result) : "not shown here"),
  };
  const known = Object.entries(facts).filter(([, value]) => value || value === 0);
  return [
    h("div", { class: "buttons", "data-key": "buttons" }, taskButtons(task, "detail")),
    progress(task),
    h("dl", { "data-key": "facts" }, known.map(([name, value]) => [h("dt", { "data-key": name }, name), h("dd", { "data-key": `${name}-is` }, value)])),
    task.attempts.length ? h("h3", { "data-key": "h-attempts" }, "Failed attempts") : null,
    h("ol", { class: "attempts", "data-key": "attempts" }, [...task.attempts].reverse().map(attempt)),
    task.log.length ? h("h3", { "data-key": "h-log" }, "Last lines of the log") : null,
    task.log.length ? h("pre", { class: "log", tabindex: 0, role: "region", "aria-label": "Log", "data-key": "log" }, task.log.map(line).join("\n")) : null,
  ];
}

const wholeError = (error) => (error && error.code != null ? `${errorText(error)} (code ${error.code})` : errorText(error));

function progress(task) {
  if (task.status !== "processing") return null;
  const label = `${task.progress} %${task.progress_message ? ` ${task.progress_message}` : ""}`;
  const bar = h("progress", { max: 100, value: task.progress, "aria-label": "Progress" });
  return h("p", { class: "progress", "data-key": "progress" }, bar, " ", h("span", { class: "text" }, label));
}

const json = (name, value) => h("pre", { tabindex: 0, role: "region", "aria-label": name }, JSON.stringify(value, null, 2));

const line = (one) => `${moment(one.at)}  attempt ${one.attempt}  ${one.text}`;

function attempt(one) {
  const took = (Date.parse(one.ended_at) - Date.parse(one.started_at)) / 1000;
  return h(
    "li",
    { value: one.number, "data-key": `attempt-${one.number}` },
    h("p", {}, h("strong", { class: "text" }, wholeError(one.error))),
    h("p", { class: "words" }, `${moment(one.started_at)}, ran ${took.toFixed(1)} s, on ${one.worker}${one.gpu ? `, GPU ${one.gpu}` : ""}${one.ended_by ? `; ended by ${one.ended_by}` : ""}`),
    one.traceback
      ? h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: 0, role: "region", "aria-label": `Traceback of attempt ${one.number}` }, one.traceback))
      : null,
  );
}
