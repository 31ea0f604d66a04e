// Notices: the result of an action, and beside it the reason why the page is out of date.

import { byId } from "./dom.js";

function place(name) {
  return byId(byId("detail").open ? `detail-${name}` : name);
}

function say(element, text, bad) {
  if (element.textContent !== text) element.textContent = text;
  element.className = text ? (bad ? "notice bad" : "notice") : "";
}

/** Show the result of an action until the next one. */
export function notice(text, { bad = false } = {}) {
  say(place("notice"), text, bad);
}

const outages = new Map();

/** Show why the page is out of date, or for an empty reason that this trouble is over. */
export function outage(kind, text) {
  if (text) outages.set(kind, text);
  else outages.delete(kind);
  showOutage();
}

/** Show the reasons where the reader looks: in the open dialog, or else on the page. */
export function showOutage() {
  const [first = ""] = outages.values();
  say(byId("outage"), first, true);
  say(byId("detail-outage"), first, true);
}
