// Notices: the result of an action, or the reason why the page is out of date.

import { byId } from "./dom.js";

/** Show a notice until the next one; `clear` removes a notice by its `kind`. */
export function notice(text, { bad = false, kind = "" } = {}) {
  const place = byId("detail").open ? byId("detail-notice") : byId("notice");
  place.textContent = text;
  place.className = bad ? "notice bad" : "notice";
  place.dataset.kind = kind;
}

export function clear(kind) {
  for (const place of [byId("notice"), byId("detail-notice")]) {
    if (place.dataset.kind === kind && place.textContent) {
      place.textContent = "";
      place.className = "";
    }
  }
}
