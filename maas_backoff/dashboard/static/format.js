// Numbers, times and durations as text for people.

import { h } from "./dom.js";
import { language, many, t } from "./i18n.js";

const whole = new Intl.NumberFormat(language);

export const number = (value) => whole.format(value);
export const tasks = (count) => many("tasks", count);

let ahead = 0; // ms by which the server's clock is ahead of this one

/** Set the time of the server, in seconds. */
export function setClock(seconds) {
  ahead = seconds * 1000 - Date.now();
}

export const now = () => Date.now() + ahead;

/** Return a duration in seconds as text with two or three figures. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return t("unit.ms", { number: Number((seconds * 1000).toPrecision(3)) });
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return t(`unit.${unit}`, { number: Number((seconds / size).toPrecision(3)) });
  }
  return t("unit.s", { number: Number(seconds.toPrecision(3)) });
}

function ago(iso) {
  const seconds = (Date.parse(iso) - now()) / 1000;
  const size = Math.abs(seconds);
  const [unit, length] = size < 90 ? ["s", 1] : size < 5400 ? ["min", 60] : size < 129600 ? ["h", 3600] : ["d", 86400];
  const time = t(`unit.${unit}`, { number: Math.round(size / length) });
  return t(seconds > 0 ? "time.in" : "time.ago", { time });
}

/** Return a moment as an element that `tick` updates: "due in 5 s"; with `full` also in the reader's time zone. */
export function when(iso, { word = "plain", full = false } = {}) {
  return h("time", { datetime: iso, title: moment(iso), "data-word": word, "data-full": full }, text(iso, word, full));
}

function text(iso, word, full) {
  return full ? t("time.whole", { moment: moment(iso), time: ago(iso) }) : t(`time.${word}`, { time: ago(iso) });
}

/** Update all moments on the page. */
export function tick() {
  for (const time of document.querySelectorAll("time")) {
    const fresh = text(time.dateTime, time.dataset.word, "full" in time.dataset);
    if (time.textContent !== fresh) time.firstChild.data = fresh;
  }
}

/** Return a moment in the reader's time zone, to the second. */
export function moment(iso) {
  return new Date(iso).toLocaleString(language, { dateStyle: "medium", timeStyle: "medium" });
}

export function clock(seconds, timeStyle = "short") {
  return new Date(seconds * 1000).toLocaleTimeString(language, { timeStyle });
}

export const gib = (value) => t("unit.gib", { number: value < 10 ? value.toFixed(1) : Math.round(value) });
export const joined = (parts, by = "comma") => parts.filter(Boolean).join(t(by));
