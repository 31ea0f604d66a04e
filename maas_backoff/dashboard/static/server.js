// What the page asks of the server: a stream of events while somebody looks, single reads, and actions.

const AGAIN = 3000; // ms until the next attempt, when the server has refused a stream
const SLOW = 2000; // ms after which it is said that there is no stream: every five minutes there is a new one

export async function read(path, query = {}) {
  return answer(await fetch(`${path}?${new URLSearchParams(query)}`));
}

export async function post(path, query) {
  return answer(await fetch(`${path}?${new URLSearchParams(query)}`, { method: "POST" }));
}

async function answer(response) {
  if (response.ok) return response.json();
  const text = await response.text();
  let told = text || response.statusText;
  try {
    told = JSON.parse(text).error;
  } catch {
    // Somebody else's answer, of a proxy perhaps: its text has to do.
  }
  const hint = response.status === 401 ? " Reload the page to log in." : "";
  const error = new Error(`${typeof told === "string" ? told : JSON.stringify(told)}.${hint}`);
  error.status = response.status;
  throw error;
}

/** One stream of server-sent events for the whole page; none while nobody looks, or it is held. */
export class Stream {
  /** `parts`: what to call with which event's data. `told` is called with the state of the connection, and why. */
  constructor(parts, told) {
    this.parts = parts;
    this.told = told;
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
      this.told(this.held ? "Updates are held" : "Not shown");
    } else if (!this.source) {
      this.open();
    }
  }

  /** Read everything, once: what an action, or a click, asks for while updates are held. */
  async once() {
    try {
      for (const [name, value] of Object.entries(await read("api/snapshot"))) this.parts[name](value);
      if (this.task !== null) this.parts.task(await read("api/task", { id: this.task }));
    } catch (error) {
      if (error.status === 404) this.parts.task(null);
      else this.told("Updates are held", error.message);
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
    this.slow ??= setTimeout(() => this.told("Connecting…"), SLOW);
    if (source.readyState !== EventSource.CLOSED || source !== this.source) return; // it tries by itself
    this.close();
    this.timer = setTimeout(() => this.follow(), AGAIN);
    try {
      const response = await fetch(source.url); // a stream does not tell why it is refused
      if (response.ok) await response.body.cancel();
      else await answer(response);
    } catch (error) {
      if (!this.source && !this.held) this.told("Connecting…", error.message);
    }
  }

  opened() {
    clearTimeout(this.slow);
    this.slow = null;
    this.told("Live");
  }

  close() {
    clearTimeout(this.timer);
    clearTimeout(this.slow);
    this.slow = null;
    this.source?.close();
    this.source = null;
  }
}
