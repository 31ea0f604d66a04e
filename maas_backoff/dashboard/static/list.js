// The list of tasks: one state, or what a search finds, page by page.

import { h, byId, show } from "./dom.js";
import { ago, moment } from "./format.js";
import { STATES, table, taskLink } from "./overview.js";
import { mayAct, read, taskButtons } from "./actions.js";

const MOST_ROWS = 500; // more than anybody reads
const NAMES = Object.fromEntries(STATES);

export class List {
  constructor(openTask) {
    this.openTask = openTask;
    this.state = null;
    this.text = "";
    this.ahead = 0; // seconds, of what is scheduled
    this.tasks = [];
    this.cursor = null;
    this.asked = 0;
  }

  /** Show another state, what becomes due so many seconds from now, or what has a text in it. */
  async choose(state, { text = "", ahead = 0 } = {}) {
    Object.assign(this, { state, text, ahead });
    byId("text").value = text;
    await this.reload();
  }

  /** Read the first page again, unless more have been asked for: they would jump. */
  async refresh() {
    if (this.tasks.length <= 50 && !this.busy) await this.reload();
  }

  async reload() {
    await this.load(null);
  }

  async more() {
    await this.load(this.cursor);
  }

  async load(cursor) {
    const mine = ++this.asked;
    this.busy = true;
    try {
      const page = await read("api/tasks", this.query(cursor));
      if (mine !== this.asked) return; // somebody has chosen something else meanwhile
      // What is due comes first: with the first that is not, the list of due ones ends.
      const end = this.state === "due" ? page.tasks.findIndex((task) => task.waiting_for?.startsWith("due at")) : -1;
      const tasks = end < 0 ? page.tasks : page.tasks.slice(0, end);
      this.tasks = cursor === null ? tasks : [...this.tasks, ...tasks];
      this.cursor = end < 0 ? page.cursor : null;
      this.draw();
    } finally {
      if (mine === this.asked) this.busy = false;
    }
  }

  query(cursor) {
    const query = { state: ["due", "gpu", "scheduled"].includes(this.state) ? "pending" : this.state };
    query.limit = matchMedia("(max-width: 640px)").matches ? 20 : 50;
    if (this.state === "scheduled") query.due_from = Math.floor(Date.now() / 1000) + this.ahead;
    if (this.state === "gpu") query.waiting_for = "gpu";
    if (this.text) query.text = this.text;
    if (cursor !== null) query.cursor = cursor;
    return query;
  }

  draw() {
    const what = this.text ? `${NAMES[this.state]}, with “${this.text}”` : NAMES[this.state];
    byId("h-tasks").textContent = `Tasks: ${what}`;
    const head = ["id", "state", "attempt", "retries", "when", "why", "do"];
    const rows = this.tasks.map((task) => [
      taskLink(task.task_id, this.openTask, `task-${task.task_id}`),
      task.status,
      task.attempt,
      `${task.retry_count} of ${task.max_retry_count}`,
      when(task),
      h("span", { class: "why" }, why(task)),
      h("span", { class: "buttons" }, taskButtons(task, "row")),
    ]);
    const none = this.cursor === null ? "There are none." : "None among those that were looked at.";
    show(
      byId("list"),
      rows.length ? table("Tasks", head, rows, { class: "tasks" }) : h("p", { class: "words" }, none),
    );
    byId("more").hidden = this.cursor === null || this.tasks.length >= MOST_ROWS;
    if (!mayAct) return;
    const all = byId("retry-all");
    all.hidden = this.state !== "failed" || !this.tasks.length;
    all.textContent = this.text ? "Retry all that have this in their error" : "Retry all failed";
  }
}

function when(task) {
  const [name, at] = task.finished_at
    ? ["ended", task.finished_at]
    : task.status === "processing"
      ? ["started", task.started_at]
      : ["due", task.next_execute_time];
  return at ? h("time", { datetime: at, title: moment(at) }, `${name} ${ago(at)}`) : "–";
}

export function why(task) {
  if (task.waiting_for) return task.waiting_for.startsWith("due at") ? last(task) : task.waiting_for;
  if (task.status === "processing") return `${task.progress} % ${task.progress_message ?? ""}`.trim();
  return errorText(task.error);
}

function last(task) {
  return task.error ? `after ${errorText(task.error)}` : "";
}

export function errorText(error) {
  if (!error) return "";
  return error.message ? `${error.type}: ${error.message}` : error.type;
}
