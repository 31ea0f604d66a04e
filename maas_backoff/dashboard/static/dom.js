// Elements made of names and text. Text is only ever text: no function here, or elsewhere, reads markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element; `about` are attributes, and listeners under names like "onclick". Children may be text. */
export function h(name, about = {}, ...children) {
  return fill(document.createElement(name), about, children);
}

/** The same for SVG. */
export function s(name, about = {}, ...children) {
  return fill(document.createElementNS(SVG, name), about, children);
}

function fill(element, about, children) {
  for (const [name, value] of Object.entries(about)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Put these in the place of what is in an element, unless that looks the same: focus and selection stay. */
export function show(element, ...children) {
  const fresh = element.cloneNode(false);
  fresh.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  const keyed = (key) => `[data-key="${CSS.escape(key)}"]`;
  for (const open of element.querySelectorAll("details[open]")) {
    fresh.querySelector(`details${keyed(open.dataset.key)}`)?.setAttribute("open", "");
  }
  if (fresh.isEqualNode(element)) return;
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  element.replaceChildren(...fresh.childNodes);
  if (focused) element.querySelector(keyed(focused))?.focus();
}
