// What the page can ask: for each task its fields, its options, the request, and how the answer is shown.
import * as answers from "./answers.js";

const MASK = "[MASK]";
const text = { name: "text", rows: 3 };
const pair = { name: "text_pair", rows: 2 };
const one = (task) => (values) => ({ path: `/tasks/${task}`, inputs: [bare(values)] });

/** A request with the one field `text` is written as a string. */
function bare(values) {
  const names = Object.keys(values).filter((name) => values[name] !== "");
  return names.length === 1 && names[0] === "text" ? values.text : pick(values, names);
}

const pick = (values, names) => Object.fromEntries(names.map((name) => [name, values[name]]));
const lines = (value) => value.split("\n").map((line) => line.trim()).filter(Boolean);

const DECODING = ["max_length", "num_beams", "temperature", "top_p", "seed"];

/**
 * fields: what the reader types. optional fields may stay empty; `lines` has a text on every line.
 * options: names of OPTIONS.
 * streams: whether the answer can arrive piece by piece.
 * attends: the request whose attention can be drawn; null if there is none.
 * wrong: the key of an error that needs no server, or nothing.
 * show: fills the answer's place.
 */
export const TASKS = {
  "fill-mask": {
    fields: [{ ...text, mask: MASK }],
    options: ["top"],
    request: one("fill-mask"),
    attends: bare,
    wrong: (values) => values.text.includes(MASK) || "error.no-mask",
    show: answers.masks,
  },
  "next-sentence": {
    fields: [{ ...text, rows: 2 }, pair],
    options: [],
    request: one("next-sentence"),
    attends: bare,
    show: answers.follows,
  },
  embed: {
    fields: [{ name: "sentence", rows: 1 }, { name: "sentences", rows: 6, lines: true }],
    options: [],
    request: (values) => ({
      path: "/similarity",
      whole: { inputs: { source_sentence: values.sentence.trim(), sentences: lines(values.sentences) } },
    }),
    attends: (values) => values.sentence,
    show: (place, answer, asked) => answers.ranking(place, rank(answer), lines(asked.values.sentences), 1),
  },
  rerank: {
    fields: [{ name: "query", rows: 1 }, { name: "texts", rows: 6, lines: true }],
    options: [],
    request: (values) => ({ path: "/tasks/rerank", inputs: [{ query: values.query, texts: lines(values.texts) }] }),
    show: (place, answer, asked) => answers.ranking(place, answer.ranking, lines(asked.values.texts)),
  },
  classify: {
    fields: [text, { ...pair, optional: true }],
    options: [],
    request: one("classify"),
    show: answers.labels,
  },
  tag: { fields: [text], options: [], request: one("tag"), show: answers.entities },
  extract: {
    fields: [{ name: "question", rows: 1 }, { name: "context", rows: 6 }],
    options: [],
    request: one("extract"),
    show: answers.extracted,
  },
  translate: {
    fields: [text],
    options: ["language", ...DECODING],
    request: one("translate"),
    attends: bare,
    streams: true,
    show: answers.written,
  },
  answer: {
    fields: [{ name: "question", rows: 1 }, { name: "context", rows: 6 }],
    options: DECODING,
    request: one("answer"),
    attends: bare,
    streams: true,
    show: answers.answered,
  },
  generate: {
    fields: [text],
    options: DECODING,
    request: one("generate"),
    attends: bare,
    streams: true,
    show: answers.written,
  },
};

/** Options of requests. Those at their default are not sent. */
export const OPTIONS = {
  top: { kind: "integer", least: 1, most: 20, initial: 5 },
  language: { kind: "choice", choices: (model) => model.languages },
  max_length: { kind: "integer", least: 1, most: (model) => model.longest_output },
  num_beams: { kind: "choice", choices: (model) => model.beams, initial: 1 },
  temperature: { kind: "number", least: 0, most: 2, step: 0.1, initial: 0 },
  top_p: { kind: "number", least: 0.05, most: 1, step: 0.05, initial: 1 },
  seed: { kind: "integer", least: 0, most: 4294967295, initial: 0 },
};

/** Returns the tasks that a server does and the page knows, in the page's order. */
export function known(models) {
  const served = new Set(models.flatMap((model) => model.tasks));
  return Object.keys(TASKS).filter((name) => served.has(name));
}

/**
 * Returns a request: its path, its body, and what attention would be asked with.
 * @param {string} name of the task.
 * @param {Object} values of the fields, by name.
 * @param {Object} options as the reader set them, by name.
 * @param {Object} model from GET /tasks.
 * @param {boolean} isOnly whether the server has no other model, so that it need not be named.
 */
export function prepare(name, values, options, model, isOnly) {
  const task = TASKS[name];
  const { path, inputs, whole } = task.request(values);
  const chosen = { ...(isOnly ? {} : { model: model.name }), ...changed(task, options) };
  const streams = Boolean(task.streams && Number(options.num_beams ?? 1) === 1);
  const body = { ...(whole ?? { inputs }), ...chosen, ...(streams ? { stream: true } : {}) };
  const attention = task.attends ? { task: name, input: task.attends(values), ...chosen } : null;
  return { path, body, streams, attention };
}

function changed(task, options) {
  const given = task.options.filter((name) => options[name] !== undefined && options[name] !== "");
  const typed = given.map((name) => [name, typedOption(OPTIONS[name], options[name])]);
  return Object.fromEntries(typed.filter(([name, value]) => value !== OPTIONS[name].initial));
}

function typedOption(option, value) {
  const isText = option.kind === "choice" && Number.isNaN(Number(value));
  return isText ? value : Number(value);
}

function rank(scores) {
  return scores.map((score, index) => ({ index, score })).sort((a, b) => b.score - a.score);
}
