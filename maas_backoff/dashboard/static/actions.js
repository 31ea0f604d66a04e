// Actions on the queue and its tasks, by POST, if the server has granted them to this page.

import { h, byId } from "./dom.js";
import { now, tasks } from "./format.js";
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
    notice(`Not done: ${error.message}`, { bad: true });
  }
  whenDone(query.id ?? null);
}

const OF_TASK = {
  cancel: ["Cancel", (done) => (done ? "is cancelled" : "could not be cancelled: it is finished, or gone")],
  retry: ["Retry", (done) => (done ? "is pending again" : "is neither failed nor cancelled any more")],
  now: ["Run now", (done) => (done ? "is due now" : "is not pending any more")],
  delete: ["Delete", (done) => (done ? "is deleted" : "is running, or gone")],
};

const OF_MANY = { cancel: "cancelled", retry: "pending again", now: "due now", delete: "deleted" };

/** The actions that are possible on the tasks of a list. */
const OF_LIST = {
  due: ["cancel", "delete"],
  gpu: ["cancel", "delete"],
  scheduled: ["now", "cancel", "delete"],
  processing: ["cancel"],
  failed: ["retry", "delete"],
  cancelled: ["retry", "delete"],
  completed: ["delete"],
};

/** Return the buttons for the possible actions on a task. */
export function taskButtons(task, where) {
  if (!mayAct) return [];
  const delayed = task.status === "pending" && Date.parse(task.next_execute_time) > now();
  const names = { pending: delayed ? ["now", "cancel"] : ["cancel"], processing: ["cancel"], failed: ["retry"], cancelled: ["retry"] };
  return (names[task.status] ?? []).map((name) => {
    const [label, words] = OF_TASK[name];
    const yes = () => act(`api/task/${name}`, { id: task.task_id }, (done) => `${task.task_id} ${words(done)}.`);
    const asks = name === "cancel" && task.status === "processing";
    const run = asks ? () => ask(`Cancel ${task.task_id}?`, "It runs: what it has done so far is lost.", "Cancel it", yes) : yes;
    const about = { type: "button", "data-key": `${where}-${name}-${task.task_id}`, "aria-label": `${label} ${task.task_id}`, onclick: run };
    return h("button", about, label);
  });
}

/** Pause or resume the queue. */
export function steer(paused) {
  if (paused) return act("api/queue/resume", {}, () => "The queue goes on.");
  return ask("Pause the queue?", "No worker will start a task until it is resumed. What runs goes on.", "Pause", () =>
    act("api/queue/pause", {}, () => "The queue is paused."),
  );
}

/** Return the buttons for the tasks of a list: those with the chosen ids, or all that match the query of the list. */
export function manyButtons(state, chosen, query) {
  if (!mayAct) return [];
  return (OF_LIST[state] ?? []).map((name) => {
    const [label] = OF_TASK[name];
    const words = chosen.length ? `${label} ${chosen.length} selected` : `${label} all that match`;
    const run = () => (chosen.length ? onChosen(name, chosen) : onAll(name, query));
    return h("button", { type: "button", "data-key": `many-${name}-${words}-${JSON.stringify(query)}-${chosen}`, onclick: run }, words);
  });
}

const changed = (name, done) => `${tasks(done)} ${done === 1 ? "is" : "are"} ${OF_MANY[name]}.`;

function onChosen(name, ids) {
  const [label] = OF_TASK[name];
  return ask(`${label} ${tasks(ids.length)}?`, "Tasks that you have selected.", label, async () => {
    let done = 0;
    try {
      for (const id of ids) done += Number((await post(`api/task/${name}`, { id })).done);
      notice(changed(name, done));
    } catch (error) {
      notice(`${changed(name, done)} Then: ${error.message}`, { bad: true });
    }
    whenDone(null);
  });
}

/** Count the tasks that match, ask, and act on them. */
async function onAll(name, query) {
  const [label] = OF_TASK[name];
  notice("Counting the tasks that match…");
  try {
    const { count } = await read("api/count", query);
    notice(`${tasks(count)} ${count === 1 ? "matches" : "match"}.`);
    if (!count) return;
    ask(`${label} ${tasks(count)}?`, "All tasks that match the list and its filters, also those that are not shown.", label, () => {
      notice(`${label}: ${tasks(count)}…`);
      return act(`api/selection/${name}`, query, (done) => changed(name, done));
    });
  } catch (error) {
    notice(`Not done: ${error.message}`, { bad: true });
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
      h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Leave it"),
    ),
  );
  dialog.showModal();
}
