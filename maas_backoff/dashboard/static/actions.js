// Actions on the queue and its tasks, by POST, if the server has granted them to this page.

import { h, byId } from "./dom.js";
import { now, tasks } from "./format.js";
import { many, t } from "./i18n.js";
import { notice } from "./notice.js";
import { post, read } from "./server.js";

export const mayAct = document.documentElement.dataset.access === "act";

let whenDone = () => {};

/** Call `listener` after each action, with the id of its task, or null for an action on the queue. */
export function onDone(listener) {
  whenDone = listener;
}

/** Send an action, and show its result in words. */
async function act(path, query, words) {
  try {
    const { done } = await post(path, query);
    notice(words(done));
  } catch (error) {
    notice(t("not_done", { error: error.message }), { bad: true });
  }
  whenDone(query.id ?? null);
}

/** The actions that are possible on the tasks of a list. */
const OF_LIST = {
  due: ["cancel", "delete"],
  gpu: ["cancel", "delete"],
  scheduled: ["now", "cancel", "delete"],
  processing: ["cancel"],
  failed: ["retry", "delete"],
  cancelled: ["retry", "delete"],
  completed: ["delete"],
  open: ["cancel", "retry"],
};

/** The states that an action on a list of several states is for. */
const STATES_FOR = { open: { cancel: "pending,processing", retry: "failed" } };

/** Return the buttons for the possible actions on a task. */
export function taskButtons(task, where) {
  if (!mayAct) return [];
  const delayed = task.status === "pending" && Date.parse(task.next_execute_time) > now();
  const names = { pending: delayed ? ["now", "cancel"] : ["cancel"], processing: ["cancel"], failed: ["retry"], cancelled: ["retry"] };
  return (names[task.status] ?? []).map((name) => {
    const id = task.task_id;
    const yes = () => act(`api/task/${name}`, { id }, (done) => t(`${done ? "done" : "undone"}.${name}`, { id }));
    const asks = name === "cancel" && task.status === "processing";
    const run = asks ? () => ask(t("cancel.ask", { id }), t("cancel.about"), t("cancel.yes"), yes) : yes;
    return button(name, id, `${where}-${name}-${id}`, run);
  });
}

function button(name, of, key, run) {
  const action = t(`act.${name}`);
  return h("button", { type: "button", "data-key": key, "aria-label": t("act.of", { action, name: of }), onclick: run }, action);
}

/** Return the button that makes a worker quiet, or wakes it. */
export function workerButton({ name, quiet }) {
  const action = quiet ? "wake" : "quiet";
  const label = t(`worker.do_${action}`);
  const words = (done) => (done ? t(quiet ? "worker.woken" : "worker.quieted", { name }) : t("worker.gone", { name }));
  const yes = () => act(`api/worker/${action}`, { name }, words);
  const run = quiet ? yes : () => ask(t("worker.ask", { name }), t("worker.about"), label, yes);
  return h("button", { type: "button", "data-key": `${action}-${name}`, "aria-label": t("act.of", { action: label, name }), onclick: run }, label);
}

/** Return the button that quarantines a GPU, or releases it. */
export function gpuButtons({ uuid, index, health }) {
  if (!mayAct) return null;
  const isOpen = !health.includes("quarantine: ");
  const action = isOpen ? "quarantine" : "release";
  const [label, name] = [t(`gpu.${action}`), uuid];
  const words = (done) => t(!done ? "gpu.not_quarantined" : isOpen ? "gpu.quarantined" : "gpu.released", { name });
  const yes = () => act(`api/gpu/${action}`, { gpu: uuid }, words);
  const run = isOpen ? () => ask(t("gpu.ask", { name }), t("gpu.about"), label, yes) : yes;
  const about = { type: "button", "data-key": `${action}-${uuid}`, "aria-label": t("act.of", { action: label, name: `${index} ${uuid}` }), onclick: run };
  return h("div", { class: "buttons" }, h("button", about, label));
}

/** Return the button that retries the failed tasks of a group with the same error. */
export function groupButton(group, words) {
  const run = () => onAll("retry", queryOfGroup(group));
  return h("button", { type: "button", "data-key": `retry-${words}-${group.count}`, "aria-label": t("groups.retry_of", { error: words }), onclick: run }, t("groups.retry"));
}

/** Return the query that selects the failed tasks of a group. */
export function queryOfGroup({ type, text }) {
  return { state: "failed", error_type: type, ...(text ? { error: text } : {}) };
}

/** Pause or resume the queue. */
export function steer(paused) {
  if (paused) return act("api/queue/resume", {}, () => t("resume.done"));
  return ask(t("pause.ask"), t("pause.about"), t("pause.yes"), () => act("api/queue/pause", {}, () => t("pause.done")));
}

/** Return the buttons for the tasks of a list: those with the chosen ids, or all that match the query of the list. */
export function manyButtons(state, chosen, query) {
  if (!mayAct) return [];
  return (OF_LIST[state] ?? []).map((name) => {
    const action = t(`act.${name}`);
    const words = chosen.length ? t("many.selected", { action, number: chosen.length }) : t("many.all", { action });
    const states = STATES_FOR[state]?.[name] ?? query.state;
    const run = () => (chosen.length ? onChosen(name, chosen) : onAll(name, { ...query, state: states }));
    const key = `many-${name}-${words}-${JSON.stringify(query)}-${chosen}`;
    return h("button", { type: "button", id: `${name}-all`, "data-key": key, onclick: run }, words);
  });
}

const changed = (name, done) => many(`many.${name}`, done);

function onChosen(name, ids) {
  const action = t(`act.${name}`);
  return ask(t("many.ask", { action, tasks: tasks(ids.length) }), t("many.about_selected"), action, async () => {
    let done = 0;
    try {
      for (const id of ids) done += Number((await post(`api/task/${name}`, { id })).done);
      notice(changed(name, done));
    } catch (error) {
      notice(t("many.then", { done: changed(name, done), error: error.message }), { bad: true });
    }
    whenDone(null);
  });
}

/** Count the tasks that match, ask, and act on them. */
async function onAll(name, query) {
  const action = t(`act.${name}`);
  notice(t("many.counting"));
  try {
    const { count } = await read("api/count", query);
    notice(many("many.match", count));
    if (!count) return;
    ask(t("many.ask", { action, tasks: tasks(count) }), t("many.about_all"), action, () => {
      notice(t("many.working", { action, tasks: tasks(count) }));
      return act(`api/selection/${name}`, query, (done) => changed(name, done));
    });
  } catch (error) {
    notice(t("not_done", { error: error.message }), { bad: true });
  }
}

function ask(question, about, label, run) {
  const dialog = byId("confirm");
  const yes = () => {
    dialog.close();
    run();
  };
  dialog.replaceChildren(
    h("h2", { id: "confirm-title" }, question),
    h("p", {}, about),
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "button", class: "main", onclick: yes }, label),
      // The focus is on this button: a key that is still pressed must not confirm.
      h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, t("leave")),
    ),
  );
  dialog.showModal();
}
