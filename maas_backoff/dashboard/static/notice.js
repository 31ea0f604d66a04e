// What has come of an action, or keeps the page from being right: in words, where the reader looks.

import { byId } from "./dom.js";

/** Say something until something else is said; `kind` of trouble that `clear` can take away. */
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
