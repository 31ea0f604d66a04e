// The list of tasks: those in one state, or the results of a search, page by page.

import { h, byId, pointed, show } from "./dom.js";
import { joined, number, now, span, when } from "./format.js";
import { t } from "./i18n.js";
import { reason } from "./reasons.js";
import { STATES, taskLink } from "./overview.js";
import { manyButtons, mayAct, taskButtons } from "./actions.js";
import { read } from "./server.js";
import { table } from "./table.js";

const MOST_ROWS = 500; // more than anyone reads
const MOST_AGAIN = 20; // rows under the pointer that are read one by one
const QUERIES = {
  due: { state: "pending", waiting_for: "slot" },
  gpu: { state: "pending", waiting_for: "gpu" },
  open: { state: "pending,processing,failed" },
};

/** The states that a list can have: those of the tiles, and those of tasks that still have the error they had. */
export const LISTED = [...STATES, "open"];

const { payloads, errors } = document.documentElement.dataset;

/** The conditions of the form, as the server and the command line name them. */
export const CONDITIONS = Object.fromEntries(
  ["kind", "tenant", "label", "id_prefix", "error", "error_type", "worker", "gpu", "created_from", "created_to", "ended_from", "ended_to", "params"]
    .filter((name) => (name !== "params" || payloads === "shown") && (name !== "error" || errors === "shown"))
    .map((name) => [name, t(`f.${name}`)]),
);

/** The columns to sort by, with the value of a task. */
const SORTS = {
  id: (task) => task.task_id,
  attempt: (task) => task.attempt,
  created: (task) => Date.parse(task.created_at),
  duration: (task) => duration(task) ?? -1,
  worker: (task) => task.worker ?? "",
  when: (task) => Date.parse(task.finished_at ?? task.started_at ?? task.next_execute_time) || 0,
};

/** Make the form of conditions; call `changed` when a person submits or clears it. */
export function conditionsForm(changed) {
  const form = byId("conditions");
  byId("text-label").textContent = t(errors === "shown" ? "search.all" : "search.ids");
  const fields = Object.entries(CONDITIONS).map(([name, label]) => h("label", {}, label, h("input", { name, maxlength: 200, autocomplete: "off", spellcheck: "false" })));
  form.append(...fields, h("button", {}, t("filter")), h("button", { type: "reset" }, t("clear")));
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
  constructor(changed) {
    this.changedBy = changed; // called when the reader sorts
    this.state = null;
    this.conditions = {};
    this.chosen = new Set();
    this.text = "";
    this.ahead = 0; // seconds from now on, for scheduled tasks
    this.sort = "";
    this.tasks = [];
    this.cursor = null;
    this.pages = 0;
    this.asked = 0;
  }

  /** List the tasks in a state, those due in `ahead` seconds or later, or those that contain a text or match conditions. */
  async choose(state, { text = "", ahead = 0, conditions = this.conditions, sort = this.sort } = {}) {
    Object.assign(this, { state, text, ahead, conditions, sort });
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
      const task = await again(id);
      this.tasks = this.tasks.map((one) => (one.task_id === id ? (task ?? { ...one, status: "gone" }) : one));
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
      const left = onlyRows ? await this.left(page) : new Map();
      if (mine !== this.asked) return false; // another list was chosen meanwhile
      this.take(page, cursor, onlyRows, left);
      return true;
    } finally {
      if (mine === this.asked) this.busy = false;
    }
  }

  /** Read those rows that are shown and that have left the list. */
  async left(page) {
    const listed = new Set(page.tasks.map((task) => task.task_id));
    const gone = this.tasks.filter((task) => !listed.has(task.task_id) && task.status !== "gone").slice(0, MOST_AGAIN);
    return new Map(await Promise.all(gone.map(async (task) => [task.task_id, (await again(task.task_id)) ?? { ...task, status: "gone" }])));
  }

  take(page, cursor, onlyRows, left) {
    if (onlyRows) {
      const fresh = new Map([...left, ...page.tasks.map((task) => [task.task_id, task])]);
      this.tasks = this.tasks.map((task) => fresh.get(task.task_id) ?? task);
    } else {
      this.tasks = cursor === null ? page.tasks : [...this.tasks, ...page.tasks];
      this.pages = cursor === null ? 1 : this.pages + 1;
      this.cursor = page.cursor;
    }
    byId("still").textContent = onlyRows ? t("list.still") : "";
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
    const about = { type: "checkbox", "data-key": `box-${id}`, "aria-label": t("list.select", { id }), checked: this.chosen.has(id) };
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

  /** Return the tasks in the order that the reader has chosen; the server's order if none. */
  sorted() {
    const value = SORTS[this.sort.replace(/^-/, "")];
    if (!value) return this.tasks;
    const sign = this.sort.startsWith("-") ? -1 : 1;
    return [...this.tasks].sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
  }

  sortBy(sort) {
    this.sort = sort;
    this.draw();
    this.changedBy();
  }

  draw() {
    const state = t(`state.${this.state}`);
    const told = Object.entries(this.conditions).map(([name, value]) => t("f.told", { name: CONDITIONS[name], value }));
    const title = joined([this.text ? t("list.with", { state, text: this.text }) : state, ...told], "semicolon");
    byId("h-tasks").textContent = t("list.title", { title });
    const named = ["kind", "tenant", "labels", "worker"].filter((name) => this.tasks.some((task) => task[name]?.length));
    const head = [...(mayAct ? ["select"] : []), "id", ...named, "state", "attempt", "retries", "created", "duration", "when", "why", "do"];
    const rows = this.sorted().map((task) => ({
      key: `row-${task.task_id}`,
      cells: [
        ...(mayAct ? [this.box(task.task_id)] : []),
        taskLink(task.task_id, `task-${task.task_id}`),
        ...named.map((name) => [task[name]].flat().join(", ") || "–"),
        t(`status.${task.status}`),
        task.attempt,
        t("of", { number: task.retry_count, most: task.max_retry_count }),
        when(task.created_at),
        span(duration(task)),
        moment(task),
        h("span", { class: "why" }, why(task)),
        h("span", { class: "buttons" }, taskButtons(task, "row")),
      ],
    }));
    const none = this.text || told.length ? t("list.no_match", { state }) : t("list.none");
    const order = { sortable: Object.keys(SORTS), downFirst: ["attempt", "duration"], sort: this.sort, sorted: (sort) => this.sortBy(sort) };
    const nothing = this.cursor === null ? none : t("list.no_match_yet", { state, number: number(2000 * this.pages) });
    show(
      byId("list"),
      rows.length ? table(t("h.tasks"), head, rows, { class: "tasks" }, order) : h("p", { class: "words" }, nothing),
    );
    const full = this.cursor !== null && this.tasks.length >= MOST_ROWS;
    byId("most").textContent = full ? t("list.most", { number: number(this.tasks.length) }) : "";
    byId("more").hidden = this.cursor === null || full;
    this.drawMany();
  }
}

/** Read a task; null if it is not there. */
async function again(id) {
  try {
    return await read("api/task", { id });
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Return the seconds that the running or last attempt took; null if there was none. */
function duration(task) {
  if (!task.started_at) return null;
  if (task.finished_at) return (Date.parse(task.finished_at) - Date.parse(task.started_at)) / 1000;
  return task.status === "processing" ? Math.max(0, Math.round((now() - Date.parse(task.started_at)) / 1000)) : null;
}

function moment(task) {
  if (task.finished_at) return when(task.finished_at, { word: "ended" });
  if (task.status === "processing") return task.started_at ? when(task.started_at, { word: "started" }) : "–";
  return task.next_execute_time ? when(task.next_execute_time, { word: "due" }) : "–";
}

function why(task) {
  const failed = task.error ? errorText(task.error) : "";
  if (task.status === "processing") return t("why.progress", { number: task.progress, text: task.progress_message ?? "" }).trim();
  if (task.cancel_reason === "expired") return failed ? t("why.expired_after", { error: failed }) : t("why.expired");
  const after = failed && t("why.after", { error: failed });
  if (!task.waiting_for) return failed;
  return task.waiting_for.startsWith("due at") ? after : joined([reason(task.waiting_for), after], "semicolon");
}

export function errorText(error) {
  return error ? joined([error.type, error.message], "colon") : "";
}
