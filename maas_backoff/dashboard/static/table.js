// Tables with a title for each column.

import { h } from "./dom.js";
import { t } from "./i18n.js";

/**
 * Return a table of rows with a key and cells. `head` are the names of the columns: the catalogue has their titles, which
 * the cells have, too: a narrow screen shows rows as cards. With `sorted`, a click on a title in `sortable` sorts by it,
 * and the next click the other way round. Those in `downFirst` begin with the largest value.
 */
export function table(caption, head, rows, about = {}, { sortable = [], downFirst = [], sort = "", sorted = null } = {}) {
  const title = (name) => t(`col.${name}`);
  const cell = (name) => {
    if (!sortable.includes(name)) return h("th", { scope: "col" }, title(name));
    const order = sort === name ? "ascending" : sort === `-${name}` ? "descending" : null;
    const orders = downFirst.includes(name) ? [`-${name}`, name, ""] : [name, `-${name}`, ""];
    const press = () => sorted(orders[(orders.indexOf(order ? sort : "") + 1) % 3]);
    const button = { type: "button", "data-key": `sort-${name}-${order}`, "aria-label": t("sort", { name: title(name) }), onclick: press };
    return h("th", { scope: "col", "aria-sort": order ?? "none" }, h("button", button, title(name), order === "ascending" ? " ↑" : order ? " ↓" : ""));
  };
  return h(
    "table",
    about,
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, head.map(cell))),
    h("tbody", {}, rows.map(({ key, cells }) => h("tr", { "data-key": key }, cells.map((one, at) => h("td", { "data-head": title(head[at]), "data-column": head[at] }, one))))),
  );
}
