// The header that all pages have: language, colors, time zone.

import { byId } from "./dom.js";
import { fillTexts, languageSwitch, save, saved, t } from "./i18n.js";

const SAVED = "maas_backoff.theme";
const THEMES = ["system", "light", "dark"];

function paint(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Fill the fixed texts of the page and its switches. */
export function dress() {
  fillTexts();
  languageSwitch(byId("language"));
  const select = byId("theme");
  const kept = THEMES.includes(saved(SAVED)) ? saved(SAVED) : "system";
  for (const theme of THEMES) select.append(new Option(t(`theme.${theme}`), theme, false, theme === kept));
  select.addEventListener("change", () => {
    save(SAVED, select.value);
    paint(select.value);
  });
  paint(kept);
  byId("zone").textContent = t("times", { zone: Intl.DateTimeFormat().resolvedOptions().timeZone });
}
