// The reasons of the server, which are English sentences, in the language of the reader.

import { english, t } from "./i18n.js";

const NESTED = ["tasks", "running", "waits", "why", "health", "error", "others", "demand", "workers", "span"]; // values that are texts themselves

const escaped = (text) => text.replace(/[.*+?^$()|[\]\\]/g, "\\$&");
const literal = (text) => text.replace(/\{\w+\}/g, "").length;

/** The texts as patterns, the most specific first. A value never has the “; ” between two parts of a sentence. */
const patterns = (await english("reason."))
  .sort(([, a], [, b]) => literal(b) - literal(a))
  .map(([key, text]) => [key, new RegExp(`^${escaped(text).replace(/\{(\w+)\}/g, "(?<$1>(?:(?!; ).)+?)")}$`)]);

function translated(text) {
  for (const [key, pattern] of patterns) {
    const values = pattern.exec(text)?.groups;
    if (values === undefined && !pattern.test(text)) continue;
    return t(key, Object.fromEntries(Object.entries(values ?? {}).map(([name, value]) => [name, NESTED.includes(name) ? (translated(value) ?? value) : value])));
  }
  return null;
}

/** Return a reason in the language of the reader. A part without a translation stays as it is. */
export function reason(text) {
  if (!patterns.length || !text) return text;
  const end = text.endsWith(".");
  const body = end ? text.slice(0, -1) : text;
  const whole = translated(body) ?? body.split("; ").map((part) => translated(part) ?? part).join(t("semicolon"));
  return end ? `${whole}${t("stop")}` : whole;
}
