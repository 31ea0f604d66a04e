// The list of tasks: those in one state, or the results of a search, page by page.

import { h, byId, pointed, show } from "./dom.js";
import { when } from "./format.js";
import { STATES, table, taskLink } from "./overview.js";
import { manyButtons, mayAct, taskButtons } from "./actions.js";
import { read } from "./server.js";

const MOST_ROWS = 500; // more than anyone reads
const NAMES = Object.fromEntries(STATES);
const QUERIES = {
  due: { state: "pending", waiting_for: "slot" },
  gpu: { state: "pending", waiting_for: "gpu" },
};

/** The conditions of the form, by the names that the server and the command line have for them. */
const CONDITIONS = {
  kind: "Kind",
  tenant: "Tenant",
  label: "Label",
  id_prefix: "Beginning of the id",
  error: "Text in the error",
  error_type: "Type of the error",
  worker: "Worker or host",
  gpu: "GPU",
  created_from: "Created from (2h: before now)",
  created_to: "Created to",
  ended_from: "Ended from",
  ended_to: "Ended to",
};
if (document.documentElement.dataset.payloads === "shown") CONDITIONS.params = "Text in the params";

/** Make the form of conditions; call `changed` when a person submits or clears it. */
export function conditionsForm(changed) {
  const form = byId("conditions");
  const fields = Object.entries(CONDITIONS).map(([name, label]) => h("label", {}, label, h("input", { name, maxlength: 200, autocomplete: "off", spellcheck: "false" })));
  form.append(...fields, h("button", {}, "Filter"), h("button", { type: "reset" }, "Clear"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changed(conditions());
  });
  form.addEventListener("reset", () => setTimeout(() => changed({})));
}

function conditions() {
  return Object.fromEntries([...new FormData(byId("conditions"))].filter(([, value]) => value.trim()).map(([name, value]) => [name, value.trim()]));
}

export class List {
  constructor() {
    this.state = null;
    this.conditions = {};
    this.chosen = new Set();
    this.text = "";
    this.ahead = 0; // seconds from now on, for scheduled tasks
    this.tasks = [];
    this.cursor = null;
    this.pages = 0;
    this.asked = 0;
  }

  /** List the tasks in a state, those due in `ahead` seconds or later, or those that contain a text or match conditions. */
  async choose(state, { text = "", ahead = 0, conditions = this.conditions } = {}) {
    Object.assign(this, { state, text, ahead, conditions });
    this.chosen.clear();
    for (const box of byId("list").querySelectorAll('input[type="checkbox"]')) box.checked = false;
    byId("text").value = text;
    for (const input of byId("conditions").querySelectorAll("input")) input.value = conditions[input.name] ?? "";
    if (Object.keys(conditions).length) byId("filters").open = true;
    await this.load(null);
  }

  /** Read the list again; return whether it was read. Search results and further pages are not read again. */
  async refresh() {
    if (this.state === null || this.busy || this.pages > 1 || this.text || Object.keys(this.conditions).length) return false;
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
    const query = { ...this.selection(), limit: matchMedia("(max-width: 640px)").matches ? 20 : 50 };
    if (cursor !== null) query.cursor = cursor;
    return query;
  }

  /** Return the query that selects all tasks of this list. */
  selection() {
    const query = { ...this.conditions, state: this.state, ...QUERIES[this.state] };
    if (this.state === "scheduled") Object.assign(query, { state: "pending", due_in: this.ahead });
    if (this.text) query.text = this.text;
    return query;
  }

  /** Return a box that chooses a task for an action on many. */
  box(id) {
    const about = { type: "checkbox", "data-key": `box-${id}`, "aria-label": `Select ${id}`, checked: this.chosen.has(id) };
    return h("input", { ...about, onchange: (event) => this.select(id, event.target.checked) });
  }

  select(id, chosen) {
    if (chosen) this.chosen.add(id);
    else this.chosen.delete(id);
    this.drawMany();
  }

  drawMany() {
    const shown = this.tasks.map((task) => task.task_id).filter((id) => this.chosen.has(id));
    show(byId("many"), this.tasks.length ? manyButtons(this.state, shown, this.selection()) : []);
  }

  draw() {
    const told = Object.entries(this.conditions).map(([name, value]) => `${CONDITIONS[name]}: ${value}`);
    const title = [this.text ? `${NAMES[this.state]}, with “${this.text}”` : NAMES[this.state], ...told].join("; ");
    byId("h-tasks").textContent = `Tasks: ${title}`;
    const named = ["kind", "tenant", "labels", "worker"].filter((name) => this.tasks.some((task) => task[name]?.length));
    const head = [...(mayAct ? ["select"] : []), "id", ...named, "state", "attempt", "retries", "when", "why", "do"];
    const rows = this.tasks.map((task) => ({
      key: `row-${task.task_id}`,
      cells: [
        ...(mayAct ? [this.box(task.task_id)] : []),
        taskLink(task.task_id, `task-${task.task_id}`),
        ...named.map((name) => [task[name]].flat().join(", ") || "–"),
        task.status,
        task.attempt,
        `${task.retry_count} of ${task.max_retry_count}`,
        moment(task),
        h("span", { class: "why" }, why(task)),
        h("span", { class: "buttons" }, taskButtons(task, "row")),
      ],
    }));
    const where = this.text || told.length ? `None of ${NAMES[this.state]}` : "There are none";
    const none = this.cursor === null ? `${where}.` : `${where} among those that were looked at.`;
    show(
      byId("list"),
      rows.length ? table("Tasks", head, rows, { class: "tasks" }) : h("p", { class: "words" }, none),
    );
    byId("more").hidden = this.cursor === null || this.tasks.length >= MOST_ROWS;
    this.drawMany();
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
