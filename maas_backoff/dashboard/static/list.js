// The list of tasks: those in one state, or the results of a search, page by page.

import { h, byId, pointed, show } from "./dom.js";
import { when } from "./format.js";
import { STATES, table, taskLink } from "./overview.js";
import { mayAct, taskButtons } from "./actions.js";
import { read } from "./server.js";

const MOST_ROWS = 500; // more than anyone reads
const NAMES = Object.fromEntries(STATES);
const QUERIES = {
  due: { state: "pending", waiting_for: "slot" },
  gpu: { state: "pending", waiting_for: "gpu" },
};

export class List {
  constructor() {
    this.state = null;
    this.text = "";
    this.ahead = 0; // seconds from now on, for scheduled tasks
    this.tasks = [];
    this.cursor = null;
    this.pages = 0;
    this.asked = 0;
  }

  /** List the tasks in a state, those due in `ahead` seconds or later, or those that contain a text. */
  async choose(state, { text = "", ahead = 0 } = {}) {
    Object.assign(this, { state, text, ahead });
    byId("text").value = text;
    await this.load(null);
  }

  /** Read the list again; return whether it was read. Search results and further pages are not read again. */
  async refresh() {
    if (this.state === null || this.busy || this.pages > 1 || this.text) return false;
    return this.load(null, { onlyRows: pointed(byId("list")) });
  }

  async more() {
    await this.load(this.cursor);
  }

  /** Read one task, or for null all tasks, again after an action. */
  async changed(id) {
    const known = this.tasks.some((task) => task.task_id === id);
    if (known) {
      const task = await read("api/task", { id });
      this.tasks = this.tasks.map((one) => (one.task_id === id ? task : one));
      this.draw();
    } else if (id === null) {
      await this.load(null);
    }
  }

  async load(cursor, { onlyRows = false } = {}) {
    const mine = ++this.asked;
    this.busy = true;
    try {
      const page = await read("api/tasks", this.query(cursor));
      if (mine !== this.asked) return false; // another list was chosen meanwhile
      this.take(page, cursor, onlyRows);
      return true;
    } finally {
      if (mine === this.asked) this.busy = false;
    }
  }

  take(page, cursor, onlyRows) {
    if (onlyRows) {
      const fresh = new Map(page.tasks.map((task) => [task.task_id, task]));
      this.tasks = this.tasks.map((task) => fresh.get(task.task_id) ?? task);
    } else {
      this.tasks = cursor === null ? page.tasks : [...this.tasks, ...page.tasks];
      this.pages = cursor === null ? 1 : this.pages + 1;
      this.cursor = page.cursor;
    }
    this.draw();
  }

  query(cursor) {
    const query = { state: this.state, ...QUERIES[this.state] };
    query.limit = matchMedia("(max-width: 640px)").matches ? 20 : 50;
    if (this.state === "scheduled") Object.assign(query, { state: "pending", due_in: this.ahead });
    if (this.text) query.text = this.text;
    if (cursor !== null) query.cursor = cursor;
    return query;
  }

  draw() {
    const title = this.text ? `${NAMES[this.state]}, with “${this.text}”` : NAMES[this.state];
    byId("h-tasks").textContent = `Tasks: ${title}`;
    const named = ["kind", "tenant"].filter((name) => this.tasks.some((task) => task[name]));
    const head = ["id", ...named, "state", "attempt", "retries", "when", "why", "do"];
    const rows = this.tasks.map((task) => ({
      key: `row-${task.task_id}`,
      cells: [
        taskLink(task.task_id, `task-${task.task_id}`),
        ...named.map((name) => task[name] || "–"),
        task.status,
        task.attempt,
        `${task.retry_count} of ${task.max_retry_count}`,
        moment(task),
        h("span", { class: "why" }, why(task)),
        h("span", { class: "buttons" }, taskButtons(task, "row")),
      ],
    }));
    const where = this.text ? `None of ${NAMES[this.state]}` : "There are none";
    const none = this.cursor === null ? `${where}.` : `${where} among those that were looked at.`;
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

function moment(task) {
  if (task.finished_at) return when(task.finished_at, { word: "ended" });
  if (task.status === "processing") return task.started_at ? when(task.started_at, { word: "started" }) : "–";
  return when(task.next_execute_time, { word: "due" });
}

function why(task) {
  const failed = task.error ? errorText(task.error) : "";
  if (task.status === "processing") return `${task.progress} % ${task.progress_message ?? ""}`.trim();
  if (task.cancel_reason === "expired") return failed ? `expired, after ${failed}` : "expired";
  if (!task.waiting_for) return failed;
  if (!task.waiting_for.startsWith("due at")) return task.waiting_for;
  return failed && `after ${failed}`;
}

export function errorText(error) {
  if (!error) return "";
  return error.message ? `${error.type}: ${error.message}` : error.type;
}
