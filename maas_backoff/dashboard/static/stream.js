// One stream of server-sent events for the whole page; none while nobody looks.

const AGAIN = 3000; // ms until the next attempt, when the server has refused one

export class Stream {
  /** `parts`: what to call with which event's data. `told` is called with the state of the connection, in words. */
  constructor(parts, told) {
    this.parts = parts;
    this.told = told;
    this.task = null;
    this.held = false;
    document.addEventListener("visibilitychange", () => this.follow());
  }

  /** Follow one task as well, or none. */
  watch(task) {
    this.task = task;
    this.close();
    this.follow();
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

  open() {
    const query = this.task === null ? "" : `?task=${encodeURIComponent(this.task)}`;
    const source = new EventSource(`api/events${query}`);
    this.source = source;
    source.addEventListener("open", () => this.told("Live"));
    source.addEventListener("error", () => {
      this.told("Connecting…");
      if (source.readyState !== EventSource.CLOSED) return; // it tries by itself
      this.close();
      this.timer = setTimeout(() => this.follow(), AGAIN);
    });
    for (const [name, take] of Object.entries(this.parts)) {
      source.addEventListener(name, (event) => take(JSON.parse(event.data)));
    }
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }
}
