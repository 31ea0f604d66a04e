// Numbers, times and spans as people read them.

const whole = new Intl.NumberFormat("en");

export const number = (value) => whole.format(value);

/** A duration in seconds, in two or three figures. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${Number((seconds / size).toPrecision(3))} ${unit}`;
  }
  return `${Number(seconds.toPrecision(3))} s`;
}

/** A moment, in whole units from now. */
export function ago(iso) {
  if (!iso) return "–";
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  const size = Math.abs(seconds);
  const [unit, length] = size < 90 ? ["s", 1] : size < 5400 ? ["min", 60] : size < 129600 ? ["h", 3600] : ["d", 86400];
  const text = `${Math.round(size / length)} ${unit}`;
  return seconds > 0 ? `in ${text}` : `${text} ago`;
}

/** A moment in the reader's own time zone, to the second. */
export function moment(iso) {
  return iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "–";
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
}

export const gib = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} GiB`;
export const tasks = (value) => (value === 1 ? "1 task" : `${number(value)} tasks`);
