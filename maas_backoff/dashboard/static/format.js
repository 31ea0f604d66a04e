// Numbers, times and durations as text for people.

import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en");

export const number = (value) => whole.format(value);

let ahead = 0; // ms by which the server's clock is ahead of this one

/** Set the time of the server, in seconds. */
export function setClock(seconds) {
  ahead = seconds * 1000 - Date.now();
}

export const now = () => Date.now() + ahead;

/** Return a duration in seconds as text with two or three figures. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${Number((seconds / size).toPrecision(3))} ${unit}`;
  }
  return `${Number(seconds.toPrecision(3))} s`;
}

function ago(iso) {
  const seconds = (Date.parse(iso) - now()) / 1000;
  const size = Math.abs(seconds);
  const [unit, length] = size < 90 ? ["s", 1] : size < 5400 ? ["min", 60] : size < 129600 ? ["h", 3600] : ["d", 86400];
  const text = `${Math.round(size / length)} ${unit}`;
  return seconds > 0 ? `in ${text}` : `${text} ago`;
}

/** Return a moment as an element that `tick` updates: "due in 5 s"; with `whole` also in the reader's time zone. */
export function when(iso, { word = "", whole = false } = {}) {
  const before = [word, whole && moment(iso)].filter(Boolean).join(" ");
  return h("time", { datetime: iso, title: moment(iso), "data-before": before, "data-whole": whole }, text(iso, before, whole));
}

function text(iso, before, inBrackets) {
  return `${before} ${inBrackets ? `(${ago(iso)})` : ago(iso)}`.trim();
}

/** Update all moments on the page. */
export function tick() {
  for (const time of document.querySelectorAll("time")) {
    const fresh = text(time.dateTime, time.dataset.before, "whole" in time.dataset);
    if (time.textContent !== fresh) time.firstChild.data = fresh;
  }
}

/** Return a moment in the reader's time zone, to the second. */
export function moment(iso) {
  return new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
}

export const gib = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} GiB`;
export const tasks = (value) => (value === 1 ? "1 task" : `${number(value)} tasks`);
