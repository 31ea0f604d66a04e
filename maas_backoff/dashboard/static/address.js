// The list in the address: `?state=failed&error_type=ValueError&sort=-created` is a link that shows it to others.

/** Return the list that the address names, as `List.choose` takes it; null if it names none. */
export function listed(states, conditions) {
  const query = new URLSearchParams(location.search);
  const state = query.get("state");
  if (!states.includes(state)) return null;
  return {
    state,
    text: query.get("text") ?? "",
    ahead: Number(query.get("due_in")) || 0,
    sort: query.get("sort") ?? "",
    conditions: Object.fromEntries([...query].filter(([name, value]) => name in conditions && value)),
  };
}

/** Return whether the address names this list. */
export const shows = (list) => location.search === searchOf(list);

/** Put a list into the address. The button “back” of the browser shows the list before. */
export function put(list, { push = true } = {}) {
  if (shows(list)) return;
  history[push ? "pushState" : "replaceState"](null, "", `${location.pathname}${searchOf(list)}${location.hash}`);
}

function searchOf({ state, text, ahead, sort, conditions }) {
  const query = new URLSearchParams({ state, ...conditions });
  if (text) query.set("text", text);
  if (ahead) query.set("due_in", ahead);
  if (sort) query.set("sort", sort);
  return `?${query}`;
}
