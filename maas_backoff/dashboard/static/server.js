// Requests to the server: a stream of events while the page is visible, single reads, and actions.

import { t } from "./i18n.js";

const AGAIN = 3000; // ms until the next try after the server refused a stream
const SLOW = 2000; // ms after which the page shows that there is no stream; every five minutes the stream is replaced

export async function read(path, query = {}) {
  return answer(await fetch(`${path}?${new URLSearchParams(query)}`));
}

export async function post(path, query) {
  return answer(await fetch(`${path}?${new URLSearchParams(query)}`, { method: "POST" }));
}

async function answer(response) {
  if (response.ok) return response.json();
  const text = await response.text();
  let reason = text || response.statusText;
  try {
    reason = JSON.parse(text).error;
  } catch {
    // The response is not from this library, but perhaps from a proxy: show its text.
  }
  const hint = response.status === 401 ? ` ${t("login")}` : "";
  const error = new Error(`${typeof reason === "string" ? reason : JSON.stringify(reason)}.${hint}`);
  error.status = response.status;
  throw error;
}

/** The stream of server-sent events of the page; closed while the page is hidden or updates are held. */
export class Stream {
  /** `parts` has a function for the data of each event. `report` is called with the key of the stream's state, and a reason. */
  constructor(parts, report) {
    this.parts = parts;
    this.report = report;
    this.task = null;
    this.held = false;
    document.addEventListener("visibilitychange", () => this.follow());
  }

  get following() {
    return Boolean(this.source);
  }

  /** Follow one task as well, or none. */
  watch(task) {
    this.task = task;
    this.close();
    this.follow();
    if (this.held) this.once();
  }

  hold(held) {
    this.held = held;
    this.follow();
  }

  follow() {
    if (document.hidden || this.held) {
      this.close();
      this.report(this.held ? "held" : "not_shown");
    } else if (!this.source) {
      this.open();
    }
  }

  /** Read all parts once, after an action or a click while updates are held. */
  async once() {
    try {
      for (const [name, value] of Object.entries(await read("api/snapshot"))) this.parts[name](value);
      if (this.task !== null) this.parts.task(await read("api/task", { id: this.task }));
    } catch (error) {
      if (error.status === 404) this.parts.task(null);
      else this.report("held", error.message);
    }
  }

  open() {
    const query = this.task === null ? "" : `?task=${encodeURIComponent(this.task)}`;
    const source = new EventSource(`api/events${query}`);
    this.source = source;
    source.addEventListener("open", () => this.opened());
    source.addEventListener("error", () => this.lost(source));
    for (const [name, take] of Object.entries(this.parts)) {
      source.addEventListener(name, (event) => take(JSON.parse(event.data)));
    }
  }

  async lost(source) {
    this.slow ??= setTimeout(() => this.report("connecting"), SLOW);
    if (source.readyState !== EventSource.CLOSED || source !== this.source) return; // the browser reconnects by itself
    this.close();
    this.timer = setTimeout(() => this.follow(), AGAIN);
    try {
      const response = await fetch(source.url); // an EventSource does not show why it was refused
      if (response.ok) await response.body.cancel();
      else await answer(response);
    } catch (error) {
      if (!this.source && !this.held) this.report("connecting", error.message);
    }
  }

  opened() {
    clearTimeout(this.slow);
    this.slow = null;
    this.report("live");
  }

  close() {
    clearTimeout(this.timer);
    clearTimeout(this.slow);
    this.slow = null;
    this.source?.close();
    this.source = null;
  }
}
