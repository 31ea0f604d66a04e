// The texts of the page, by key, in the language of the reader.

const LANGUAGES = { en: "English", "zh-CN": "简体中文" };
const SAVED = "maas_backoff.language";

/** Return a saved choice of the reader; null if there is none, or the browser keeps none. */
export function saved(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function save(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // The choice lasts until the page is closed.
  }
}

function chosen() {
  const kept = saved(SAVED);
  if (kept in LANGUAGES) return kept;
  const first = navigator.languages.find((one) => /^(en|zh)\b/i.test(one)) ?? "en";
  return first.toLowerCase().startsWith("zh") ? "zh-CN" : "en";
}

export const language = chosen();
const catalogue = async (name) => (await fetch(new URL(`${name}.json`, import.meta.url))).json();
const texts = await catalogue(language);
const plural = new Intl.PluralRules(language);

/** Return the text of a key, with `{name}` replaced by the value of that name. */
export function t(key, values = {}) {
  const text = texts[key];
  if (text === undefined) throw new Error(`no text for ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Return the text of a key for a number of things; `{number}` is the number as text. */
export function many(key, count, values = {}) {
  const form = plural.select(count) === "one" ? "one" : "other";
  return t(`${key}.${form}`, { number: new Intl.NumberFormat(language).format(count), ...values });
}

/** Fill the elements that name their texts by `data-t`, `data-t-label` or `data-t-placeholder`. */
export function fillTexts() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of document.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

/** Make a select of the languages. The page reads its texts once, so a change loads the page again. */
export function languageSwitch(select) {
  for (const [name, title] of Object.entries(LANGUAGES)) select.append(new Option(title, name, false, name === language));
  select.addEventListener("change", () => {
    save(SAVED, select.value);
    location.reload();
  });
}

/** Return the English texts whose keys have a prefix, as pairs; none if the reader reads English. */
export async function english(prefix) {
  return language === "en" ? [] : Object.entries(await catalogue("en")).filter(([key]) => key.startsWith(prefix));
}
