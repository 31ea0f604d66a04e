// The choice of one kind or one tenant for the charts.

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { read } from "./server.js";

const PERIOD = 5000; // ms between two reads of the chosen name
const NAMES_PERIOD = 60000; // ms between two reads of all names

/** Fills a select with the kinds and tenants that had most ends and retries, and passes the history of the chosen one on. */
export class Breakdown {
  /** `take` gets a history, or null for that of all tasks; `failed` an error, or null after a success. */
  constructor(place, select, take, failed) {
    Object.assign(this, { place, select, take, failed });
    select.addEventListener("change", () => this.#read());
    setInterval(() => document.hidden || !select.value || this.#read(), PERIOD);
    setInterval(() => document.hidden || this.#names(), NAMES_PERIOD);
    this.#names();
  }

  async #names() {
    try {
      const found = await read("api/breakdown");
      const chosen = this.select.value;
      const groups = [["kind", t("diagrams.kinds")], ["tenant", t("diagrams.tenants")]].map(([by, label]) => {
        const values = found[by].map((name) => `${by} ${name}`);
        if (chosen.startsWith(`${by} `) && !values.includes(chosen)) values.push(chosen); // it had no attempt of late
        return h("optgroup", { label, hidden: !values.length }, values.map((value) => new Option(value.slice(by.length + 1), value)));
      });
      this.select.replaceChildren(new Option(t("diagrams.all"), ""), ...groups);
      this.select.value = chosen;
      this.place.hidden = this.select.options.length === 1;
    } catch {
      // The next read may succeed; the page tells that the server does not answer.
    }
  }

  async #read() {
    const chosen = this.select.value;
    if (!chosen) {
      this.take(null);
      this.failed(null);
      return;
    }
    const [by, name] = chosen.split(" ");
    try {
      const history = await read("api/breakdown", { by, name });
      if (this.select.value === chosen) this.take(history);
      this.failed(null);
    } catch (error) {
      this.failed(error);
    }
  }
}
