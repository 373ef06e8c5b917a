// Shows answers. Each function fills `place` with what the server said.
import { bar, el } from "./dom.js";
import { number, percent, t } from "./texts.js";

// ---- Encoders -----------------------------------------------------------------------------------

/** A sentence with its best tokens filled in, and for each mask the candidates with their probabilities. */
export function masks(place, answer, asked) {
  const parts = asked.values.text.split("[MASK]");
  const chosen = answer.masks.map(() => 0);
  const filled = answer.masks.map(() => el("mark"));
  const sentence = parts.flatMap((part, i) => [part, filled[i] ?? (i < parts.length - 1 ? "[MASK]" : null)]);
  const refresh = () => answer.masks.forEach((mask, i) => (filled[i].textContent = readable(mask[chosen[i]].token)));
  refresh();
  const lists = answer.masks.map((mask, i) => {
    const rows = mask.map((candidate, rank) =>
      el(
        "button.row",
        {
          type: "button",
          "aria-pressed": String(rank === 0),
          onclick() {
            chosen[i] = rank;
            rows.forEach((row, other) => row.setAttribute("aria-pressed", String(other === rank)));
            refresh();
          },
        },
        el("span.name", {}, readable(candidate.token)),
        bar(candidate.probability),
        el("span.value", {}, percent(candidate.probability)),
      ),
    );
    const title = answer.masks.length > 1 ? el("h4", {}, t("mask-number", { n: i + 1 })) : null;
    return el("div.bars", { role: "group", "aria-label": t("mask-number", { n: i + 1 }) }, title, rows);
  });
  place.replaceChildren(el("p.said", {}, sentence), ...lists);
}

/** A token as it reads in a sentence: without the marks that tokenizers put at the beginning of a word. */
function readable(token) {
  return token.replace(/^(▁|Ġ|##)/, "") || "␣";
}

/** The probability that the second text follows the first. */
export function follows(place, answer) {
  const share = answer.is_next;
  place.replaceChildren(
    el("p.said", {}, t(share >= 0.5 ? "follows" : "follows-not")),
    el("div.bars", {}, row(t("probability"), share, percent(share))),
  );
}

/** Texts with their scores, the best first. `most` is the longest bar's score; otherwise it is the best one's. */
export function ranking(place, ranked, texts, most = Math.max(...ranked.map((each) => each.score), 1e-9)) {
  const rows = ranked.map(({ index, score }) =>
    el(
      "li.ranked",
      {},
      el("span.text", {}, texts[index]),
      bar(score / most),
      el("span.value", {}, number(score, 3)),
    ),
  );
  place.replaceChildren(el("ol.ranking", {}, rows));
}

/** Labels with their probabilities, or the value of a regression. */
export function labels(place, answer) {
  if ("value" in answer) {
    place.replaceChildren(el("p.said", {}, number(answer.value, 3)));
    return;
  }
  const best = answer.labels ? answer.labels.join(", ") : answer.label;
  const rows = Object.entries(answer.scores)
    .sort(([, a], [, b]) => b - a)
    .map(([label, share]) => row(label, share, percent(share)));
  place.replaceChildren(el("p.said", {}, best || t("no-label")), el("div.bars", {}, rows));
}

/** A text whose entities are marked, each with its label. */
export function entities(place, answer, asked) {
  const parts = [];
  let at = 0;
  const characters = [...asked.values.text]; // offsets count code points
  for (const entity of answer.entities) {
    const title = `${entity.label} ${percent(entity.score)}`;
    parts.push(characters.slice(at, entity.start).join(""));
    const marked = characters.slice(entity.start, entity.end).join("");
    parts.push(el("mark.entity", { title }, marked, el("span.label", {}, entity.label)));
    at = entity.end;
  }
  parts.push(characters.slice(at).join(""));
  place.replaceChildren(
    el("p.said", {}, parts),
    answer.entities.length ? "" : el("p.note", {}, t("no-entity")),
  );
}

/** An answer that is a part of the passage, by its offsets. */
export function extracted(place, answer, asked) {
  if (!answer.answer) {
    place.replaceChildren(el("p.said", {}, t("no-answer")));
    return;
  }
  const characters = [...asked.values.context]; // offsets count code points
  const units = (count) => characters.slice(0, count).join("").length;
  place.replaceChildren(
    el("p.said", {}, answer.answer),
    el("p.note", {}, `${t("probability")} ${percent(answer.score)}`),
    passage(asked.values.context, units(answer.start), units(answer.end)),
  );
}

function row(name, share, value) {
  return el("div.row", {}, el("span.name", {}, name), bar(share), el("span.value", {}, value));
}

// ---- Models that write --------------------------------------------------------------------------

/** A text, and with several beams the other candidates with their scores. */
export function written(place, answer) {
  const others = (answer.candidates ?? []).slice(1);
  place.replaceChildren(
    el("p.said", {}, answer.text || t("nothing-written")),
    others.length ? el("h4", {}, t("candidates")) : "",
    others.length ? el("ol.candidates", {}, others.map(candidate)) : "",
  );
}

function candidate({ text, score }) {
  return el("li", {}, el("span", {}, text), el("span.value", {}, number(score, 2)));
}

/** An answer, and the passage with the answer marked where it occurs. */
export function answered(place, answer, asked) {
  written(place, answer);
  const context = asked.values.context;
  const found = answer.text ? find(context, answer.text) : -1;
  if (found < 0) place.append(el("p.note", {}, t("not-in-passage")));
  else place.append(passage(context, found, found + answer.text.length));
}

/** Returns where a text begins in another, whatever the case of its letters; -1 if it does not occur. */
function find(context, text) {
  const [small, wanted] = [context.toLowerCase(), text.toLowerCase()];
  const isAligned = small.length === context.length && wanted.length === text.length;
  return isAligned ? small.indexOf(wanted) : context.indexOf(text);
}

function passage(context, start, end) {
  return el(
    "figure.passage",
    {},
    el("figcaption", {}, t("in-passage")),
    el("blockquote", {}, context.slice(0, start), el("mark", {}, context.slice(start, end)), context.slice(end)),
  );
}

/** Returns a function that adds text as it arrives. */
export function stream(place) {
  const text = el("p.said.streaming");
  place.replaceChildren(text);
  return (more) => text.append(more);
}
