// The page: which task is chosen, what was typed, and what happens when the reader asks.
import * as api from "./api.js";
import * as answers from "./answers.js";
import { view } from "./attention.js";
import { curl, python } from "./code.js";
import { el, told } from "./dom.js";
import * as figures from "./figures.js";
import { form } from "./form.js";
import { TASKS, known, prepare } from "./tasks.js";
import { LANGUAGES, examples, language, preferred, seconds, t, use } from "./texts.js";

const place = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];

let models = [];
let task = "";
let running = null; // the AbortController of the request that is under way
const kept = {}; // task -> {values, options, model, asked, answer, seconds}
let server = "unreachable";

// ---- Asking -------------------------------------------------------------------------------------

async function ask() {
  running?.abort();
  const state = kept[task];
  const shown = result();
  const values = { ...state.values };
  const wrong = missing(values) ?? TASKS[task].wrong?.(values);
  if (typeof wrong === "string") return tell(shown, new api.Problem(0, t(wrong)));
  const model = models.find((each) => each.name === state.model);
  const asked = { ...prepare(task, values, state.options, model, models.length === 1), values };
  const control = (running = new AbortController());
  const begun = performance.now();
  busy(shown, true);
  Object.assign(state, { asked, answer: null, first: null });
  try {
    state.answer = await (asked.streams ? streamed(shown, asked, state, begun, control) : whole(asked, control));
    state.seconds = (performance.now() - begun) / 1000;
    finish(shown, state);
  } catch (error) {
    if (control.signal.aborted) shown.querySelector(".streaming")?.classList.remove("streaming");
    else tell(shown, error);
  } finally {
    if (running === control) {
      running = null;
      busy(shown, false);
    }
  }
}

function missing(values) {
  const empty = TASKS[task].fields.some((field) => !field.optional && !values[field.name].trim());
  return empty ? "error.empty" : null;
}

async function whole(asked, control) {
  const found = await api.post(asked.path, asked.body, control.signal);
  return checked(found.answers ? found.answers[0] : found);
}

async function streamed(shown, asked, state, begun, control) {
  let add = null;
  let answer = null;
  for await (const event of api.events(asked.path, asked.body, control.signal)) {
    if (event.text && !add) {
      add = answers.stream(shown.said);
      state.first = (performance.now() - begun) / 1000;
    }
    if (event.text) add(event.text);
    answer = event.answer ?? answer;
  }
  return checked(answer);
}

function checked(answer) {
  if (answer.error) throw new api.Problem(422, t("error.wrong"), answer.error);
  return answer;
}

// ---- The answer ---------------------------------------------------------------------------------

/** Returns the parts of the answer's place. */
function result() {
  const found = place("answer");
  return Object.assign(found, {
    said: found.querySelector(".place"),
    after: found.querySelector(".after"),
    below: place("below"),
  });
}

function busy(shown, isBusy) {
  shown.setAttribute("aria-busy", String(isBusy));
  shown.classList.toggle("busy", isBusy);
  if (isBusy) {
    shown.after.replaceChildren();
    shown.below.replaceChildren();
    shown.querySelector(".empty")?.remove();
  }
  place("stop").hidden = !isBusy;
}

function tell(shown, problem) {
  const isOurs = problem instanceof api.Problem;
  if (!isOurs) console.error(problem);
  shown.said.replaceChildren(told(isOurs ? problem.message : t("error.page"), problem.detail));
  shown.after.replaceChildren();
  if (problem.status === 401) askForKey(shown.after);
}

function finish(shown, state) {
  const { asked, answer } = state;
  TASKS[task].show(shown.said, answer, asked);
  if (answer.truncated) shown.said.append(el("p.note", {}, t("truncated")));
  const times = state.first === null ? "" : ` · ${t("first-token", { time: seconds(state.first) })}`;
  const copied = el("span.note", { role: "status" });
  shown.after.replaceChildren(
    el("p.note.times", {}, `${seconds(state.seconds)}${times}`),
    el(
      "div.actions",
      {},
      asked.attention ? attentionButton(shown, asked.attention) : null,
      copyButton("copy-curl", () => curl(asked), copied),
      copyButton("copy-python", () => python(asked), copied),
      copied,
    ),
    el(
      "details.code",
      {},
      el("summary", {}, t("show-code")),
      el("h4", {}, "curl"),
      el("pre", { tabindex: "0", id: "curl", "aria-label": "curl" }, curl(asked)),
      el("h4", {}, "Python"),
      el("pre", { tabindex: "0", id: "python", "aria-label": "Python" }, python(asked)),
    ),
  );
}

function attentionButton(shown, body) {
  const toggle = () => {
    const isOpen = shown.below.childElementCount > 0;
    button.setAttribute("aria-expanded", String(!isOpen));
    shown.below.replaceChildren(isOpen ? "" : view(body));
  };
  const button = el("button.second", { type: "button", "aria-expanded": "false", onclick: toggle }, t("draw-attention"));
  return button;
}

function copyButton(key, write, copied) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(write());
      copied.textContent = t("copied");
    } catch {
      copied.closest(".after").querySelector("details").open = true; // no clipboard without https: select it by hand
      copied.textContent = t("copy-by-hand");
    }
    setTimeout(() => (copied.textContent = ""), 4000);
  };
  return el("button.second", { type: "button", onclick: copy }, t(key));
}

// ---- The panel of a task ------------------------------------------------------------------------

function open(name) {
  running?.abort();
  task = name;
  const able = models.filter((model) => model.tasks.includes(name));
  const state = (kept[name] ??= { values: first(name), options: {}, model: able[0].name, asked: null, answer: null });
  for (const link of document.querySelectorAll("#tasks a")) {
    link.removeAttribute("aria-current");
    if (link.hash !== `#${name}`) continue;
    link.setAttribute("aria-current", "page");
    link.scrollIntoView({ block: "nearest", inline: "center" });
  }
  const model = models.find((each) => each.name === state.model);
  place("panel").replaceChildren(
    el("header.intro", {}, el("h1", {}, t(`task.${name}`)), el("p", {}, t(`about.${name}`))),
    form({ name, state, able, model, ask, examples: examples(name), again: () => open(name), stop: () => running?.abort() }),
    el(
      "section.answer",
      { id: "answer", "aria-labelledby": "answer-title", "aria-live": "polite" },
      el("h2", { id: "answer-title" }, t("answer")),
      el("div.place", {}, el("p.empty", {}, t("empty"))),
      el("div.after"),
    ),
    el("div.below", { id: "below" }),
  );
  document.title = `${t(`task.${name}`)} · lm`;
  if (state.answer) finish(result(), state);
}

function first(name) {
  const [example = []] = examples(name);
  return Object.fromEntries(TASKS[name].fields.map((field, i) => [field.name, example[i] ?? ""]));
}

function chosen() {
  const names = known(models);
  const wanted = location.hash.slice(1);
  return names.includes(wanted) ? wanted : names[0];
}

// ---- The frame ----------------------------------------------------------------------------------

function frame() {
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = t(each.dataset.text);
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", t(each.dataset.label));
  const other = LANGUAGES.find((name) => name !== language);
  place("language").textContent = other === "zh" ? "中文" : "English";
  place("language").lang = other === "zh" ? "zh-CN" : "en";
  theme(localStorage.getItem("theme") ?? "auto");
  const links = known(models).map((name) => el("li", {}, el("a", { href: `#${name}` }, t(`task.${name}`))));
  place("tasks").replaceChildren(...links);
  document.querySelector(".tasks").hidden = links.length < 2;
  tellServer(server);
  figures.show(place("figures"));
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  place("theme").replaceChildren(el("span.sign", { "aria-hidden": "true" }), t(`theme.${name}`));
  place("theme").setAttribute("aria-label", `${t("theme")}: ${t(`theme.${name}`)}`);
  dispatchEvent(new Event("colors"));
}

function tellServer(now) {
  const before = server;
  server = now;
  const state = place("state");
  if (state.dataset.state !== now || state.textContent !== t(`server.${now}`)) {
    state.dataset.state = now;
    state.textContent = t(`server.${now}`);
  }
  if (now === "ready" && (before !== "ready" || !models.length)) load();
}

async function load() {
  const before = JSON.stringify(models);
  try {
    models = (await api.get("/tasks")).models;
  } catch (error) {
    const after = el("div.after");
    place("panel").replaceChildren(told(error.message), after);
    if (error.status === 401) askForKey(after);
    return;
  }
  if (JSON.stringify(models) === before) return; // what the reader types stays as it is
  frame();
  if (known(models).length) open(chosen());
  else place("panel").replaceChildren(el("p.empty", {}, t("no-task")));
}

function askForKey(where) {
  const input = el("input", { type: "password", autocomplete: "off", required: true });
  const keep = (event) => {
    event.preventDefault();
    api.key.set(input.value);
    load();
  };
  where.replaceChildren(
    el("form.key", { onsubmit: keep }, el("label", {}, t("key"), input), el("button.first", {}, t("use-key"))),
  );
}

async function begin() {
  await use(preferred());
  frame();
  place("panel").replaceChildren(el("p.empty", {}, t("waiting-for-server")));
  place("language").addEventListener("click", async () => {
    const other = LANGUAGES.find((name) => name !== language);
    localStorage.setItem("language", other);
    const samples = models.length ? first(task) : null;
    await use(other);
    const state = kept[task];
    const isUntouched = samples && Object.entries(samples).every(([name, value]) => state.values[name] === value);
    if (isUntouched && !state.answer) state.values = first(task);
    frame();
    if (task) open(task);
  });
  place("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("theme", next);
    theme(next);
  });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", () => dispatchEvent(new Event("colors")));
  addEventListener("hashchange", () => models.length && open(chosen()));
  addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  figures.watch(place("figures"), tellServer);
}

begin();
