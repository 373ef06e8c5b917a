// The server's live figures, from /metrics.
import { text } from "./api.js";
import { el } from "./dom.js";
import { number, seconds, t } from "./texts.js";

const EVERY = 2000; // milliseconds
const REMEMBERED = 30; // samples, a minute
const OTHER_ROUTES = ["/health", "/ready", "/ping", "/metrics", "/openapi.json", "/page", "/tasks", "other"];
const samples = [];

/** Looks at the server now and then, while the page is visible. `tell` gets whether it could be reached. */
export function watch(place, tell) {
  const look = async () => {
    if (document.visibilityState === "visible") {
      try {
        samples.push(sample(await text("/metrics")));
        if (samples.length > REMEMBERED) samples.shift();
        show(place);
        tell(samples.at(-1).isReady ? "ready" : "starting");
      } catch {
        tell(await state());
      }
    }
    setTimeout(look, EVERY);
  };
  look();
}

/** Asks whether the server is ready. A gateway keeps /metrics from the public. */
async function state() {
  try {
    await text("/ready");
    return "ready";
  } catch (problem) {
    return problem.status === 503 ? "starting" : "unreachable";
  }
}

function sample(page) {
  const found = { at: performance.now(), tokens: 0, waiting: 0, writing: 0, isReady: false, buckets: new Map() };
  for (const line of page.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    if (name === "lm_read_tokens_total" || name === "lm_written_tokens_total") found.tokens += Number(value);
    if (name === "lm_queue_items") found.waiting = Number(value);
    if (name === "lm_slots_in_use") found.writing = Number(value);
    if (name === "lm_ready") found.isReady = Number(value) === 1;
    if (name === "lm_request_seconds_bucket" && !OTHER_ROUTES.some((route) => labels.includes(`route="${route}"`))) {
      const most = Number(/le="([^"]*)"/.exec(labels)[1].replace("+Inf", "Infinity"));
      found.buckets.set(most, (found.buckets.get(most) ?? 0) + Number(value));
    }
  }
  return found;
}

/** Shows the figures again, in the present language. */
export function show(place) {
  const last = samples.at(-1);
  const rates = samples.slice(1).map((each, i) => (1000 * (each.tokens - samples[i].tokens)) / (each.at - samples[i].at));
  const rate = rates.length ? rates.at(-1) : 0;
  const time = (share) => (last ? quantile(samples[0].buckets, last.buckets, share) : null);
  const latency = (value) => (value === null ? "–" : seconds(value));
  const figures = [
    ["waiting", last ? number(last.waiting) : "–"],
    ["writing", last ? number(last.writing) : "–"],
    ["tokens-a-second", last ? number(rate) : "–", line(rates)],
    ["median", latency(time(0.5))],
    ["p95", latency(time(0.95))],
  ];
  place.replaceChildren(
    el(
      "dl",
      {},
      figures.map(([key, value, more]) => el("div", {}, el("dt", {}, t(`figure.${key}`)), el("dd", {}, value, more ?? null))),
    ),
  );
}

/** Returns the seconds under which a share of the requests between two samples stayed; null if there were none. */
function quantile(before, after, share) {
  const limits = [...after.keys()].sort((a, b) => a - b);
  const counts = limits.map((limit) => after.get(limit) - (before.get(limit) ?? 0));
  const all = counts.at(-1) ?? 0;
  if (!all) return null;
  const i = counts.findIndex((count) => count >= share * all);
  const [low, below] = i ? [limits[i - 1], counts[i - 1]] : [0, 0];
  if (limits[i] === Infinity) return low;
  return low + ((limits[i] - low) * (share * all - below)) / (counts[i] - below);
}

/** Returns the rates of the last minute as a small curve. Before the page was opened they count as 0. */
function line(known) {
  const rates = [...Array(Math.max(0, REMEMBERED - 1 - known.length)).fill(0), ...known];
  const SVG = "http://www.w3.org/2000/svg";
  const [width, height] = [64, 16];
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, i) => {
    const x = (i * width) / (rates.length - 1);
    return `${x.toFixed(1)},${(height - 1 - (height - 2) * (rate / most)).toFixed(1)}`;
  });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-hidden", "true");
  const curve = document.createElementNS(SVG, "polyline");
  curve.setAttribute("points", points.join(" "));
  svg.append(curve);
  return svg;
}
