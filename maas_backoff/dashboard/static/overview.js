// The upper half of the page: counts, GPUs, workers, errors.

import { h, byId, show } from "./dom.js";
import { gpuButtons, groupButton, mayAct, workerButton } from "./actions.js";
import { gib, joined, moment, number, span, tasks, when } from "./format.js";
import { many, t } from "./i18n.js";
import { reason } from "./reasons.js";
import { table } from "./table.js";

export const STATES = ["due", "gpu", "scheduled", "processing", "completed", "failed", "cancelled"];

const MOST_KINDS = 20; // in one line of words
const MARK = "\u0000"; // in place of the list in a text

/** Show the counts by state, each as a button that lists its tasks. */
export function states(queue, chosen, choose) {
  const age = queue.oldest > 0 ? t("oldest", { age: span(queue.oldest) }) : "";
  const room = !queue.paused && queue.gpu_room && t("gpu_room", { number: number(queue.gpu_room) });
  const unfit = queue.unfit && t("unfit", { number: number(queue.unfit) });
  const notes = { due: age, gpu: joined([unfit, room]) || (queue.counts.due ? "" : age) };
  const titles = { due: t(queue.counts.gpu ? "due_no_gpu" : "state.due") }; // both tiles together are all due tasks
  show(
    byId("states"),
    STATES.map((state) =>
      h(
        "button",
        { type: "button", class: `state ${state}`, "data-key": state, "aria-pressed": state === chosen, onclick: () => choose(state) },
        h("strong", {}, number(queue.counts[state])),
        h("span", {}, titles[state] ?? t(`state.${state}`)),
        notes[state] && queue.counts[state] ? h("small", {}, notes[state]) : null,
      ),
    ),
  );
  const since = pause(queue, "queue.paused_since", "queue.paused_by");
  show(byId("reason"), joined([reason(queue.reason), since], "space"));
  byId("reason").classList.toggle("warn", queue.paused || queue.paused_tenants > 0 || queue.kinds.some((kind) => kind.paused_since) || queue.unfit > 0 || (queue.counts.due + queue.counts.gpu > 0 && queue.counts.processing === 0));
}

/** Return in words since when something is paused, and by whom; null: not paused. */
function pause({ paused_since: since, paused_by: by }, plain = "paused_since", named = "paused_by") {
  return since && t(by ? named : plain, { moment: moment(since), by });
}

/** Show the kinds that have due tasks or are paused, each as a button that lists its tasks. */
export function kinds(all, list) {
  const told = all.filter((kind) => kind.due || kind.paused_since);
  const words = (kind) => joined([t("kind", { name: kind.name, number: number(kind.due) }), pause(kind)]);
  inWords("kinds", { count: told.length, first: told.slice(0, MOST_KINDS) }, words, (name) => list({ kind: name }));
}

/** Show the tenants and the limits with most waiting tasks, each tenant as a button that lists its tasks. */
export function shares({ tenants, limits }, list) {
  inWords("tenants", tenants, tenant, (name) => list({ tenant: name }));
  inWords("limits", limits, limit, null);
}

function inWords(id, { count, first }, words, list) {
  const named = (one) => (list ? h("button", { type: "button", class: "link", "data-key": `${id}-${one.name}`, onclick: () => list(one.name) }, words(one)) : words(one));
  const all = first.map(named);
  if (count > first.length) all.push(t("and_more", { number: number(count - first.length) }));
  const [before, after] = t(id, { list: MARK }).split(MARK);
  byId(id).hidden = !count;
  show(byId(id), before, all.map((one, at) => (at ? [t("separator"), one] : one)), after);
}

function tenant({ name, waiting, weight, ...rest }) {
  const share = weight !== 1 && t("weight", { number: weight });
  return t("share", { name, facts: joined([many("waiting", waiting), share, pause(rest)]) });
}

function limit({ name, in_use, most, shut, waiting_tasks, is_class, rates }) {
  const facts = [];
  if (is_class) facts.push(most === null ? t("each_name") : t("at_once", { number: number(most) }));
  else facts.push(t(most === null ? "in_use" : "in_use_of", { number: number(in_use), most: number(most ?? 0) }));
  facts.push(...rates);
  const why = shut.slice(shut.indexOf(": ") + 2);
  if (shut && !/^[\d,]+ of [\d,]+ in use$/.test(why)) facts.push(why); // else it says the same
  if (waiting_tasks) facts.push(many("waiting", waiting_tasks));
  return t("share", { name, facts: joined(facts) });
}

/** Show the GPUs, each with a button that lists the tasks that wait, run or failed on it. */
export function gpus({ count, first }, list) {
  byId("gpu-section").hidden = !count;
  show(byId("gpus"), first.map((gpu) => device(gpu, list)), more(count - first.length));
}

/** Show how much memory attempts used and asked for, and a hint if the two differ much. */
export function gpuMemory(memory) {
  const both = ([half, most]) => t("gpu.quantiles", { half: gib(half), most: gib(most) });
  const line = memory && t("gpu.memory", { number: number(memory.count), used: both(memory.used), asked: both(memory.asked) });
  show(byId("gpu-memory"), line && h("p", { class: "words" }, line), memory?.hint ? h("p", { class: "words warn", lang: "en" }, memory.hint) : null);
}

function more(count) {
  return count > 0 ? h("p", { class: "words" }, t("and_more", { number: number(count) })) : null;
}

function device(gpu, list) {
  const [others, reserved, room, total] = [gpu.other_processes_gb, gpu.reserved_gb, gpu.room_gb, gpu.total_gb].map(gib);
  const words = t("gpu.words", { others, reserved, room, total });
  const bar = h("div", { class: "memory", role: "img", "aria-label": words });
  for (const [kind, amount] of [["others", gpu.other_processes_gb], ["reserved", gpu.reserved_gb]]) {
    const part = h("span", { class: kind });
    part.style.setProperty("width", `${Math.min(100, (100 * amount) / (gpu.total_gb || 1))}%`);
    bar.append(part);
  }
  const facts = [
    gpu.utilization === null ? null : t("gpu.busy", { number: Math.round(gpu.utilization) }),
    gpu.temperature === null ? null : t("unit.celsius", { number: Math.round(gpu.temperature) }),
    gpu.host,
    gpu.stale ? t("gpu.stale") : null,
  ];
  const named = { type: "button", class: "link", title: gpu.uuid, "data-key": `list-${gpu.uuid}`, onclick: () => list(gpu.uuid) };
  return h(
    "article",
    { class: "gpu", "data-key": gpu.uuid },
    h("h3", {}, h("button", named, `${gpu.index} ${gpu.name}`), " ", h("span", { class: gpu.healthy ? "ok" : "bad" }, gpu.health === "ok" ? t("gpu.ok") : reason(gpu.health))),
    bar,
    h("p", { class: "words" }, words),
    h("p", { class: "words" }, joined(facts, "separator")),
    gpuButtons(gpu),
    gpu.tasks.length
      ? h(
          "details",
          { "data-key": `gpu-${gpu.uuid}` },
          h("summary", {}, tasks(gpu.task_count)),
          h("ul", { class: "plain" }, gpu.tasks.map((task) => reservation(task, gpu))),
          more(gpu.task_count - gpu.tasks.length),
        )
      : null,
  );
}

function reservation(task, gpu) {
  const link = taskLink(task.task_id, `gpu-${gpu.uuid}-${task.task_id}`);
  return h("li", {}, link, " ", t("gpu.task", { memory: gib(task.memory_gb), queue: task.queue }));
}

/** Return a link that opens a task: its address has the id. */
export function taskLink(id, key) {
  return h("a", { href: `#task=${encodeURIComponent(id)}`, "data-key": key, title: id, class: "id" }, id);
}

/** Show the workers, each with a button that lists its running tasks. */
export function workers({ count, first }, list) {
  if (!count) {
    show(byId("workers"), h("p", { class: "words" }, t("worker.none")));
    return;
  }
  const rows = first.map((worker) => ({
    key: worker.name,
    cells: [
      h("button", { type: "button", class: "link", "data-key": `worker-${worker.name}`, onclick: () => list(worker.name) }, worker.name),
      worker.host, worker.pid, t("of", { number: worker.running, most: worker.slots }), span(worker.lag), worker.gpus,
      worker.version,
      reason(worker.trouble) || t(!worker.quiet ? "worker.ready" : worker.running ? "worker.quiet" : "worker.drained"),
      ...(mayAct ? [h("span", { class: "buttons" }, workerButton(worker))] : []),
    ],
  }));
  const head = ["worker", "host", "pid", "slots", "lag", "gpus", "version", "state", ...(mayAct ? ["do"] : [])];
  show(byId("workers"), table(t("worker.live"), head, rows), more(count - first.length));
}

/** Show the types of errors with their numbers of attempts, each as a button that lists the tasks with this error. */
export function errors(recent, list) {
  const rows = recent.errors.map(([type, count]) => ({
    key: type,
    cells: [h("button", { type: "button", class: "link", "data-key": `error-${type}`, onclick: () => list(type) }, type), number(count)],
  }));
  show(byId("errors"), rows.length ? table(t("errors.types"), ["error", "attempts"], rows) : h("p", { class: "words" }, t("none")));
}

/** Show the failed tasks in groups with the same error, each with a button that lists them, and one that retries them. */
export function groups({ looked, groups: found }, list) {
  const rows = found.map((group) => {
    const words = joined([group.type, group.message], "colon");
    const key = `${group.type} ${group.message} ${group.count}`;
    const about = { type: "button", class: "link", "data-key": `group-${key}`, "aria-label": t("groups.list_of", { error: words }), onclick: () => list(group) };
    return {
      key,
      cells: [
        h("button", about, h("span", { class: "why" }, words)),
        number(group.count),
        when(group.last),
        ...(mayAct ? [h("span", { class: "buttons" }, groupButton(group, words))] : []),
      ],
    };
  });
  show(
    byId("groups"),
    rows.length ? table(t("h.groups"), ["error", "tasks", "last", ...(mayAct ? ["do"] : [])], rows) : null,
    h("p", { class: "words" }, rows.length ? t("groups.looked", { looked: tasks(looked) }) : t("none")),
  );
}
