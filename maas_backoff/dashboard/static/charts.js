// Charts of an hour as SVG, one column per minute, with the numbers as text below.

import { h, pointed, s, show } from "./dom.js";
import { clock, joined, number, span } from "./format.js";
import { t } from "./i18n.js";

const HEIGHT = 110;

/** The two charts of an hour. A chart does not change while the pointer is on it. */
export class Charts {
  constructor(...places) {
    [throughput, latency].forEach((draw, at) => {
      places[at].addEventListener("pointerleave", () => this.history && draw(places[at], this.history));
    });
    this.places = places;
  }

  /** Draw the history of all tasks, unless one kind or tenant is chosen. */
  take(history) {
    this.all = history;
    if (!this.chosen) this.#draw();
  }

  /** Draw the history of one kind or tenant, or that of all tasks for null. */
  choose(history) {
    const isOther = history?.name !== this.chosen?.name;
    this.chosen = history;
    if (this.history) this.#draw(isOther);
  }

  #draw(isOther = false) {
    this.history = this.chosen ?? this.all;
    const [first, second] = this.places;
    if (isOther || !pointed(first)) throughput(first, this.history);
    if (isOther || !pointed(second)) latency(second, this.history);
  }
}

/** Draw the tasks that completed, failed, or will be retried, by minute. */
function throughput(place, history) {
  const kinds = [
    ["completed", t("chart.completed")],
    ["retried", t("chart.retried")],
    ["failed", t("chart.failed")],
  ];
  const { minutes, recent } = history;
  const counted = (numbers) => joined(kinds.map(([kind, name]) => t("chart.count", { number: number(numbers[kind]), name })));
  const most = Math.max(1, ...minutes.map((minute) => kinds.reduce((sum, [kind]) => sum + minute[kind], 0)));
  const columns = minutes.map((minute) => {
    let top = HEIGHT;
    return kinds.map(([kind]) => {
      const height = (minute[kind] / most) * HEIGHT;
      top -= height;
      return { kind, top, height };
    });
  });
  const words = counted(recent);
  const marks = columns.map((column, at) =>
    column
      .filter(({ height }) => height > 0)
      .map(({ kind, top, height }) =>
        s("rect", { class: kind, x: at * 10 + 1, y: top, width: 8, height: Math.max(height, 1) }),
      ),
  );
  draw(place, {
    words: joined([words, "lost" in recent && t("chart.lost", { number: number(recent.lost) })], "semicolon"),
    top: number(most),
    low: "0",
    marks: marks.flat(),
    minutes,
    describe: counted,
    legend: kinds,
  });
}

/** Draw how long tasks waited after they were due, and how long they ran, on a logarithmic scale. */
function latency(place, history) {
  const { minutes, recent } = history;
  const isAll = "wait" in recent; // of one kind or tenant, only the mean of runs is known
  const lines = isAll
    ? [
        ["run", 1, t("chart.run95")],
        ["run", 0, t("chart.run50")],
        ["wait", 1, t("chart.wait95")],
        ["wait", 0, t("chart.wait50")],
      ]
    : [["run", 0, t("chart.run_mean")]];
  const values = minutes.flatMap((minute) => lines.map(([name, at]) => minute[name][at])).filter((value) => value !== null);
  const low = Math.log10(Math.max(0.0005, Math.min(1, ...values)));
  const high = Math.max(low + 1, Math.log10(Math.max(0.001, ...values)));
  const height = (value) => HEIGHT - 2 - ((Math.log10(Math.max(0.0005, value)) - low) / (high - low)) * (HEIGHT - 4);
  const marks = lines.flatMap(([name, at]) => {
    const about = { class: `${name} ${at ? "p95" : "p50"}` };
    return runs(minutes.map((minute) => minute[name][at])).map((points) =>
      points.length === 1
        ? s("circle", { ...about, cx: points[0][0] * 10 + 5, cy: height(points[0][1]), r: 1.5 })
        : s("polyline", { ...about, points: points.map(([x, y]) => `${x * 10 + 5},${height(y).toFixed(1)}`).join(" ") }),
    );
  });
  const both = (minute, name) => t("chart.pair", { half: span(minute[name][0]), most: span(minute[name][1]) });
  const describe = (minute) =>
    isAll ? t("chart.latency", { wait: both(minute, "wait"), run: both(minute, "run") }) : t("chart.mean", { run: span(minute.run[0]) });
  draw(place, {
    words: describe(recent),
    top: span(10 ** high),
    low: span(10 ** low),
    marks,
    minutes,
    describe,
    legend: lines.map(([name, at, text]) => [`${name} ${at ? "p95" : "p50"}`, text]),
  });
}

/** Return the points of each stretch of values without a gap. */
function runs(values) {
  const found = [[]];
  values.forEach((value, at) => {
    if (value === null) found.push([]);
    else found.at(-1).push([at, value]);
  });
  return found.filter((points) => points.length);
}

function draw(place, { words, top, low, marks, minutes, describe, legend }) {
  const line = h("p", { class: "words" }, t("chart.hour_line", { words }));
  const width = minutes.length * 10;
  const svg = s(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": t("chart.hour", { words }) },
    s("line", { class: "grid", x1: 0, x2: width, y1: 0.5, y2: 0.5 }),
    s("line", { class: "grid", x1: 0, x2: width, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    marks,
  );
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const minute = minutes[Math.min(minutes.length - 1, Math.floor(((event.clientX - box.left) / box.width) * minutes.length))];
    line.textContent = t("chart.minute", { time: clock(minute.start), words: describe(minute) });
  });
  place.replaceChildren(
    h("span", { class: "top" }, top),
    h("span", { class: "low" }, low),
    svg,
    h("p", { class: "axis" }, h("span", {}, t("chart.begin")), h("span", {}, t("now"))),
    line,
    h("ul", { class: "legend" }, legend.map(([kind, text]) => h("li", { class: kind }, text))),
  );
}

/** Draw when delayed tasks and retries are due: a button for each step, which lists its tasks. */
export function upcoming(place, { step, counts }, list) {
  const most = Math.max(1, ...counts);
  const sum = counts.reduce((total, count) => total + count, 0);
  const buttons = counts.map((count, at) => {
    const bar = h("span", { class: "column" });
    bar.style.setProperty("height", `${count ? Math.max(3, (count / most) * 100) : 0}%`);
    const from = span(at * step);
    return h(
      "button",
      {
        type: "button",
        "data-key": `step-${at}`,
        disabled: !count,
        title: t("upcoming.title", { number: number(count), time: from }),
        "aria-label": t(at ? "upcoming.list" : "upcoming.list_now", { number: number(count), time: from }),
        onclick: () => list(at * step),
      },
      bar,
    );
  });
  show(
    place,
    h("div", { class: "columns" }, buttons),
    h("p", { class: "axis" }, h("span", {}, t("now")), h("span", {}, t("upcoming.in", { time: span(step * counts.length) }))),
    h("p", { class: "words" }, sum ? t("upcoming.sum", { number: number(sum), most: number(most), time: span(step) }) : t("upcoming.none")),
  );
}
