// Elements from names and text. No function of the page parses markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return an element; `about` are attributes, and listeners under names like "onclick". Children may be text.
 * An element with listeners or a state needs a "data-key" that identifies it: see `show`.
 */
export function h(name, about = {}, ...children) {
  return fill(document.createElement(name), about, children);
}

/** Return an SVG element: `h` for SVG. */
export function s(name, about = {}, ...children) {
  return fill(document.createElementNS(SVG, name), about, children);
}

function fill(element, about, children) {
  for (const [name, value] of Object.entries(about)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...shown(children));
  return element;
}

function shown(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

export const byId = (id) => document.getElementById(id);

/**
 * Change the content of an element to `children`, and keep equal parts with their focus, selection, scroll position and
 * pressed buttons. Two elements with the same data-key count as the same, including their listeners.
 */
export function show(element, ...children) {
  const hadFocus = element.contains(document.activeElement);
  match(element, shown(children));
  if (hadFocus && document.activeElement === document.body) element.closest("dialog, [tabindex]")?.focus();
}

/** Return whether the pointer is on an element, which should not move then. A finger leaves no pointer behind. */
export const pointed = (element) => element.matches(":hover") && matchMedia("(hover: hover)").matches;

function match(parent, wanted) {
  const keys = new Set(wanted.map((child) => child.dataset?.key));
  // Remove first: a remaining element must not be moved, as it would lose its focus.
  for (const child of [...parent.children]) {
    if (child.dataset.key && !keys.has(child.dataset.key)) child.remove();
  }
  const keyed = new Map([...parent.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  let place = parent.firstChild;
  for (const child of wanted) {
    const fresh = typeof child === "object" ? child : document.createTextNode(child);
    const key = fresh.dataset?.key;
    const old = key ? keyed.get(key) : place?.dataset?.key ? null : place;
    if (!old || old.nodeName !== fresh.nodeName) {
      parent.insertBefore(fresh, place);
      continue;
    }
    if (old === place) place = place.nextSibling;
    else parent.insertBefore(old, place);
    update(old, fresh);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function update(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.localName === "details")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) === value) continue;
    if (name === "style") old.style.cssText = value; // the content security policy forbids the attribute, but allows this
    else old.setAttribute(name, value);
  }
  match(old, [...fresh.childNodes]);
}
