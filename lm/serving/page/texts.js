// The words of the page. texts.en.json and texts.zh.json have the same keys.

export const LANGUAGES = ["en", "zh"];
let texts = {};
export let language = "en";

/** Returns the language to begin with: the last choice of the reader, or else the browser's. */
export function preferred() {
  const kept = localStorage.getItem("language");
  if (LANGUAGES.includes(kept)) return kept;
  const first = navigator.languages.find((name) => LANGUAGES.includes(name.slice(0, 2).toLowerCase()));
  return first ? first.slice(0, 2).toLowerCase() : "en";
}

/** Loads the words of a language. */
export async function use(name) {
  const answer = await fetch(new URL(`texts.${name}.json`, import.meta.url));
  texts = await answer.json();
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
}

/** Returns a text, with each {name} replaced by a value. */
export function t(key, values = {}) {
  return String(texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** Returns the examples of a task: a list of the values of its fields. */
export const examples = (task) => texts["examples-of"][task] ?? [];

export const has = (key) => key in texts;

export function number(value, digits = 0) {
  return value.toLocaleString(document.documentElement.lang, {
    maximumFractionDigits: digits,
    minimumFractionDigits: digits,
  });
}

export function percent(value) {
  return `${number(100 * value, value < 0.0995 || value > 0.995 ? 1 : 0)}%`;
}

/** Returns a duration with its unit, in three digits or fewer. */
export function seconds(value) {
  if (value < 0.9995) return t("milliseconds", { n: number(1000 * value, value < 0.00995 ? 1 : 0) });
  return t("seconds", { n: number(value, value < 9.95 ? 1 : 0) });
}

/** Returns the name of a language that a model writes, such as zh_CN. */
export function languageName(code) {
  try {
    return new Intl.DisplayNames([document.documentElement.lang], { type: "language" }).of(code.replaceAll("_", "-"));
  } catch {
    return code; // the run has a name of its own for it
  }
}
