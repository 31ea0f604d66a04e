// The dialog of one task, kept up to date. The id of the task is in the address: links can open the dialog.

import { h, byId, show } from "./dom.js";
import { gib, joined, moment, span, when } from "./format.js";
import { t } from "./i18n.js";
import { reason } from "./reasons.js";
import { notice, showOutage } from "./notice.js";
import { taskButtons } from "./actions.js";
import { errorText } from "./list.js";

const payloads = document.documentElement.dataset.payloads === "shown";
const { queue } = document.documentElement.dataset;

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
    byId("about").replaceChildren(h("p", { class: "words" }, t("detail.reading")));
    if (!this.dialog.open) this.dialog.showModal();
    showOutage();
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
    if (task === null) show(byId("about"), h("p", { class: "words" }, t("detail.none")));
    else if (task.unreadable) show(byId("about"), h("p", { class: "words" }, t("detail.unreadable", { error: task.unreadable })));
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
  const others = [["lost", task.lost_count], ["snoozed", task.snooze_count], ["oom", task.oom_count]];
  const full = (iso) => iso && when(iso, { full: true });
  const hidden = t("detail.hidden");
  const facts = {
    state: t(task.cancel_reason === "expired" ? "status.expired" : `status.${task.status}`),
    kind: task.kind,
    tenant: task.tenant,
    labels: task.labels.join(", "),
    worker: task.worker,
    waits: reason(task.waiting_for),
    error: error && h("span", { class: "text" }, error),
    attempt: task.attempt,
    retries: t("of", { number: task.retry_count, most: task.max_retry_count }),
    others: joined(others.map(([name, number]) => number && t(`d.${name}`, { number }))),
    priority: task.priority,
    due: full(task.next_execute_time),
    deadline: full(task.deadline),
    created: full(task.created_at),
    started: full(task.started_at),
    ended: full(task.finished_at),
    gpu: task.gpu && t("d.gpu_is", { uuid: task.gpu.uuid, memory: gib(task.gpu.memory_gb) }),
    params: payloads ? json("params", task.task_params) : hidden,
    result: task.status === "completed" && (payloads ? json("result", task.result) : hidden),
  };
  const known = Object.entries(facts).filter(([, value]) => value || value === 0);
  return [
    h("div", { class: "buttons", "data-key": "buttons" }, taskButtons(task, "detail"), copyButtons(task)),
    progress(task),
    h("dl", { "data-key": "facts" }, known.map(([name, value]) => [h("dt", { "data-key": name }, t(`d.${name}`)), h("dd", { "data-key": `${name}-is` }, value)])),
    h("h3", { "data-key": "h-timeline" }, t("timeline")),
    h("ol", { class: "plain timeline", "data-key": "timeline" }, timeline(task).map((text, at) => h("li", { "data-key": `time-${at}` }, text))),
    task.attempts.length ? h("h3", { "data-key": "h-attempts" }, t("attempts")) : null,
    h("ol", { class: "attempts", "data-key": "attempts" }, [...task.attempts].reverse().map(attempt)),
    task.log.length ? h("h3", { "data-key": "h-log" }, t("log.title")) : null,
    task.log.length ? h("pre", { class: "log", tabindex: 0, role: "region", "aria-label": t("log"), "data-key": "log" }, task.log.map(line).join("\n")) : null,
  ];
}

/** Return the life of a task in words, a step a line: waits, attempts, its end or the next attempt. */
function timeline(task) {
  const steps = [t("timeline.created", { moment: moment(task.created_at) })];
  let since = task.created_at;
  const waited = (until) => {
    const seconds = (Date.parse(until) - Date.parse(since)) / 1000;
    if (seconds > 0) steps.push(t("timeline.waited", { time: span(seconds) }));
  };
  for (const one of task.attempts) {
    waited(one.started_at);
    const time = span((Date.parse(one.ended_at) - Date.parse(one.started_at)) / 1000);
    steps.push(t("timeline.failed", { moment: moment(one.ended_at), number: one.number, time, error: one.error.type }));
    since = one.ended_at;
  }
  if (task.status === "processing" && task.started_at) {
    waited(task.started_at);
    steps.push(t("timeline.runs", { moment: moment(task.started_at), number: task.attempt }));
  } else if (task.status === "completed" && task.started_at) {
    waited(task.started_at);
    const time = span((Date.parse(task.finished_at) - Date.parse(task.started_at)) / 1000);
    steps.push(t("timeline.completed", { moment: moment(task.finished_at), time }));
  } else if (task.finished_at) {
    steps.push(t("timeline.ended", { moment: moment(task.finished_at), state: t(`status.${task.status}`) }));
  } else if (task.next_execute_time) {
    waited(task.next_execute_time);
    steps.push(t("timeline.next", { moment: moment(task.next_execute_time), number: task.attempt + 1 }));
  }
  return [...steps, ...task.retries_ahead.map(retry)];
}

/** Return when a retry would come, in words: at a moment if the attempts before take no time, else after a failure. */
function retry({ number, shortest, longest, earliest, latest }) {
  const isExact = shortest === longest;
  const delays = { number, time: span(shortest), most: span(longest) };
  if (earliest === null || latest === null) return t(isExact ? "timeline.retry_after" : "timeline.retry_after_range", delays);
  return t(isExact ? "timeline.retry" : "timeline.retry_range", { ...delays, from: moment(earliest), to: moment(latest) });
}

function copyButtons(task) {
  const texts = { id: () => task.task_id, json: () => JSON.stringify(task, null, 2) };
  if (payloads) texts.command = () => `maas-backoff create --queue ${quoted(queue)} --id ${quoted(task.task_id)} --priority ${task.priority} ${quoted(JSON.stringify(task.task_params))}`;
  return Object.entries(texts).map(([name, text]) =>
    h("button", { type: "button", "data-key": `copy-${name}-${JSON.stringify(task).length}`, onclick: () => copy(text()) }, t(`copy.${name}`)),
  );
}

/** Return a text as one word of a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // there is none over plain HTTP
    notice(t("copy.done"));
  } catch {
    notice(t("copy.failed"), { bad: true });
  }
}

const wholeError = (error) => (error && error.code != null ? t("d.code", { error: errorText(error), code: error.code }) : errorText(error));

function progress(task) {
  if (task.status !== "processing") return null;
  const label = t("why.progress", { number: task.progress, text: task.progress_message ?? "" }).trim();
  const bar = h("progress", { max: 100, value: task.progress, "aria-label": t("progress") });
  return h("p", { class: "progress", "data-key": "progress" }, bar, " ", h("span", { class: "text" }, label));
}

const json = (name, value) => h("pre", { tabindex: 0, role: "region", "aria-label": t(`d.${name}`) }, JSON.stringify(value, null, 2));

const line = (one) => t("log.line", { moment: moment(one.at), number: one.attempt, text: one.text });

function attempt(one) {
  const time = span(Number(((Date.parse(one.ended_at) - Date.parse(one.started_at)) / 1000).toFixed(1)));
  const place = t("attempt.line", { moment: moment(one.started_at), time, worker: one.worker });
  const facts = [place, one.gpu && t("attempt.gpu", { gpu: one.gpu }), one.ended_by && t("attempt.ended_by", { option: one.ended_by })];
  return h(
    "li",
    { value: one.number, "data-key": `attempt-${one.number}` },
    h("p", {}, h("strong", { class: "text" }, wholeError(one.error))),
    h("p", { class: "words" }, joined(facts)),
    one.traceback
      ? h("details", {}, h("summary", {}, t("traceback")), h("pre", { tabindex: 0, role: "region", "aria-label": t("traceback.of", { number: one.number }) }, one.traceback))
      : null,
  );
}
