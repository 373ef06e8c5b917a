// What the reader types for a task, its options and its examples.
import { el } from "./dom.js";
import { OPTIONS, TASKS } from "./tasks.js";
import { has, languageName, t } from "./texts.js";

/**
 * Returns the form of a task.
 * @param {Object} given `name` of the task; `state` with `values`, `options` and `model`, which the form changes;
 *   `able` models and the chosen `model`; `examples`; and the functions `ask`, `stop`, and `again` to draw all anew.
 */
export function form({ name, state, able, model, ask, stop, again, examples }) {
  const task = TASKS[name];
  const boxes = task.fields.map((field) => box(name, field, state));
  const options = task.options.map((option) => choice(option, state, model)).filter(Boolean);
  const submit = (event) => {
    event.preventDefault();
    ask();
  };
  const withKeys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  return el(
    "form.ask",
    { onsubmit: submit, onkeydown: withKeys, novalidate: true },
    able.length > 1 ? chooseModel(able, state, again) : null,
    boxes.map(({ element }) => element),
    exampleButtons(task, examples, boxes, ask),
    options.length ? el("details.more", {}, el("summary", {}, t("options")), el("div.options", {}, options)) : null,
    el(
      "div.send",
      {},
      el("button.first", { type: "submit", title: t("ask-keys") }, t("ask")),
      el("button.second", { type: "button", id: "stop", hidden: true, onclick: stop }, t("stop")),
      el("span.note.keys", {}, t("ask-keys")),
    ),
  );
}

function chooseModel(able, state, again) {
  const choose = (event) => {
    Object.assign(state, { model: event.target.value, options: {} });
    again();
    document.querySelector("#model").focus();
  };
  const choices = able.map(({ name }) => el("option", { value: name, selected: name === state.model }, name));
  return el("label.field", {}, t("model"), el("select", { id: "model", onchange: choose }, choices));
}

/** Returns the box of a field, and a function that changes its text. */
function box(name, field, state) {
  const key = `${name}.${field.name}`;
  const id = `field-${field.name}`;
  const oninput = (event) => (state.values[field.name] = event.target.value);
  const shared = { id, oninput, spellcheck: "false", "aria-describedby": has(`hint.${key}`) ? `${id}-hint` : null };
  const input = field.rows > 1 ? el("textarea", { ...shared, rows: field.rows }) : el("input", { ...shared, type: "text" });
  input.value = state.values[field.name];
  const set = (value) => {
    input.value = value;
    state.values[field.name] = value;
  };
  const element = el(
    "div.field",
    {},
    el(
      "div.label",
      {},
      el("label", { for: id }, t(has(`field.${key}`) ? `field.${key}` : `field.${field.name}`)),
      field.mask ? maskButton(input, field.mask, set) : null,
    ),
    input,
    has(`hint.${key}`) ? el("p.note", { id: `${id}-hint` }, t(`hint.${key}`)) : null,
  );
  return { element, set };
}

/** Returns a button that puts a mask where the cursor is, in place of what is selected. */
function maskButton(input, mask, set) {
  const insert = () => {
    const { selectionStart: start, selectionEnd: end, value } = input;
    set(value.slice(0, start) + mask + value.slice(end));
    input.focus();
    input.setSelectionRange(start + mask.length, start + mask.length);
  };
  return el("button.quiet", { type: "button", onclick: insert }, t("insert-mask"));
}

function exampleButtons(task, examples, boxes, ask) {
  if (!examples.length) return null;
  const buttons = examples.map((example) => {
    const use = () => {
      boxes.forEach(({ set }, i) => set(example[i] ?? ""));
      ask();
    };
    return el("li", {}, el("button.example", { type: "button", onclick: use, title: example.join("\n") }, example[0]));
  });
  return el("div.examples", {}, el("p.note", { id: "examples" }, t("examples")), el("ul", { "aria-labelledby": "examples" }, buttons));
}

function choice(name, state, model) {
  const option = OPTIONS[name];
  const change = (event) => (state.options[name] = event.target.value);
  const value = state.options[name] ?? option.initial ?? "";
  const label = (input) => el("label.option", {}, t(`option.${name}`), input);
  if (option.kind === "choice") {
    const choices = option.choices(model);
    if (choices.length < 2) return null;
    const words = choices.map((each) =>
      el("option", { value: each, selected: String(each) === String(value) }, name === "language" ? languageName(each) : each),
    );
    return label(el("select", { onchange: change }, words));
  }
  const most = typeof option.most === "function" ? option.most(model) : option.most;
  const limits = { type: "number", min: option.least, max: most, step: option.step ?? 1 };
  const input = el("input", { ...limits, oninput: change, placeholder: t("automatic") });
  input.value = value;
  return label(input);
}
