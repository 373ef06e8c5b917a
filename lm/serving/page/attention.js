// Draws the attention weights of what was just asked, which the server computes on request.
import { post } from "./api.js";
import { el, told } from "./dom.js";
import { percent, t } from "./texts.js";

/**
 * Returns an element that asks for the weights and shows them.
 * @param {Object} asked the body of POST /attention, without `of` and `layer`.
 */
export function view(asked) {
  const place = el("section.attention", { "aria-label": t("attention"), "aria-busy": "true" });
  const chosen = { of: null, layer: null, head: "mean", query: null };
  const load = async () => {
    const { of, layer } = chosen;
    place.setAttribute("aria-busy", "true");
    try {
      const found = await post("/attention", { ...asked, ...(of ? { of } : {}), ...(layer ? { layer } : {}) });
      draw(place, found, chosen, load);
    } catch (problem) {
      place.replaceChildren(told(problem.message, problem.detail));
    } finally {
      place.setAttribute("aria-busy", "false");
    }
  };
  load();
  return place;
}

function draw(place, found, chosen, load) {
  Object.assign(chosen, { of: found.of, layer: found.layer });
  chosen.query ??= Math.max(found.queries.indexOf("[MASK]"), 0);
  chosen.query = Math.min(chosen.query, found.queries.length - 1);
  const tokens = el("div.tokens");
  const canvas = el("canvas.map", { role: "img", "aria-label": t("attention-map") });
  const refresh = () => {
    const weights = ofHead(found.weights, chosen.head);
    showTokens(tokens, found, weights, chosen, refresh);
    paint(canvas, weights, chosen.query);
  };
  canvas.addEventListener("click", (event) => {
    const rows = found.queries.length;
    chosen.query = Math.min(rows - 1, Math.floor((event.offsetY / canvas.clientHeight) * rows));
    refresh();
  });
  const heads = ["mean", ...found.weights.map((_, i) => String(i + 1))];
  const layers = Array.from({ length: found.layers }, (_, i) => String(i + 1));
  const reload = (name) => (value) => {
    chosen[name] = name === "layer" ? Number(value) : value;
    if (name === "of") chosen.layer = null;
    load();
  };
  const options = [
    found.has.length > 1 ? select("attention-of", found.has, found.of, reload("of"), (of) => t(`of.${of}`)) : null,
    select("layer", layers, String(found.layer), reload("layer")),
    select("head", heads, chosen.head, (head) => ((chosen.head = head), refresh()), headName),
  ];
  place.replaceChildren(
    el("h2", {}, t("attention")),
    el(
      "div.both",
      {},
      el("div", {}, el("p.note", {}, t("attention-hint")), el("div.options", {}, options), tokens),
      el("div", {}, canvas),
    ),
  );
  refresh();
  new ResizeObserver(refresh).observe(canvas.parentElement);
  whenColorsChange(canvas, refresh);
}

const headName = (head) => (head === "mean" ? t("mean") : head);

/** Calls a function when the colours change, for as long as an element is on the page. */
function whenColorsChange(element, call) {
  const listener = () => (element.isConnected ? call() : removeEventListener("colors", listener));
  addEventListener("colors", listener);
}

function select(key, values, value, choose, worded = (each) => each) {
  const choices = values.map((each) => el("option", { value: each, selected: each === value }, worded(each)));
  return el("label.option", {}, t(key), el("select", { onchange: (event) => choose(event.target.value) }, choices));
}

function ofHead(weights_HLS, head) {
  if (head !== "mean") return weights_HLS[Number(head) - 1];
  const share = 1 / weights_HLS.length;
  return weights_HLS[0].map((row, l) => row.map((_, s) => share * weights_HLS.reduce((sum, w) => sum + w[l][s], 0)));
}

function showTokens(place, found, weights_LS, chosen, refresh) {
  const focused = place.contains(document.activeElement);
  const row = weights_LS[chosen.query];
  const most = Math.max(...row);
  const queries = found.queries.map((token, i) =>
    el(
      "button.token",
      {
        type: "button",
        "aria-pressed": String(i === chosen.query),
        onclick: () => ((chosen.query = i), refresh()),
      },
      token,
    ),
  );
  const keys = row.map((weight, i) => {
    const key = el("li.token", { title: percent(weight) }, found.keys[i], el("span.hidden", {}, ` ${percent(weight)}`));
    key.style.setProperty("--share", weight / most);
    return key;
  });
  place.replaceChildren(
    el("p.of", { id: "queries" }, t("attention-from")),
    el("div.line", { role: "group", "aria-labelledby": "queries" }, queries),
    el("p.of", { id: "keys" }, t("attention-to")),
    el("ul.line", { "aria-labelledby": "keys", "aria-live": "polite" }, keys),
  );
  if (focused) queries[chosen.query].focus();
}

/** Paints every weight as a cell: a row for each query, a column for each key. */
function paint(canvas, weights_LS, query) {
  const [rows, columns] = [weights_LS.length, weights_LS[0].length];
  const ratio = devicePixelRatio;
  const cell = Math.max(2, Math.floor(Math.min(canvas.parentElement.clientWidth / columns, 420 / rows, 26) * ratio));
  const gap = cell > 6 * ratio ? Math.round(ratio) : 0;
  canvas.width = columns * cell;
  canvas.height = rows * cell;
  canvas.style.width = `${canvas.width / ratio}px`;
  const style = getComputedStyle(canvas);
  const context = canvas.getContext("2d");
  context.fillStyle = style.color; // the accent
  weights_LS.forEach((row, y) => {
    const most = Math.max(...row);
    row.forEach((weight, x) => {
      context.globalAlpha = 0.05 + 0.95 * (weight / most);
      context.fillRect(x * cell, y * cell, cell - gap, cell - gap);
    });
  });
  context.globalAlpha = 1;
  context.strokeStyle = style.borderTopColor;
  context.lineWidth = 1.5 * ratio;
  context.strokeRect(ratio, query * cell, canvas.width - 2 * ratio, cell - gap);
}
